#include "cuda/square_plan.h"

#include <algorithm>

namespace fusedopt::cuda {

void SquarePlan::build(const SquareList& list, const Prologue& prologue,
                       const ClipOptions& options) {
  header_ = {};
  header_.entry_count = static_cast<uint32_t>(list.tensors().size());
  header_.grad_scale = prologue.grad_scale;
  header_.found_inf = prologue.found_inf;
  header_.decision = prologue.decision;
  header_.options = options;
  const size_t walks_at = list.tensors().size() * sizeof(SquareEntry);
  sections_.clear();
  sections_.reserve(walks_at + list.all_walks().size_bytes());
  for (const Squared& tensor : list.tensors()) {
    const SquareEntry entry{
        .data = static_cast<const std::byte*>(tensor.data),
        .numel = tensor.numel,
        .first_chunk = header_.chunk_count,
        .walk = static_cast<uint32_t>(walks_at + tensor.walk * sizeof(int64_t)),
        .sum = tensor.sum,
        .format = static_cast<uint8_t>(tensor.format),
        .in_double = tensor.in_double,
        .dim_count = tensor.dim_count,
    };
    append(&entry, sizeof entry);
    // An empty tensor has a block as well: somebody has to decide.
    header_.chunk_count +=
        static_cast<uint32_t>(std::max<int64_t>(square_blocks_of(tensor.numel), 1));
  }
  append(list.all_walks().data(), list.all_walks().size_bytes());
}

}  // namespace fusedopt::cuda
