#include "cuda/launch_plan.h"

#include <algorithm>

#include "core/rule_info.h"

namespace fusedopt::cuda {
namespace {

using Operands = std::span<const Operand>;

uint8_t common_format(Operands operands) {
  const Format format = operands[kParam].format;
  const bool is_common = std::all_of(operands.begin(), operands.end(), [&](const Operand& operand) {
    return operand.format == format;
  });
  return is_common ? static_cast<uint8_t>(format) : kMixedFormats;
}

// Elements ahead of the first one that is aligned to a pack in every operand.
uint8_t head_of(Operands operands) {
  const auto misalignment = [](const Operand& operand) {
    return reinterpret_cast<uintptr_t>(operand.data) % kPackBytes;
  };
  const uintptr_t of_param = misalignment(operands[kParam]);
  const bool is_common = std::all_of(operands.begin(), operands.end(), [&](const Operand& operand) {
    return misalignment(operand) == of_param;
  });
  if (!is_common) return kNoAlignedPacks;
  return static_cast<uint8_t>((kPackBytes - of_param) % kPackBytes /
                              size_of(operands[kParam].format));
}

uint32_t packed_formats(Operands operands) {
  uint32_t formats = 0;
  for (size_t k = 0; k < operands.size(); ++k) {
    formats |= static_cast<uint32_t>(operands[k].format) << (kFormatBits * k);
  }
  return formats;
}

uint32_t chunks_of(const Entry& entry) {
  const auto chunk = int64_t{chunk_elements(lanes_of(entry.kind))};
  const int64_t head = entry.kind.head == kNoAlignedPacks ? 0 : entry.kind.head;
  const int64_t beyond_first = std::max<int64_t>(entry.numel - head - chunk, 0);
  // An empty tensor whose step is counted has a block to do that.
  const bool has_first = entry.numel > 0 || entry.step != nullptr;
  return static_cast<uint32_t>(has_first + (beyond_first + chunk - 1) / chunk);
}

// By rule.
constexpr auto kOperandCounts = AllRules::map([]<class Rule>() { return kOperandsOf<Rule>; });
static_assert(*std::max_element(kOperandCounts.begin(), kOperandCounts.end()) * kFormatBits <= 32);

}  // namespace

void LaunchPlan::build(const UpdateList& list, const Round& round) {
  header_ = {};
  has_mixed_formats_ = false;
  header_.grad_scale = list.prologue().grad_scale;
  header_.found_inf = list.prologue().found_inf;
  header_.entry_count = static_cast<uint32_t>(round.count);
  sections_.clear();
  const size_t scalars_at = round.count * entry_size(kOperandCounts[list.rule()]);
  const size_t walks_at = scalars_at + list.all_scalars().size_bytes();
  sections_.reserve(walks_at + list.all_walks().size_bytes());
  for (const Update& update : list.updates_of(round)) {
    append_entry(list, update, static_cast<uint32_t>(scalars_at), static_cast<uint32_t>(walks_at));
  }
  append(list.all_scalars().data(), list.all_scalars().size_bytes());
  append(list.all_walks().data(), list.all_walks().size_bytes());
}

void LaunchPlan::append_entry(const UpdateList& list, const Update& update, uint32_t scalars_at,
                              uint32_t walks_at) {
  const Operands operands = list.operands(update);
  static_assert(kHoldsEveryVariant<decltype(Kind::variant)>);
  Entry entry{
      .step = update.step,
      .numel = update.numel,
      .first_chunk = header_.chunk_count,
      .scalars = scalars_at + update.scalars * static_cast<uint32_t>(sizeof(double)),
      .walk = walks_at + update.walk * static_cast<uint32_t>(sizeof(int64_t)),
      .formats = packed_formats(operands),
      .kind =
          {
              .format = common_format(operands),
              .in_double = update.in_double,
              .variant = static_cast<uint8_t>(update.variant),
              .head = kNoAlignedPacks,
              .dim_count = update.dim_count,
              .step_type = update.step_type,
              .derives = update.derives,
          },
  };
  if (update.dim_count == 0 && entry.kind.format != kMixedFormats) {
    entry.kind.head = head_of(operands);
  }
  append(&entry, sizeof entry);
  for (unsigned k = 0; k < kOperandCounts[list.rule()]; ++k) {
    void* const data = k < operands.size() ? operands[k].data : nullptr;
    append(&data, sizeof data);
  }
  has_mixed_formats_ = has_mixed_formats_ || entry.kind.format == kMixedFormats;
  const uint32_t chunks = chunks_of(entry);
  header_.chunk_count += chunks;
  if (entry.step != nullptr) header_.counting_blocks += chunks;
}

void LaunchPlan::append(const void* records, size_t size) {
  const auto* const bytes = static_cast<const std::byte*>(records);
  sections_.insert(sections_.end(), bytes, bytes + size);
}

}  // namespace fusedopt::cuda
