// Loads, decodes, encodes and stores packs: elements that lie side by side in every operand.
#pragma once

#include <type_traits>

#include "core/codec.h"
#include "cuda/table.h"

namespace fusedopt::cuda {

// Operands that all have one format, which the compiler knows.
template <Format format, unsigned lanes = kPackBytes / size_of_dtype(format)>
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

  FUSEDOPT_FN explicit OneFormat(uint32_t) {}

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

// Single elements, each operand in a format of its own, which only the table knows. It is the same
// for all threads of a block.
template <class Number>
class AnyFormats {
 public:
  using T = Number;
  using Pack = T;
  using Single = AnyFormats;
  static constexpr unsigned kLanes = 1;

  FUSEDOPT_FN explicit AnyFormats(uint32_t formats) : formats_(formats) {}

  template <class Position>
  FUSEDOPT_FN std::byte* at(std::byte* first, Position position, unsigned operand) const {
    return first + position * static_cast<Position>(size_of_dtype(format(operand)));
  }

  FUSEDOPT_FN T load(const std::byte* at, unsigned operand) const {
    return with_codec(format(operand), [&]<class Codec>() -> T {
      if constexpr (kOccurs<Codec>) {
        using Stored = typename Codec::Stored;
        return Codec::template decode<T>(*in_global_memory(reinterpret_cast<const Stored*>(at)));
      } else {
        return T(0);
      }
    });
  }
  FUSEDOPT_FN void store(T number, std::byte* at, unsigned operand) const {
    with_codec(format(operand), [&]<class Codec>() {
      if constexpr (kOccurs<Codec>) {
        *in_global_memory(reinterpret_cast<typename Codec::Stored*>(at)) = Codec::encode(number);
      }
    });
  }

  FUSEDOPT_FN static T get(T number, unsigned) { return number; }
  FUSEDOPT_FN static void set(T& to, unsigned, T number) { to = number; }

 private:
  // No operand is wider than the numbers of the arithmetic.
  template <class Codec>
  static constexpr bool kOccurs = sizeof(typename Codec::Stored) <= sizeof(T);

  FUSEDOPT_FN Format format(unsigned operand) const { return format_of(formats_, operand); }

  uint32_t formats_;
};

}  // namespace fusedopt::cuda
