// Sums of squares, in lanes (core/reduction.h). Included by each instruction set's translation unit
// alone.
#pragma once

#include <algorithm>
#include <type_traits>

#include "core/reduction.h"
#include "cpu/convert.h"
#include "cpu/kernels.h"
#include "cpu/lanes.h"

namespace fusedopt::cpu {
namespace {

// Rows that stay in the first-level cache while they are gone through.
constexpr int64_t kRows = 16;

// The elements of a register of doubles.
template <class Codec>
FUSEDOPT_FN Doubles load_doubles(const typename Codec::Stored* from) {
  using Stored = typename Codec::Stored;
  if constexpr (std::is_floating_point_v<Stored>) {
    return __builtin_convertvector(load_lanes<OfDoubles<Stored>>(from), Doubles);
  } else {
    return decode_to_doubles(Codec{}, from);
  }
}

// Only the square of a double is rounded.
template <class Codec>
FUSEDOPT_FN Doubles add_square(Doubles sum, Doubles x) {
  if constexpr (std::is_same_v<typename Codec::Stored, double>) {
    return sum + x * x;
  } else {
    return add_exact_square(sum, x);
  }
}

// Adds the squares of whole rows to their lanes. As many lanes at a time as registers hold, through
// some rows.
template <class Codec>
FUSEDOPT_FN void add_rows(const typename Codec::Stored* stored, int64_t rows, double* lanes) {
  constexpr int64_t kTogether = 8;
  for (int64_t row = 0; row < rows; row += kRows) {
    const auto* const first = stored + row * kSquareLanes;
    const int64_t count = std::min(kRows, rows - row);
    for (int64_t lane = 0; lane < kSquareLanes; lane += kTogether * kDoubles) {
      Doubles sums[kTogether];
#pragma GCC unroll 8
      for (int64_t k = 0; k < kTogether; ++k) {
        sums[k] = load_lanes<Doubles>(lanes + lane + k * kDoubles);
      }
      for (int64_t r = 0; r < count; ++r) {
#pragma GCC unroll 8
        for (int64_t k = 0; k < kTogether; ++k) {
          const auto* const from = first + r * kSquareLanes + lane + k * kDoubles;
          sums[k] = add_square<Codec>(sums[k], load_doubles<Codec>(from));
        }
      }
#pragma GCC unroll 8
      for (int64_t k = 0; k < kTogether; ++k) {
        store_lanes(sums[k], lanes + lane + k * kDoubles);
      }
    }
  }
}

// The same where elements are decoded first, some rows at a time.
template <class Codec>
FUSEDOPT_FN void add_decoded_rows(const typename Codec::Stored* stored, int64_t rows,
                                  double* lanes) {
  alignas(64) float numbers[kRows * kSquareLanes];
  for (int64_t row = 0; row < rows; row += kRows) {
    const int64_t count = std::min(kRows, rows - row);
    for (int64_t i = 0; i < count * kSquareLanes; i += kLanes) {
      decode_lanes<Codec>(stored + row * kSquareLanes + i, numbers + i);
    }
    add_rows<FloatCodec<float>>(numbers, count, lanes);
  }
}

// Adds the squares of n elements, of which the first is in the first lane.
template <Format format>
void add_squares(const void* elements, int64_t n, double* lanes) {
  using Codec = CodecOf<format>;
  const auto* const stored = static_cast<const typename Codec::Stored*>(elements);
  const int64_t rows = n / kSquareLanes;
  if constexpr (std::is_floating_point_v<typename Codec::Stored> || kDecodesToDoubles) {
    add_rows<Codec>(stored, rows, lanes);
  } else {
    add_decoded_rows<Codec>(stored, rows, lanes);
  }
  for (int64_t i = rows * kSquareLanes; i < n; ++i) {
    const auto x = Codec::template decode<double>(stored[i]);
    lanes[i % kSquareLanes] += x * x;
  }
}

}  // namespace
}  // namespace fusedopt::cpu
