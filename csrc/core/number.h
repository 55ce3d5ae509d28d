// A single number that lies in memory: a step count, or an option given as a tensor.
#pragma once

#include <cstddef>
#include <cstdint>

#include "rules/math.h"

namespace fusedopt {

enum class NumberType : uint8_t { kFloat32, kFloat64, kInt32, kInt64 };

constexpr size_t size_of(NumberType type) {
  return type == NumberType::kFloat32 || type == NumberType::kInt32 ? 4 : 8;
}

FUSEDOPT_FN double load_number(const void* data, NumberType type) {
  switch (type) {
    case NumberType::kFloat32: return *static_cast<const float*>(data);
    case NumberType::kFloat64: return *static_cast<const double*>(data);
    case NumberType::kInt32: return *static_cast<const int32_t*>(data);
    default: return static_cast<double>(*static_cast<const int64_t*>(data));
  }
}

FUSEDOPT_FN int64_t load_count(const void* data, NumberType type) {
  if (type == NumberType::kInt64) return *static_cast<const int64_t*>(data);
  const double number = load_number(data, type);
#if !defined(__CUDA_ARCH__)
  // A count that only a device has looked at may be NaN. C++ leaves its conversion undefined; PTX
  // does not.
  if (number != number) return INT64_MIN;
#endif
  return static_cast<int64_t>(number);
}

// The count up to which a number of this type counts without a gap.
FUSEDOPT_FN constexpr int64_t largest_count(NumberType type) {
  switch (type) {
    case NumberType::kFloat32: return int64_t{1} << 24;
    case NumberType::kFloat64: return int64_t{1} << 53;
    case NumberType::kInt32: return INT32_MAX;
    default: return INT64_MAX;
  }
}

FUSEDOPT_FN void store_count(void* data, NumberType type, int64_t count) {
  switch (type) {
    case NumberType::kFloat32: *static_cast<float*>(data) = static_cast<float>(count); break;
    case NumberType::kFloat64: *static_cast<double*>(data) = static_cast<double>(count); break;
    case NumberType::kInt32: *static_cast<int32_t*>(data) = static_cast<int32_t>(count); break;
    default: *static_cast<int64_t*>(data) = count;
  }
}

// Counts one more where the number lies. At the largest count it stays.
FUSEDOPT_FN void count_on(void* data, NumberType type) {
  const int64_t count = load_count(data, type);
  if (count < largest_count(type)) store_count(data, type, count + 1);
}

}  // namespace fusedopt
