// How the numbers of an operand are stored. A format is one name here and one codec (core/codec.h).
#pragma once

#include <cstddef>
#include <cstdint>

namespace fusedopt {

enum class Format : uint8_t { kFloat32, kFloat64, kBFloat16, kFloat16 };

// Bytes per element.
constexpr size_t size_of(Format format) {
  return format == Format::kFloat64 ? 8 : format == Format::kFloat32 ? 4 : 2;
}

constexpr const char* name_of(Format format) {
  constexpr const char* names[] = {"float32", "float64", "bfloat16", "float16"};
  return names[static_cast<int>(format)];
}

// The format of the arithmetic: an update that has an operand in float64 is computed in double, any
// other in float.
constexpr Format arithmetic_format(bool in_double) {
  return in_double ? Format::kFloat64 : Format::kFloat32;
}

}  // namespace fusedopt
