// Lays out a list of updates as the table of one launch. Knows no CUDA: the tests use it as it is.
#pragma once

#include <algorithm>
#include <vector>

#include "core/update_list.h"
#include "cuda/kernels.h"
#include "cuda/table.h"

namespace fusedopt::cuda {

// Whether the operands of some update are not all in one format of torch's.
bool needs_any_formats(const UpdateList& list, const Round& round);

// Where the sections of a table are: in a table of either size, or in memory of their own.
enum class Storage { kSmall, kLarge, kOverflow };

// The table of one launch, by its header and its sections.
template <class Header>
class TablePlan {
 public:
  uint32_t blocks() const { return header_.chunk_count; }
  const std::vector<std::byte>& sections() const { return sections_; }

  Storage storage() const {
    if (sections_.size() <= Table<kSmallTable, Header>::kCapacity) return Storage::kSmall;
    const bool fits = sections_.size() <= Table<kLargeTable, Header>::kCapacity;
    return has_large_ && fits ? Storage::kLarge : Storage::kOverflow;
  }

  // The kernel's parameter, at `to`. `overflow` is null if the sections go into the table itself.
  template <unsigned size>
  void write(Table<size, Header>& to, const std::byte* overflow, uint32_t* arrivals) const {
    to.header = header_;
    to.header.overflow = overflow;
    to.header.arrivals = arrivals;
    if (overflow == nullptr) std::copy(sections_.begin(), sections_.end(), to.sections);
  }

 protected:
  void append(const void* records, size_t size) {
    const auto* const bytes = static_cast<const std::byte*>(records);
    sections_.insert(sections_.end(), bytes, bytes + size);
  }

  Header header_;
  std::vector<std::byte> sections_;
  bool has_large_ = true;  // a kernel for large tables
};

class LaunchPlan : public TablePlan<TableHeader> {
 public:
  // Takes the updates of one round.
  void build(const UpdateList& list, const Round& round);

  bool counts_steps() const { return header_.counting_blocks > 0; }

  // The kernel that takes the table with its sections there.
  KernelKind kernel(Storage storage) const {
    if (has_any_formats_) {
      return computes_in_double_ ? KernelKind::kAnyFormatsInDouble : KernelKind::kAnyFormats;
    }
    return storage == Storage::kLarge ? KernelKind::kLarge : KernelKind::kSmall;
  }

 private:
  void append_entry(const UpdateList& list, const Update& update, uint32_t scalars_at,
                    uint32_t walks_at);
  void append_places(const UpdateList& list, const Update& update, uint32_t scalars_at);

  bool has_any_formats_ = false, computes_in_double_ = false;
};

}  // namespace fusedopt::cuda
