#include "core/update_list.h"

#include <algorithm>

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
