#include "core/update_list.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace fusedopt {

void UpdateList::add(Update update, const Operands& operands) {
  const DType compute = compute_dtype(operands[kParam]->dtype);
  update.in_double = compute == DType::kFloat64;
  update.numel = operands[kParam]->numel;
  update.first = numel_;
  update.direct = true;
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
  numel_ += update.numel;
  updates_.push_back(update);
}

namespace {

struct AddressRange {
  const char* begin;
  const char* end;
};

AddressRange param_range(const Update& update, std::span<const StridedDim> dims) {
  int64_t last = update.numel - 1;
  if (!dims.empty()) {
    last = 0;
    for (const StridedDim& dim : dims) last += (dim.size - 1) * dim.strides[kParam];
  }
  const auto size = static_cast<int64_t>(size_of(update.dtypes[kParam]));
  const char* const begin = static_cast<const char*>(update.data[kParam]);
  return {begin, begin + (last + 1) * size};
}

}  // namespace

bool UpdateList::may_overlap() {
  const auto range = [&](uint32_t u) { return param_range(updates_[u], dims(updates_[u])); };
  const auto in_order = [&] {
    return std::adjacent_find(by_address_.begin(), by_address_.end(), [&](uint32_t a, uint32_t b) {
             return range(a).end > range(b).begin;
           }) == by_address_.end();
  };
  if (by_address_.size() != updates_.size()) {
    by_address_.resize(updates_.size());
    std::iota(by_address_.begin(), by_address_.end(), 0u);
  }
  if (in_order()) return false;
  std::sort(by_address_.begin(), by_address_.end(), [&](uint32_t a, uint32_t b) {
    return std::pair(range(a).begin, range(a).end) < std::pair(range(b).begin, range(b).end);
  });
  return !in_order();
}

Cut UpdateList::cut(int64_t part, int64_t parts) const {
  if (part >= parts) return {updates_.size(), 0};
  // Not numel * part / parts, which could overflow.
  const int64_t position = numel_ / parts * part + numel_ % parts * part / parts;
  const auto after =
      std::upper_bound(updates_.begin(), updates_.end(), position,
                       [](int64_t value, const Update& update) { return value < update.first; });
  if (after == updates_.begin()) return {};
  const auto update = after - 1;
  const int64_t element = (position - update->first) / kCutAlignment * kCutAlignment;
  return {static_cast<size_t>(update - updates_.begin()), std::min(element, update->numel)};
}

}  // namespace fusedopt
