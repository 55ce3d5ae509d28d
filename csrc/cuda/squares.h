// The work of one block of the measuring pass: the sum of squares of one block of a tensor
// (core/reduction.h), a thread for each lane. The block that is the last to have added its sum
// decides. It compiles for the host as well.
#pragma once

#include <cstddef>

#include "core/codec.h"
#include "core/walk.h"
#include "cuda/atomics.h"
#include "cuda/square_table.h"
#include "rules/element.h"

namespace fusedopt::cuda {

struct SharedSquares {
  double lanes[kSquareLanes];
  bool is_finite[kSquareLanes];  // all numbers of a lane
  bool is_last;                  // of the blocks
  ExactSum total;
};

template <unsigned size>
class SquareBlock {
 public:
  using TableOf = SquareTable<size>;

  // There are as many blocks as chunks.
  FUSEDOPT_FN SquareBlock(const TableOf& table, uint32_t index)
      : table_(table),
        entry_(read<SquareEntry>(table, find_entry(table, sizeof(SquareEntry),
                                                   offsetof(SquareEntry, first_chunk), index))),
        begin_((index - entry_.first_chunk) * kSquareBlock) {}

  // What follows are the parts of every thread, for which all wait before the next: first the lane.
  FUSEDOPT_FN void sum_lane(unsigned lane, SharedSquares& shared) const {
    with_codec(static_cast<Format>(entry_.format), [&]<class Codec>() {
      const float* const grad_scale = table_.header.grad_scale;
      if (grad_scale == nullptr) {
        sum_lane(AsStored<Codec>{}, lane, shared);
      } else if (entry_.in_double) {
        sum_lane(Divided<Codec, double>{*grad_scale}, lane, shared);
      } else {
        sum_lane(Divided<Codec, float>{*grad_scale}, lane, shared);
      }
    });
  }

  // Then halves of the lanes, from the upper 32 on, as sum_of_lanes() has it.
  FUSEDOPT_FN static void add_half(unsigned thread, unsigned half, SharedSquares& shared) {
    if (thread >= half) return;
    shared.lanes[thread] += shared.lanes[half + thread];
    shared.is_finite[thread] = shared.is_finite[thread] && shared.is_finite[half + thread];
  }

  FUSEDOPT_FN void add_block(unsigned thread, SharedSquares& shared) const {
    if (thread != 0) return;
    const SquareHeader& header = table_.header;
    double sum = shared.lanes[0];
    if (sum == HUGE_VAL && shared.is_finite[0]) sum = kOverflow;
    int64_t* const numbers = in_global_memory(header.sums) + entry_.sum * ExactSum::kNumbers;
    ExactSum::split(sum, [&](int position, int64_t number) {
      if (number != 0) add_atomically(numbers + position, number);
    });
    shared.is_last =
        header.decision != nullptr && arrive(header.arrivals) + 1 == header.chunk_count;
  }

  // The rest is for the last block.
  FUSEDOPT_FN void take_total(unsigned thread, SharedSquares& shared) const {
    int64_t* const numbers = in_global_memory(table_.header.sums);
    for (unsigned n = thread; n < ExactSum::kNumbers; n += kSquareThreads) {
      shared.total.numbers()[n] = numbers[n];
      numbers[n] = 0;
    }
  }

  FUSEDOPT_FN void decide(unsigned thread, SharedSquares& shared) const {
    if (thread != 0) return;
    const SquareHeader& header = table_.header;
    const bool is_found = header.found_inf != nullptr && *header.found_inf != 0;
    shared.total.carry();
    *in_global_memory(header.decision) = fusedopt::decide(shared.total, header.options, is_found);
    *in_global_memory(header.arrivals) = 0;
  }

 private:
  // Elements as numbers that the rule gets, ahead of clipping.
  template <class Codec>
  struct AsStored {
    using Stored = typename Codec::Stored;
    // How many a thread reads before it waits for the first: few threads have much under way.
    static constexpr unsigned kReadsAhead = 16;

    FUSEDOPT_FN double number(Stored stored) const {
      return Codec::template decode<double>(stored);
    }
  };
  template <class Codec, class T>
  struct Divided {
    using Stored = typename Codec::Stored;
    static constexpr unsigned kReadsAhead = 4;

    float grad_scale;

    FUSEDOPT_FN double number(Stored stored) const {
      return unscale(Codec::template decode<T>(stored), static_cast<T>(grad_scale));
    }
  };

  template <class Numbers>
  FUSEDOPT_FN void sum_lane(const Numbers& numbers, unsigned lane, SharedSquares& shared) const {
    constexpr unsigned ahead = Numbers::kReadsAhead;
    const unsigned rows = rows_of(lane);
    double sum = 0;
    unsigned row = 0;
#pragma unroll 1
    for (; entry_.dim_count == 0 && row + ahead <= rows; row += ahead) {
      typename Numbers::Stored loaded[ahead];
#pragma unroll
      for (unsigned r = 0; r < ahead; ++r) loaded[r] = load<Numbers>(index_of(lane, row + r));
#pragma unroll
      for (unsigned r = 0; r < ahead; ++r) {
        const double number = numbers.number(loaded[r]);
        sum += number * number;
      }
    }
#pragma unroll 1
    for (; row < rows; ++row) {
      const double number = numbers.number(load<Numbers>(offset_of(index_of(lane, row))));
      sum += number * number;
    }
    shared.lanes[lane] = sum;
    shared.is_finite[lane] =
        is_finite(sum) || (entry_.in_double && are_finite(numbers, lane, rows));
  }

  // Asked of doubles, whose squares overflow.
  template <class Numbers>
  FUSEDOPT_FN bool are_finite(const Numbers& numbers, unsigned lane, unsigned rows) const {
#pragma unroll 1
    for (unsigned row = 0; row < rows; ++row) {
      if (!is_finite(numbers.number(load<Numbers>(offset_of(index_of(lane, row)))))) return false;
    }
    return true;
  }

  FUSEDOPT_FN static bool is_finite(double number) {
    return number < HUGE_VAL && number > -HUGE_VAL;
  }

  FUSEDOPT_FN unsigned rows_of(unsigned lane) const {
    constexpr int64_t most = kSquareBlock / kSquareLanes;
    const int64_t left = entry_.numel - begin_ - lane;
    const int64_t rows = left > 0 ? (left - 1) / kSquareLanes + 1 : 0;
    return static_cast<unsigned>(rows < most ? rows : most);
  }

  template <class Numbers>
  FUSEDOPT_FN typename Numbers::Stored load(int64_t element) const {
    using Stored = typename Numbers::Stored;
    return in_global_memory(reinterpret_cast<const Stored*>(entry_.data))[element];
  }

  FUSEDOPT_FN int64_t index_of(unsigned lane, unsigned row) const {
    return begin_ + lane + row * kSquareLanes;
  }

  // Of an element, by its index, from the first.
  FUSEDOPT_FN int64_t offset_of(int64_t index) const {
    if (entry_.dim_count == 0) return index;
    constexpr auto number = static_cast<uint32_t>(sizeof(int64_t));
    constexpr uint32_t dim_size = number * static_cast<uint32_t>(Walk::numbers_per_dim(1));
    int64_t offset = 0;
#pragma unroll 1
    for (unsigned d = entry_.dim_count; d-- > 0;) {
      const uint32_t dim = entry_.walk + d * dim_size;
      const int64_t size_of_dim = read<int64_t>(table_, dim);
      offset += index % size_of_dim * read<int64_t>(table_, dim + number);
      index /= size_of_dim;
    }
    return offset;
  }

  const TableOf& table_;
  SquareEntry entry_;
  int64_t begin_;  // the block's first element
};

}  // namespace fusedopt::cuda
