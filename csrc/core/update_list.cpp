#include "core/update_list.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "rules/shared.h"

namespace fusedopt {

void UpdateList::add(Update update, TensorViews tensors, std::span<const Operand> operands) {
  update.numel = tensors[kParam].numel;
  update.source = static_cast<uint32_t>(updates_.size());
  update.first_operand = static_cast<uint32_t>(operands_.size());
  update.operand_count = static_cast<uint8_t>(operands.size());
  update.is_plain = update.epilogue == Update::kNone;
  for (size_t k = 0; k < operands.size(); ++k) {
    Operand& operand = operands_.emplace_back(operands[k]);
    operand.data = tensors[k].data;
    operand.format = tensors[k].format;
    update.is_plain = update.is_plain && operand.is_read();
    if (k <= kFirstState || operand.format == Format::kRemainder) continue;
    if (operand.format != tensors[kFirstState].format) update.is_plain = false;
  }
  const Format of_param = tensors[kParam].format;
  const bool has_states =
      operands.size() > kFirstState && tensors[kFirstState].format != Format::kRemainder;
  // Without states, which of the kernels for a parameter and a gradient does not matter.
  update.formats = {of_param, tensors[kGrad].format,
                    has_states ? tensors[kFirstState].format : plain_format(of_param)};
  writes_grads_ = writes_grads_ || operands[kGrad].is_written();
  if (!is_one_run(tensors)) {
    update.is_plain = false;
    update.walk = static_cast<uint32_t>(walks_.size());
    update.dim_count = static_cast<uint8_t>(append_walk(tensors, walks_));
  }
  for (size_t k = 0; k < operands.size(); ++k) {
    (k == kGrad ? grads_ : written_).add(range_of(update, k));
    if (operands[k].scales != nullptr) written_.add(range_of_scales(update, k));
  }
  updates_.push_back(update);
}

namespace {

// Of the scalars of a kernel those that all rules share come first.
template <class T>
void clip_scalars(void* scalars, double factor) {
  SharedScalars<T> shared;
  std::memcpy(&shared, scalars, sizeof shared);
  fusedopt::clip(shared, static_cast<T>(factor));
  std::memcpy(scalars, &shared, sizeof shared);
}

}  // namespace

// Updates that have the same scalars set them to the same once more.
void UpdateList::clip(double factor) {
  for (const Update& update : updates_) {
    void* const scalars = &scalars_[update.scalars];
    update.in_double ? clip_scalars<double>(scalars, factor) : clip_scalars<float>(scalars, factor);
  }
}

MemoryRange UpdateList::range_of_scales(const Update& update, size_t k) const {
  const float* const begin = operands(update)[k].scales;
  const float* const end = begin + scales_of(update.numel);
  return {reinterpret_cast<const char*>(begin), reinterpret_cast<const char*>(end)};
}

MemoryRange UpdateList::range_of(const Update& update, size_t k) const {
  const Operand& operand = operands(update)[k];
  const char* const begin = static_cast<const char*>(operand.data);
  if (update.numel == 0) return {begin, begin};
  int64_t last = update.numel - 1;
  if (update.dim_count > 0) {
    last = 0;
    const Walk dims = walk(update);
    for (size_t d = 0; d < dims.dims(); ++d) last += (dims.size(d) - 1) * dims.stride(d, k);
  }
  return {begin, begin + (last + 1) * static_cast<int64_t>(size_of(operand.format))};
}

std::optional<Conflict> UpdateList::arrange() {
  rounds_.clear();
  if (!shares_memory()) {
    sharing_.clear();
    touches_.clear();
    begin_round(0, updates_.size());
    return std::nullopt;
  }
  std::vector<Touch> touches = touches_by_address();
  if (touches != touches_) {
    touches_ = std::move(touches);
    find_sharing();
    assign_rounds();
  }
  const std::optional<Conflict> conflict = find_conflict();
  if (!conflict) sort_into_rounds();
  return conflict;
}

bool UpdateList::shares_memory() {
  if (written_.find_overlap()) return true;
  grad_hints_.resize(grads_.size());
  for (uint32_t g = 0; g < grads_.size(); ++g) {
    if (written_.intersects(grads_[g], grad_hints_[g])) return true;
  }
  return writes_grads_ && grads_.find_overlap();
}

void UpdateList::append_touches(uint32_t update, std::vector<Touch>& touches) const {
  const Update& of = updates_[update];
  const auto all = operands(of);
  for (uint32_t k = 0; k < all.size(); ++k) {
    touches.push_back({range_of(of, k), update, k, all[k].is_written()});
    if (all[k].scales != nullptr)
      touches.push_back({range_of_scales(of, k), update, k, true, true});
  }
}

std::vector<UpdateList::Touch> UpdateList::touches_by_address() const {
  std::vector<Touch> touches;
  for (uint32_t u = 0; u < updates_.size(); ++u) {
    if (updates_[u].numel > 0) append_touches(u, touches);
  }
  std::sort(touches.begin(), touches.end(), [](const Touch& a, const Touch& b) {
    return std::tuple(a.range.begin, a.update, a.operand, a.is_scales) <
           std::tuple(b.range.begin, b.update, b.operand, b.is_scales);
  });
  return touches;
}

// Those in a cluster: touches one after the other, each of which begins before some earlier one
// ends.
void UpdateList::find_sharing() {
  std::vector<bool> is_sharing(updates_.size());
  for (size_t first = 0, last; first < touches_.size(); first = last) {
    const char* end = touches_[first].range.end;
    for (last = first + 1; last < touches_.size() && touches_[last].range.begin < end; ++last) {
      end = std::max(end, touches_[last].range.end);
      is_sharing[touches_[first].update] = is_sharing[touches_[last].update] = true;
    }
  }
  sharing_.clear();
  for (uint32_t u = 0; u < updates_.size(); ++u) {
    if (is_sharing[u]) sharing_.push_back(u);
  }
}

void UpdateList::assign_rounds() {
  RoundPlan plan;
  round_of_.assign(updates_.size(), 0);
  std::vector<Touch> touches;
  std::vector<RoundPlan::Access> accesses;
  for (uint32_t u : sharing_) {
    touches.clear();
    accesses.clear();
    append_touches(u, touches);
    for (const Touch& touch : touches) accesses.push_back({touch.range, touch.writes});
    round_of_[u] = plan.earliest(accesses.data(), accesses.size());
    plan.record(accesses.data(), accesses.size(), round_of_[u]);
  }
}

bool UpdateList::is_dense(const Touch& touch) const {
  if (touch.is_scales) return true;
  const Update& update = updates_[touch.update];
  const auto size = static_cast<int64_t>(size_of(operands(update)[touch.operand].format));
  return touch.range.end - touch.range.begin == update.numel * size;
}

// Strided operands may lie between each other's elements; only where both have no gaps, or begin at
// the same element, do they share one for certain.
bool UpdateList::share_elements(const Touch& a, const Touch& b) const {
  return a.range.intersects(b.range) &&
         (a.range.begin == b.range.begin || (is_dense(a) && is_dense(b)));
}

// Of two updates only gradients matter, which a scale would divide twice; everything else a loop
// over the updates would do, too.
std::optional<Conflict> UpdateList::find_conflict() const {
  std::vector<Touch> touches;
  for (uint32_t u : sharing_) {
    const auto all = operands(updates_[u]);
    touches.clear();
    append_touches(u, touches);
    for (size_t k = 1; k < touches.size(); ++k) {
      for (size_t j = 0; j < k; ++j) {
        if (!share_elements(touches[k], touches[j])) continue;
        return Conflict{u, u, all[touches[k].operand].role, all[touches[j].operand].role};
      }
    }
  }
  // Of ranges in order of their begins, some two without gaps intersect if and only if two
  // neighbours do.
  const Touch* last_dense = nullptr;
  const Touch* last = nullptr;
  for (const Touch& touch : touches_) {
    if (touch.operand != kGrad || !touch.writes) continue;
    for (const Touch* earlier : {last, last_dense}) {
      if (earlier == nullptr || !share_elements(*earlier, touch)) continue;
      const auto [first, second] = std::minmax(earlier->update, touch.update);
      return Conflict{second, first, kGrad, kGrad};
    }
    last = &touch;
    if (is_dense(touch)) last_dense = &touch;
  }
  return std::nullopt;
}

void UpdateList::sort_into_rounds() {
  const auto round = [&](const Update& update) { return round_of_[update.source]; };
  std::stable_sort(updates_.begin(), updates_.end(),
                   [&](const Update& a, const Update& b) { return round(a) < round(b); });
  for (size_t first = 0, last; first < updates_.size(); first = last) {
    for (last = first + 1; last < updates_.size(); ++last) {
      if (round(updates_[last]) != round(updates_[first])) break;
    }
    begin_round(first, last - first);
  }
}

void UpdateList::begin_round(size_t first, size_t count) {
  Round round{first, count, 0};
  for (Update& update : std::span(updates_).subspan(first, count)) {
    update.first = round.numel;
    round.numel += update.numel;
  }
  rounds_.push_back(round);
}

Cut UpdateList::cut(const Round& round, int64_t part, int64_t parts) const {
  const auto begin = updates_.begin() + static_cast<std::ptrdiff_t>(round.first);
  const auto end = begin + static_cast<std::ptrdiff_t>(round.count);
  if (part >= parts) return {round.first + round.count, 0};
  // Not numel * part / parts, which could overflow.
  const int64_t position = round.numel / parts * part + round.numel % parts * part / parts;
  const auto after = std::upper_bound(
      begin, end, position, [](int64_t value, const Update& u) { return value < u.first; });
  if (after == begin) return {round.first, 0};
  const auto update = after - 1;
  const int64_t element = (position - update->first) / kCutAlignment * kCutAlignment;
  return {static_cast<size_t>(update - updates_.begin()), std::min(element, update->numel)};
}

}  // namespace fusedopt
