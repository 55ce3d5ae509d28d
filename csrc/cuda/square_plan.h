// Lays out a list of tensors as the table of the launch that measures them.
#pragma once

#include "core/prologue.h"
#include "core/square_list.h"
#include "cuda/launch_plan.h"
#include "cuda/square_table.h"

namespace fusedopt::cuda {

class SquarePlan : public TablePlan<SquareHeader> {
 public:
  // For a sum of each number that tensors belong to; or, with a decision in the prologue, for one,
  // from which the kernel decides.
  void build(const SquareList& list, const Prologue& prologue, const ClipOptions& options);

  // Where the kernel adds them.
  void set_sums(int64_t* sums) { header_.sums = sums; }
};

}  // namespace fusedopt::cuda
