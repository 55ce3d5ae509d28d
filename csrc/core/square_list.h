// The tensors of one device whose squares are summed: the gradients of a step, or any others.
#pragma once

#include <cstdint>
#include <vector>

#include "core/layout.h"
#include "core/reduction.h"

namespace fusedopt {

struct Squared {
  const void* data = nullptr;
  int64_t numel = 0;
  Format format = Format::kFloat32;
  bool in_double = false;   // a gradient with a scale: the type in which it is divided
  uint8_t dim_count = 0;    // of the walk; 0: one run
  uint32_t walk = 0;        // position of the walk's numbers in the list
  uint32_t sum = 0;         // which of several sums its squares belong to
  int64_t first = 0;        // position of its first element among those of all
  int64_t first_block = 0;  // and of its first block
};

class SquareList {
 public:
  void clear();

  // Adds a tensor of one of torch's dtypes.
  void add(const TensorView& tensor, bool in_double, uint32_t sum);

  const std::vector<Squared>& tensors() const { return tensors_; }
  int64_t numel() const { return numel_; }
  Walk walk(const Squared& tensor) const;
  std::span<const int64_t> all_walks() const { return walks_; }

  // Where part `part` of `parts` equal parts begins. A block belongs to the part that has its first
  // element.
  int64_t cut(int part, int parts) const;
  // The first tensor that may have a block behind a cut.
  size_t tensor_at(int64_t position) const;

  // Room for the sum of each block.
  std::vector<double>& block_sums();

  // Adds the sums of the blocks, each to the sum that its tensor belongs to.
  void add_block_sums(std::span<ExactSum> sums) const;

 private:
  std::vector<Squared> tensors_;
  std::vector<int64_t> walks_;
  int64_t numel_ = 0, blocks_ = 0;
  std::vector<double> block_sums_;
};

}  // namespace fusedopt
