// Lays out a list of updates as the table of one launch. Knows no CUDA: the tests use it as it is.
#pragma once

#include <vector>

#include "core/update_list.h"
#include "cuda/kernels.h"
#include "cuda/table.h"

namespace fusedopt::cuda {

// Whether the operands of some update are not all in one format of torch's.
bool needs_any_formats(const UpdateList& list, const Round& round);

class LaunchPlan {
 public:
  // Takes the updates of one round.
  void build(const UpdateList& list, const Round& round);

  uint32_t blocks() const { return header_.chunk_count; }
  bool counts_steps() const { return header_.counting_blocks > 0; }
  const std::vector<std::byte>& sections() const { return sections_; }

  // Where the sections are: in a table of either size, or in memory of their own.
  enum class Storage { kSmall, kLarge, kOverflow };
  Storage storage() const {
    if (sections_.size() <= Table<kSmallTable>::kCapacity) return Storage::kSmall;
    const bool has_large = !has_any_formats_ && sections_.size() <= Table<kLargeTable>::kCapacity;
    return has_large ? Storage::kLarge : Storage::kOverflow;
  }

  // The kernel that takes the table with its sections there.
  KernelKind kernel(Storage storage) const {
    if (has_any_formats_) {
      return computes_in_double_ ? KernelKind::kAnyFormatsInDouble : KernelKind::kAnyFormats;
    }
    return storage == Storage::kLarge ? KernelKind::kLarge : KernelKind::kSmall;
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
  void append_entry(const UpdateList& list, const Update& update, uint32_t scalars_at,
                    uint32_t walks_at);
  void append_places(const UpdateList& list, const Update& update, uint32_t scalars_at);
  void append(const void* records, size_t size);

  TableHeader header_;
  bool has_any_formats_ = false, computes_in_double_ = false;
  std::vector<std::byte> sections_;
};

}  // namespace fusedopt::cuda
