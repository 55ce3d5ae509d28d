// How the numbers of an operand are stored. A format is one name here and one codec (core/codec.h).
#pragma once

#include <cstddef>
#include <cstdint>

namespace fusedopt {

enum class Format : uint8_t {
  // The dtypes of torch, rounded to nearest.
  kFloat32,
  kFloat64,
  kBFloat16,
  kFloat16,
  kStochasticBFloat16,  // rounded with random bits (core/random.h)
  kMasterBFloat16,      // with a remainder beside it that makes it a float32
  kSigned8,             // codes in blocks that have a scale each (core/codes.h)
  kUnsigned8,
  kRemainder,  // of the master: no numbers by themselves
};

// Those of numbers, and those that are dtypes.
constexpr size_t kFormats = static_cast<size_t>(Format::kRemainder);
constexpr size_t kDtypes = static_cast<size_t>(Format::kStochasticBFloat16);

// Whether its elements are codes that have a scale in common, in blocks of kScaledBlock.
constexpr bool is_scaled(Format format) {
  return format == Format::kSigned8 || format == Format::kUnsigned8;
}
constexpr int64_t kScaledBlock = 256;
constexpr int64_t scales_of(int64_t elements) {
  return (elements + kScaledBlock - 1) / kScaledBlock;
}

// Bytes per element.
constexpr size_t size_of(Format format) {
  if (is_scaled(format)) return 1;
  return format == Format::kFloat64 ? 8 : format == Format::kFloat32 ? 4 : 2;
}

constexpr const char* name_of(Format format) {
  constexpr const char* names[] = {"float32",
                                   "float64",
                                   "bfloat16",
                                   "float16",
                                   "bfloat16, rounded stochastically",
                                   "bfloat16 with a master",
                                   "8 bits, signed",
                                   "8 bits, unsigned",
                                   "remainder"};
  return names[static_cast<int>(format)];
}

// The format of torch's that its elements have without what belongs to them; float32 where none is
// a number by itself.
constexpr Format plain_format(Format format) {
  switch (format) {
    case Format::kStochasticBFloat16:
    case Format::kMasterBFloat16: return Format::kBFloat16;
    case Format::kSigned8:
    case Format::kUnsigned8:
    case Format::kRemainder: return Format::kFloat32;
    default: return format;
  }
}

constexpr bool draws_random_bits(Format format) { return format == Format::kStochasticBFloat16; }

// The format of the arithmetic: an update that has an operand in float64 is computed in double, any
// other in float.
constexpr Format arithmetic_format(bool in_double) {
  return in_double ? Format::kFloat64 : Format::kFloat32;
}

}  // namespace fusedopt
