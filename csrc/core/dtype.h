// The element types of tensors, and the type that their arithmetic is done in.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fusedopt {

enum class DType : uint8_t { kFloat32, kFloat64, kBFloat16, kFloat16 };

constexpr size_t size_of(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

constexpr const char* name_of(DType dtype) {
  constexpr const char* names[] = {"float32", "float64", "bfloat16", "float16"};
  return names[static_cast<int>(dtype)];
}

// float64 is computed in double, everything else in float.
constexpr bool computes_in_double(DType dtype) { return dtype == DType::kFloat64; }
constexpr DType compute_dtype(DType dtype) {
  return computes_in_double(dtype) ? DType::kFloat64 : DType::kFloat32;
}

}  // namespace fusedopt
