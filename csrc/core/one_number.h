// The operations of core/codes.h and core/random.h on one number.
#pragma once

#include <bit>
#include <cstdint>
#include <iterator>
#include <utility>

#include "rules/math.h"

namespace fusedopt {

struct OneNumber {
  using Floats = float;
  using Ints = int32_t;

  FUSEDOPT_FN static constexpr float as_floats(int32_t bits) { return std::bit_cast<float>(bits); }
  FUSEDOPT_FN static constexpr int32_t as_ints(float number) {
    return std::bit_cast<int32_t>(number);
  }
  FUSEDOPT_FN static constexpr float to_floats(int32_t number) {
    return static_cast<float>(number);
  }
  FUSEDOPT_FN static constexpr int32_t to_ints(float number) {
    return static_cast<int32_t>(number);
  }

  FUSEDOPT_FN static constexpr float max(float a, float b) { return a > b ? a : b; }
  FUSEDOPT_FN static constexpr float min(float a, float b) { return a < b ? a : b; }
  FUSEDOPT_FN static constexpr int32_t max(int32_t a, int32_t b) { return a > b ? a : b; }
  FUSEDOPT_FN static constexpr float max_magnitude(float a, float b) {
    return max(as_floats(as_ints(a) & 0x7fffffff), b);
  }

  template <const auto& ends, int32_t exponent>
  FUSEDOPT_FN static constexpr float power_of_two(float number) {
    const int32_t count = count_below<ends>(number, std::make_index_sequence<std::size(ends)>{});
    return as_floats((127 + exponent + count) << 23);
  }

  // By selections: an index that differs from lane to lane would take turns in constant memory.
  template <const float (&table)[8]>
  FUSEDOPT_FN static constexpr float look_up(int32_t index) {
    return look_up<table>(index & 7, std::make_index_sequence<std::size(table) - 1>{});
  }

 private:
  template <const auto& ends, size_t... i>
  FUSEDOPT_FN static constexpr int32_t count_below(float number, std::index_sequence<i...>) {
    return ((number > element<ends, i>() ? 1 : 0) + ...);
  }

  template <const float (&table)[8], size_t... i>
  FUSEDOPT_FN static constexpr float look_up(int32_t index, std::index_sequence<i...>) {
    float found = element<table, sizeof...(i)>();
    ((found = index == static_cast<int32_t>(i) ? element<table, i>() : found), ...);
    return found;
  }

  template <const auto& numbers, size_t i>
  FUSEDOPT_FN static constexpr float element() {
    constexpr float number = numbers[i];
    return number;
  }
};

// The product of the lower half of a word with a factor, of 64 bits.
struct MultiplyWord {
  FUSEDOPT_FN uint64_t operator()(uint64_t word, uint32_t factor) const {
#if defined(__CUDA_ARCH__)
    // One instruction, where the compiler would multiply 64 bits with 64.
    uint64_t product;
    asm("mul.wide.u32 %0, %1, %2;" : "=l"(product) : "r"(static_cast<uint32_t>(word)), "r"(factor));
    return product;
#else
    return uint64_t{static_cast<uint32_t>(word)} * factor;
#endif
  }
};

}  // namespace fusedopt
