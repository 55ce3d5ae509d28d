// Loads, decodes, encodes and stores packs: elements that lie side by side in every operand.
#pragma once

#include <type_traits>

#include "core/codec.h"
#include "cuda/table.h"

namespace fusedopt::cuda {

// Operands that all have one format, which the compiler knows.
template <Format format, unsigned lanes = kPackBytes / size_of(format)>
class OneFormat {
 public:
  using Codec = CodecOf<format>;
  using Stored = typename Codec::Stored;
  using T = std::conditional_t<format == Format::kFloat64, double, float>;
  using Single = OneFormat<format, 1>;
  static constexpr unsigned kLanes = lanes;

  struct alignas(sizeof(Stored) * lanes) Pack {
    Stored elements[lanes];
  };

  template <class Position>
  FUSEDOPT_FN static std::byte* at(std::byte* first, Position position, unsigned) {
    return first + position * static_cast<Position>(sizeof(Stored));
  }

  FUSEDOPT_FN static Pack load(const std::byte* at, unsigned) {
    return *in_global_memory(reinterpret_cast<const Pack*>(at));
  }
  FUSEDOPT_FN static void store(const Pack& pack, std::byte* at, unsigned) {
    *in_global_memory(reinterpret_cast<Pack*>(at)) = pack;
  }

  FUSEDOPT_FN static T get(const Pack& pack, unsigned lane) {
    return Codec::template decode<T>(pack.elements[lane]);
  }
  FUSEDOPT_FN static void set(Pack& pack, unsigned lane, T number) {
    pack.elements[lane] = Codec::encode(number);
  }
};

}  // namespace fusedopt::cuda
