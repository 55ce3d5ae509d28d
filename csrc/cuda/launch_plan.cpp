#include "cuda/launch_plan.h"

#include <algorithm>

#include "core/rule_info.h"

namespace fusedopt::cuda {
namespace {

using Operands = std::span<const Operand>;

// Whether all are in one format of torch's, which the kernels for those know.
bool is_usual(Operands operands) {
  const Format format = operands[kParam].format;
  return plain_format(format) == format &&
         std::all_of(operands.begin(), operands.end(),
                     [&](const Operand& operand) { return operand.format == format; });
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

// Where the operands of an update are in a table for any formats.
class Places {
 public:
  Places(const UpdateList& list, const Update& update, const ExtraPlaces& extra)
      : operands_(list.operands(update)), epilogue_(list.epilogue(update)), extra_(extra) {}

  unsigned operator[](size_t k) const {
    if (operands_[k].format == Format::kRemainder) return extra_.remainder;
    const bool is_average = epilogue_ != nullptr && k != kParam && epilogue_->average == k;
    return is_average ? extra_.average : operands_[k].role;
  }

  uint32_t formats() const {
    uint32_t formats = ~0u;
    for (size_t k = 0; k < operands_.size(); ++k) {
      const Format format = operands_[k].format;
      if (format == Format::kRemainder) continue;  // the parameter's format says it
      const unsigned shift = kFormatBits * (*this)[k];
      formats ^= (static_cast<uint32_t>(kNoFormat) ^ static_cast<uint32_t>(format)) << shift;
    }
    return formats;
  }

 private:
  Operands operands_;
  const Epilogue* epilogue_;
  ExtraPlaces extra_;
};

// What a block updates.
uint32_t chunk_of(const Kind& kind, bool has_any_formats) {
  const auto size = static_cast<unsigned>(size_of(static_cast<Format>(kind.format)));
  return chunk_elements(has_any_formats ? kLaneElements : kPackBytes / size);
}

uint32_t chunks_of(const Entry& entry, bool counts, int64_t chunk) {
  const int64_t head = entry.kind.head == kNoAlignedPacks ? 0 : entry.kind.head;
  const int64_t beyond_first = std::max<int64_t>(entry.numel - head - chunk, 0);
  // An empty tensor for which the device counts has a block to do that.
  const bool has_first = entry.numel > 0 || counts;
  return static_cast<uint32_t>(has_first + (beyond_first + chunk - 1) / chunk);
}

// By rule.
constexpr auto kOperandCounts = AllRules::map([]<class Rule>() { return kOperandsOf<Rule>; });
constexpr unsigned kMostOfARule = *std::max_element(kOperandCounts.begin(), kOperandCounts.end());
static_assert((ExtraPlaces(kMostOfARule).average + 1) * kFormatBits <= 32);
constexpr unsigned kMostPlaces = ExtraPlaces(kMostOfARule).count;
static_assert(sizeof(void*) == sizeof(uint64_t));

}  // namespace

bool needs_any_formats(const UpdateList& list, const Round& round) {
  const auto updates = list.updates_of(round);
  return std::any_of(updates.begin(), updates.end(), [&](const Update& update) {
    return update.epilogue != Update::kNone || !is_usual(list.operands(update));
  });
}

void LaunchPlan::build(const UpdateList& list, const Round& round) {
  header_ = {};
  has_any_formats_ = needs_any_formats(list, round);
  has_large_ = !has_any_formats_;
  computes_in_double_ = false;
  header_.grad_scale = list.prologue().grad_scale;
  header_.found_inf = list.prologue().found_inf;
  header_.decision = list.prologue().decision;
  header_.entry_count = static_cast<uint32_t>(round.count);
  sections_.clear();
  const size_t scalars_at = round.count * entry_size(kOperandCounts[list.rule()], has_any_formats_);
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
  const ExtraPlaces extra(kOperandCounts[list.rule()]);
  static_assert(kHoldsEveryVariant<decltype(Kind::variant)>);
  Entry entry{
      .step = update.step,
      .numel = update.numel,
      .first_chunk = header_.chunk_count,
      .scalars = scalars_at + update.scalars * static_cast<uint32_t>(sizeof(double)),
      .walk = walks_at + update.walk * static_cast<uint32_t>(sizeof(int64_t)),
      .formats = has_any_formats_ ? Places(list, update, extra).formats() : 0,
      .kind =
          {
              .format = static_cast<uint8_t>(operands[kParam].format),
              .in_double = update.in_double,
              .variant = static_cast<uint8_t>(update.variant),
              .head = kNoAlignedPacks,
              .dim_count = update.dim_count,
              .step_type = update.step_type,
              .averaged_type = update.averaged_type,
              .derives = update.derives,
          },
  };
  if (update.dim_count == 0 && !has_any_formats_) entry.kind.head = head_of(operands);
  append(&entry, sizeof entry);
  append_places(list, update, scalars_at);
  computes_in_double_ = computes_in_double_ || update.in_double;
  const uint32_t chunk = chunk_of(entry.kind, has_any_formats_);
  const uint32_t chunks = chunks_of(entry, update.counts(), chunk);
  header_.chunk_count += chunks;
  if (update.counts()) header_.counting_blocks += chunks;
}

// What comes behind an entry.
void LaunchPlan::append_places(const UpdateList& list, const Update& update, uint32_t scalars_at) {
  const Operands operands = list.operands(update);
  const unsigned operand_count = kOperandCounts[list.rule()];
  const ExtraPlaces extra(operand_count);
  uint64_t places[kMostPlaces] = {};
  const auto set = [&](size_t place, const void* address) {
    places[place] = reinterpret_cast<uintptr_t>(address);
  };
  if (!has_any_formats_) {
    for (size_t k = 0; k < operands.size(); ++k) set(k, operands[k].data);
    return append(places, operand_count * sizeof *places);
  }
  const Places place_of(list, update, extra);
  for (size_t k = 0; k < operands.size(); ++k) {
    const Operand& operand = operands[k];
    set(place_of[k], operand.data);
    if (is_scaled(operand.format)) set(extra.scales + operand.role - kFirstState, operand.scales);
  }
  const auto set_offset = [&](size_t place, uint32_t position) {
    if (position != Update::kNone) places[place] = scalars_at + position * sizeof(double);
  };
  set_offset(extra.draws, update.draws);
  set_offset(extra.epilogue, update.epilogue);
  set(extra.averaged, update.averaged);
  append(places, extra.count * sizeof *places);
}

}  // namespace fusedopt::cuda
