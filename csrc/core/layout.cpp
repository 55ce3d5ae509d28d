#include "core/layout.h"

#include <algorithm>
#include <string>

#include "core/refusal.h"

namespace fusedopt {
namespace {

bool is_contiguous(const TensorView& tensor) {
  int64_t expected = 1;
  for (int d = tensor.ndim - 1; d >= 0; --d) {
    if (tensor.sizes[d] == 1) continue;
    if (tensor.strides[d] != expected) return false;
    expected *= tensor.sizes[d];
  }
  return true;
}

bool same_sizes(const TensorView& a, const TensorView& b) {
  return a.ndim == b.ndim && std::equal(a.sizes, a.sizes + a.ndim, b.sizes);
}

std::string shape_of(const TensorView& tensor) {
  std::string text = "(";
  for (int d = 0; d < tensor.ndim; ++d) {
    text += (d > 0 ? ", " : "") + std::to_string(tensor.sizes[d]);
  }
  return text + (tensor.ndim == 1 ? ",)" : ")");
}

// The dimensions that matter (size over 1), outermost first.
std::vector<int> dims_by_stride(const TensorView& tensor) {
  std::vector<int> order;
  for (int d = 0; d < tensor.ndim; ++d) {
    if (tensor.sizes[d] > 1) order.push_back(d);
  }
  std::stable_sort(order.begin(), order.end(),
                   [&](int a, int b) { return tensor.strides[a] > tensor.strides[b]; });
  return order;
}

// Some permutation of its dimensions is contiguous.
bool is_dense(const TensorView& tensor) {
  if (is_contiguous(tensor)) return true;
  const std::vector<int> order = dims_by_stride(tensor);
  int64_t expected = 1;
  for (auto d = order.rbegin(); d != order.rend(); ++d) {
    if (tensor.strides[*d] != expected) return false;
    expected *= tensor.sizes[*d];
  }
  return true;
}

bool same_strides(const TensorView& a, const TensorView& b) {
  for (int d = 0; d < a.ndim; ++d) {
    if (a.sizes[d] > 1 && a.strides[d] != b.strides[d]) return false;
  }
  return true;
}

// Merges `inner` into `outer` if every operand can walk both with one stride.
bool try_merge(StridedDim& outer, const StridedDim& inner) {
  for (int k = 0; k < kMaxOperands; ++k) {
    if (outer.strides[k] != inner.strides[k] * inner.size) return false;
  }
  outer.size *= inner.size;
  outer.strides = inner.strides;
  return true;
}

}  // namespace

void validate(const Operands& operands, const OperandNames& names) {
  const TensorView& param = *operands[kParam];
  const auto refuse = [](const char* name, const std::string& why) {
    throw Refusal(Refusal::kRuntime, name + (" " + why));
  };
  for (int k = 0; k < kMaxOperands; ++k) {
    if (operands[k] == nullptr) continue;
    const TensorView& operand = *operands[k];
    if (operand.device != param.device) refuse(names[k], "is on another device than the parameter");
    if (operand.dtype != param.dtype) {
      refuse(names[k], std::string("has dtype ") + name_of(operand.dtype) + ", the parameter has " +
                           name_of(param.dtype));
    }
    if (!same_sizes(operand, param)) {
      refuse(names[k], "has shape " + shape_of(operand) + ", the parameter has " + shape_of(param));
    }
    if (k != kGrad && may_overlap_itself(operand)) {
      refuse(names[k], "has elements that share memory; clone it first");
    }
  }
}

bool may_overlap_itself(const TensorView& tensor) {
  if (is_contiguous(tensor) || tensor.numel == 0) return false;
  const std::vector<int> order = dims_by_stride(tensor);
  int64_t extent = 1;
  for (auto d = order.rbegin(); d != order.rend(); ++d) {
    if (tensor.strides[*d] < extent) return true;
    extent += (tensor.sizes[*d] - 1) * tensor.strides[*d];
  }
  return false;
}

bool is_one_run(const Operands& operands) {
  const TensorView& param = *operands[kParam];
  return is_dense(param) &&
         std::all_of(operands.begin(), operands.end(), [&](const TensorView* operand) {
           return operand == nullptr || same_strides(param, *operand);
         });
}

void append_strided_dims(const Operands& operands, std::vector<StridedDim>& dims) {
  const TensorView& param = *operands[kParam];
  const size_t begin = dims.size();
  for (int d : dims_by_stride(param)) {
    StridedDim dim{.size = param.sizes[d], .strides = {}};
    for (int k = 0; k < kMaxOperands; ++k) {
      if (operands[k] != nullptr) dim.strides[k] = operands[k]->strides[d];
    }
    if (dims.size() == begin || !try_merge(dims.back(), dim)) dims.push_back(dim);
  }
}

}  // namespace fusedopt
