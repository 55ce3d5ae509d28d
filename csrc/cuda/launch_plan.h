// Lays out a list of updates as the table of one launch. Knows no CUDA: the tests use it as it is.
#pragma once

#include <vector>

#include "core/update_list.h"
#include "cuda/table.h"

namespace fusedopt::cuda {

class LaunchPlan {
 public:
  // Takes the updates of one round.
  void build(const UpdateList& list, const Round& round);

  uint32_t blocks() const { return header_.chunk_count; }
  bool counts_steps() const { return header_.counting_blocks > 0; }
  const std::vector<std::byte>& sections() const { return sections_; }

  template <unsigned size>
  bool fits() const {
    return sections_.size() <= Table<size>::kCapacity;
  }

  // The kernel's parameter, at `to`. `overflow` is null if the sections go into the table itself.
  template <unsigned size>
  void write(Table<size>& to, const std::byte* overflow, uint32_t* arrivals) const {
    to.header = header_;
    to.header.overflow = overflow;
    to.header.arrivals = arrivals;
    if (overflow == nullptr) std::copy(sections_.begin(), sections_.end(), to.sections);
  }

 private:
  Entry entry_of(const Update& update) const;
  void append(const void* records, size_t size);

  TableHeader header_;
  std::vector<std::byte> sections_;
};

}  // namespace fusedopt::cuda
