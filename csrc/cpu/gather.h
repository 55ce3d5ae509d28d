// From tensors that are walked with strides to buffers without gaps, and back.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "core/operand.h"
#include "core/walk.h"

namespace fusedopt::cpu {

// Walks the elements of all operands in step, as runs along the innermost dimension.
class ElementWalk {
 public:
  ElementWalk(const Walk& walk, int64_t begin) : walk_(walk), inner_(walk.dims() - 1) {
    std::fill_n(offsets_, walk.operands(), 0);
    for (size_t d = walk.dims(); d-- > 0;) {
      index_[d] = begin % walk.size(d);
      begin /= walk.size(d);
      move(d, index_[d]);
    }
  }

  // Calls visit(offsets, position in the block, length) for runs that make up the next n elements.
  template <class Visit>
  void next(int64_t n, Visit visit) {
    for (int64_t done = 0; done < n;) {
      const int64_t run = std::min(n - done, walk_.size(inner_) - index_[inner_]);
      visit(offsets_, done, run);
      done += run;
      advance(run);
    }
  }

  int64_t inner_stride(size_t operand) const { return walk_.stride(inner_, operand); }

 private:
  void move(size_t dim, int64_t by) {
    for (size_t k = 0; k < walk_.operands(); ++k) offsets_[k] += by * walk_.stride(dim, k);
  }

  void advance(int64_t run) {
    size_t d = inner_;
    index_[d] += run;
    move(d, run);
    for (; d > 0 && index_[d] == walk_.size(d); --d) {
      move(d, -index_[d]);
      index_[d] = 0;
      ++index_[d - 1];
      move(d - 1, 1);
    }
  }

  Walk walk_;
  size_t inner_;
  int64_t index_[kMaxWalkDims];
  int64_t offsets_[kMostOperands];
};

template <class Element>
void copy_run(const std::byte* from, int64_t from_stride, std::byte* to, int64_t to_stride,
              int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    std::memcpy(to + i * to_stride * sizeof(Element), from + i * from_stride * sizeof(Element),
                sizeof(Element));
  }
}

inline void copy_run(size_t element_size, const std::byte* from, int64_t from_stride, std::byte* to,
                     int64_t to_stride, int64_t n) {
  switch (element_size) {
    case 1: return copy_run<uint8_t>(from, from_stride, to, to_stride, n);
    case 2: return copy_run<uint16_t>(from, from_stride, to, to_stride, n);
    case 4: return copy_run<uint32_t>(from, from_stride, to, to_stride, n);
    default: return copy_run<uint64_t>(from, from_stride, to, to_stride, n);
  }
}

}  // namespace fusedopt::cpu
