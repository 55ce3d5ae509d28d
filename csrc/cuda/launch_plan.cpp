#include "cuda/launch_plan.h"

#include <algorithm>

#include "core/rule_info.h"

namespace fusedopt::cuda {
namespace {

// Elements ahead of the first one that is aligned to a pack in every operand.
uint8_t head_of(const Update& update) {
  if (update.dim_count > 0) return kNoAlignedPacks;
  const auto misalignment = [](const void* data) {
    return reinterpret_cast<uintptr_t>(data) % kPackBytes;
  };
  const uintptr_t of_param = misalignment(update.data[kParam]);
  for (const void* data : update.data) {
    if (data != nullptr && misalignment(data) != of_param) return kNoAlignedPacks;
  }
  return static_cast<uint8_t>((kPackBytes - of_param) % kPackBytes /
                              size_of(update.dtypes[kParam]));
}

uint32_t chunks_of(const Entry& entry) {
  const auto chunk = static_cast<int64_t>(kChunkBytes / size_of(entry.kind.dtype));
  const int64_t head = entry.kind.head == kNoAlignedPacks ? 0 : entry.kind.head;
  const int64_t beyond_first = std::max<int64_t>(entry.numel - head - chunk, 0);
  // An empty tensor whose step is counted has a block to do that.
  const bool has_first = entry.numel > 0 || entry.step != nullptr;
  return static_cast<uint32_t>(has_first + (beyond_first + chunk - 1) / chunk);
}

}  // namespace

void LaunchPlan::build(const UpdateList& list, const Round& round) {
  header_ = {};
  header_.grad_scale = list.amp().grad_scale;
  header_.found_inf = list.amp().found_inf;
  header_.entry_count = static_cast<uint32_t>(round.count);
  sections_.clear();
  const size_t scalars_at = round.count * sizeof(Entry);
  const size_t dims_at = scalars_at + list.all_scalars().size_bytes();
  sections_.reserve(dims_at + list.all_dims().size_bytes());
  for (const Update& update : list.updates_of(round)) {
    Entry entry = entry_of(update);
    entry.first_chunk = header_.chunk_count;
    entry.scalars = static_cast<uint32_t>(scalars_at + update.scalars * sizeof(double));
    entry.dims = static_cast<uint32_t>(dims_at + update.first_dim * sizeof(StridedDim));
    append(&entry, sizeof entry);
    const uint32_t chunks = chunks_of(entry);
    header_.chunk_count += chunks;
    if (entry.step != nullptr) header_.counting_blocks += chunks;
  }
  append(list.all_scalars().data(), list.all_scalars().size_bytes());
  append(list.all_dims().data(), list.all_dims().size_bytes());
}

Entry LaunchPlan::entry_of(const Update& update) const {
  Entry entry{};
  std::copy(update.data.begin(), update.data.end(), entry.data);
  entry.step = update.step;
  entry.numel = update.numel;
  static_assert(kHoldsEveryVariant<decltype(Kind::variant)>);
  entry.kind = {
      .dtype = update.dtypes[kParam],
      .variant = static_cast<uint8_t>(update.variant),
      .head = head_of(update),
      .dim_count = static_cast<uint8_t>(update.dim_count),
      .step_type = update.step_type,
      .derives = update.derives,
  };
  return entry;
}

void LaunchPlan::append(const void* records, size_t size) {
  const auto* const bytes = static_cast<const std::byte*>(records);
  sections_.insert(sections_.end(), bytes, bytes + size);
}

}  // namespace fusedopt::cuda
