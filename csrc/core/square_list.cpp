#include "core/square_list.h"

#include <algorithm>

namespace fusedopt {

void SquareList::clear() {
  tensors_.clear();
  walks_.clear();
  numel_ = blocks_ = 0;
}

void SquareList::add(const TensorView& tensor, bool in_double, uint32_t sum) {
  Squared squared{.data = tensor.data,
                  .numel = tensor.numel,
                  .format = tensor.format,
                  .in_double = in_double,
                  .sum = sum,
                  .first = numel_,
                  .first_block = blocks_};
  const TensorViews alone(&tensor, 1);
  if (tensor.numel > 0 && !is_one_run(alone)) {
    squared.walk = static_cast<uint32_t>(walks_.size());
    squared.dim_count = static_cast<uint8_t>(append_walk(alone, walks_));
  }
  tensors_.push_back(squared);
  numel_ += tensor.numel;
  blocks_ += square_blocks_of(tensor.numel);
}

Walk SquareList::walk(const Squared& tensor) const {
  const size_t count = tensor.dim_count * Walk::numbers_per_dim(1);
  return {std::span(walks_).subspan(tensor.walk, count), 1};
}

int64_t SquareList::cut(int part, int parts) const {
  return numel_ / parts * part + numel_ % parts * part / parts;
}

size_t SquareList::tensor_at(int64_t position) const {
  const auto after =
      std::upper_bound(tensors_.begin(), tensors_.end(), position,
                       [](int64_t value, const Squared& tensor) { return value < tensor.first; });
  return after == tensors_.begin() ? 0 : static_cast<size_t>(after - tensors_.begin() - 1);
}

std::vector<double>& SquareList::block_sums() {
  block_sums_.resize(static_cast<size_t>(blocks_));
  return block_sums_;
}

void SquareList::add_block_sums(std::span<ExactSum> sums) const {
  for (const Squared& tensor : tensors_) {
    const auto first = static_cast<size_t>(tensor.first_block);
    const auto count = static_cast<size_t>(square_blocks_of(tensor.numel));
    for (size_t b = first; b < first + count; ++b) sums[tensor.sum].add(block_sums_[b]);
  }
}

}  // namespace fusedopt
