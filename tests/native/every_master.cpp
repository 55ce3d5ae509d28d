// Every float taken apart into a bfloat16 and a remainder (core/codec.h), and put together again.
//
// Prints how many of the 2^32 are another one afterwards, how many have a bfloat16 that is not the
// nearest, and a checksum of some, for the reference to compare with.
#include <bit>
#include <cinttypes>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <initializer_list>

#include "core/codec.h"

namespace {

using fusedopt::MasterBFloat16Codec;

constexpr uint32_t kOneNan = 0x7fc00000, kInfinity = 0x7f800000;

bool is_nan(uint32_t bits) { return (bits & 0x7fffffff) > kInfinity; }

uint32_t joined(float number) {
  return std::bit_cast<uint32_t>(MasterBFloat16Codec::decode(
      MasterBFloat16Codec::encode(number), MasterBFloat16Codec::remainder_of(number)));
}

// Of the floats from one bfloat16 to the next, those that are another one afterwards.
uint32_t count_changed(uint32_t upper) {
  uint32_t changed = 0;
  for (uint32_t lower = 0; lower < 0x10000; ++lower) {
    const uint32_t bits = upper << 16 | lower;
    changed += joined(std::bit_cast<float>(bits)) != (is_nan(bits) ? kOneNan : bits);
  }
  return changed;
}

// And those whose bfloat16 is not the nearest, or of two equally near ones that of the larger
// magnitude. Infinity is as far away as the number that would be next, where all is halved to have
// room for it.
uint32_t count_not_nearest(uint32_t upper) {
  const bool is_last = (upper & 0x7fff) == (kInfinity >> 16) - 1;
  const float scale = is_last ? 0.5f : 1.0f;
  const float inner = std::bit_cast<float>(upper << 16) * scale;
  const auto next = std::bit_cast<float>((upper + 1) << 16);
  const float outer = is_last ? std::copysign(0x1p127f, next) : next;
  uint32_t wrong = 0;
  for (uint32_t lower = 0; lower < 0x10000; ++lower) {
    const auto number = std::bit_cast<float>(upper << 16 | lower);
    // The difference of two floats of one binade is a float.
    const float to_inner = std::fabs(number * scale - inner);
    const float to_outer = std::fabs(outer - number * scale);
    wrong += MasterBFloat16Codec::encode(number) != upper + (to_outer <= to_inner ? 1 : 0);
  }
  return wrong;
}

// Of the parts of some floats of every upper half, in the order of their bits.
uint64_t checksum() {
  uint64_t sum = 0, position = 0;
  for (uint32_t upper = 0; upper < 0x10000; ++upper) {
    for (const uint32_t lower : {0u, 1u, 0x1234u, 0x7fffu, 0x8000u, 0x8001u, 0xabcdu, 0xffffu}) {
      const auto number = std::bit_cast<float>(upper << 16 | lower);
      const auto remainder = static_cast<uint16_t>(MasterBFloat16Codec::remainder_of(number));
      const uint32_t parts = uint32_t{MasterBFloat16Codec::encode(number)} << 16 | remainder;
      sum += ++position * parts;
    }
  }
  return sum;
}

}  // namespace

int main() {
  uint64_t changed = 0, not_nearest = 0;
  for (uint32_t upper = 0; upper < 0x10000; ++upper) {
    changed += count_changed(upper);
    if ((upper & 0x7fff) < kInfinity >> 16) not_nearest += count_not_nearest(upper);
  }
  std::printf("changed %" PRIu64 "\nnot nearest %" PRIu64 "\nchecksum %" PRIu64 "\n", changed,
              not_nearest, checksum());
}
