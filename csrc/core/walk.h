// The dimensions of a walk over all operands of an update at once, outermost first.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace fusedopt {

// A walk has at most this many dimensions: each has two elements or more.
constexpr size_t kMaxWalkDims = 62;

// As numbers one after the other: of every dimension its size, then the stride of each operand, in
// elements. A contiguous run has stride 1.
class Walk {
 public:
  Walk(std::span<const int64_t> numbers, size_t operands)
      : numbers_(numbers), width_(numbers_per_dim(operands)) {}

  static constexpr size_t numbers_per_dim(size_t operands) { return 1 + operands; }

  size_t dims() const { return numbers_.size() / width_; }
  size_t operands() const { return width_ - 1; }
  int64_t size(size_t dim) const { return numbers_[dim * width_]; }
  int64_t stride(size_t dim, size_t operand) const { return numbers_[dim * width_ + 1 + operand]; }

 private:
  std::span<const int64_t> numbers_;
  size_t width_;
};

}  // namespace fusedopt
