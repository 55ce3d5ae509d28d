#include "core/update_list.h"

#include <algorithm>
#include <tuple>
#include <utility>

namespace fusedopt {

void UpdateList::add(Update update, const Operands& operands) {
  const DType compute = compute_dtype(operands[kParam]->dtype);
  update.in_double = compute == DType::kFloat64;
  update.numel = operands[kParam]->numel;
  update.source = static_cast<uint32_t>(updates_.size());
  update.direct = update.unwritten == 0;
  for (int k = 0; k < kMaxOperands; ++k) {
    if (operands[k] == nullptr) continue;
    update.data[k] = operands[k]->data;
    update.dtypes[k] = operands[k]->dtype;
    update.direct = update.direct && operands[k]->dtype == compute;
  }
  if (!is_one_run(operands)) {
    update.direct = false;
    update.first_dim = static_cast<uint32_t>(dims_.size());
    append_strided_dims(operands, dims_);
    update.dim_count = static_cast<uint32_t>(dims_.size()) - update.first_dim;
  }
  for (int k = 0; k < kMaxOperands; ++k) {
    if (operands[k] != nullptr) (k == kGrad ? grads_ : written_).add(range_of(update, k));
  }
  updates_.push_back(update);
}

MemoryRange UpdateList::range_of(const Update& update, int operand) const {
  const char* const begin = static_cast<const char*>(update.data[operand]);
  if (update.numel == 0) return {begin, begin};
  int64_t last = update.numel - 1;
  if (update.dim_count > 0) {
    last = 0;
    for (const StridedDim& dim : dims(update)) last += (dim.size - 1) * dim.strides[operand];
  }
  return {begin, begin + (last + 1) * static_cast<int64_t>(size_of(update.dtypes[operand]))};
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
  if (touches != touches_ || has_written_grads_ != is_written(kGrad)) {
    touches_ = std::move(touches);
    has_written_grads_ = is_written(kGrad);
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
  return is_written(kGrad) && grads_.find_overlap();
}

std::vector<UpdateList::Touch> UpdateList::touches_by_address() const {
  std::vector<Touch> touches;
  for (uint32_t u = 0; u < updates_.size(); ++u) {
    for (int k = 0; k < kMaxOperands; ++k) {
      if (updates_[u].data[k] == nullptr || updates_[u].numel == 0) continue;
      touches.push_back({range_of(updates_[u], k), u, k});
    }
  }
  std::sort(touches.begin(), touches.end(), [](const Touch& a, const Touch& b) {
    return std::tuple(a.range.begin, a.update, a.operand) <
           std::tuple(b.range.begin, b.update, b.operand);
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
  for (uint32_t u : sharing_) {
    RoundPlan::Access accesses[kMaxOperands];
    size_t count = 0;
    for (int k = 0; k < kMaxOperands; ++k) {
      if (updates_[u].data[k] == nullptr || updates_[u].numel == 0) continue;
      accesses[count++] = {range_of(updates_[u], k), is_written(k)};
    }
    round_of_[u] = plan.earliest(accesses, count);
    plan.record(accesses, count, round_of_[u]);
  }
}

bool UpdateList::is_dense(const Touch& touch) const {
  const Update& update = updates_[touch.update];
  const auto size = static_cast<int64_t>(size_of(update.dtypes[touch.operand]));
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
  for (uint32_t u : sharing_) {
    const Update& update = updates_[u];
    for (int k = 1; k < kMaxOperands; ++k) {
      for (int j = 0; j < k; ++j) {
        if (update.data[k] == nullptr || update.data[j] == nullptr) continue;
        if (share_elements({range_of(update, k), u, k}, {range_of(update, j), u, j})) {
          return Conflict{u, u, k, j};
        }
      }
    }
  }
  if (!is_written(kGrad)) return std::nullopt;
  // Of ranges in order of their begins, some two without gaps intersect if and only if two
  // neighbours do.
  const Touch* last_dense = nullptr;
  const Touch* last = nullptr;
  for (const Touch& touch : touches_) {
    if (touch.operand != kGrad) continue;
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
