#include "core/layout.h"

#include <algorithm>
#include <string>

#include "core/operand.h"
#include "core/refusal.h"

namespace fusedopt {
namespace {

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

// Merges a dimension into the one outside of it if every operand can walk both with one stride.
bool try_merge(std::span<int64_t> outer, std::span<const int64_t> inner) {
  const int64_t size = inner[0];
  for (size_t k = 1; k < inner.size(); ++k) {
    if (outer[k] != inner[k] * size) return false;
  }
  std::copy(inner.begin() + 1, inner.end(), outer.begin() + 1);
  outer[0] *= size;
  return true;
}

// The tensor in the order of whose memory the elements are walked.
const TensorView& leader(TensorViews tensors) {
  const auto codes = std::find_if(tensors.begin(), tensors.end(), [](const TensorView& tensor) {
    return is_scaled(tensor.format);
  });
  return codes == tensors.end() ? tensors[kParam] : *codes;
}

}  // namespace

bool is_contiguous(const TensorView& tensor) {
  int64_t expected = 1;
  for (int d = tensor.ndim - 1; d >= 0; --d) {
    if (tensor.sizes[d] == 1) continue;
    if (tensor.strides[d] != expected) return false;
    expected *= tensor.sizes[d];
  }
  return true;
}

void validate(TensorViews tensors, std::span<const char* const> names) {
  const TensorView& param = tensors[kParam];
  const TensorView& first = leader(tensors);
  for (size_t k = 0; k < tensors.size(); ++k) {
    const TensorView& tensor = tensors[k];
    const auto refuse = [&](const std::string& why) {
      throw Refusal(Refusal::kRuntime, names[k] + (" " + why));
    };
    if (tensor.device != param.device) refuse("is on another device than the parameter");
    if (!same_sizes(tensor, param)) {
      refuse("has shape " + shape_of(tensor) + ", the parameter has " + shape_of(param));
    }
    if (k != kGrad && may_overlap_itself(tensor)) {
      refuse("has elements that share memory; clone it first");
    }
    if (!is_scaled(tensor.format)) continue;
    if (!is_dense(tensor)) refuse("has gaps, so that its blocks have no place; clone it first");
    if (!same_strides(tensor, first)) refuse("lies in another order than the other states");
  }
}

bool computes_in_double(TensorViews tensors) {
  return std::any_of(tensors.begin(), tensors.end(),
                     [](const TensorView& tensor) { return tensor.format == Format::kFloat64; });
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

bool is_one_run(TensorViews tensors) {
  const TensorView& param = tensors[kParam];
  return is_dense(param) && std::all_of(tensors.begin(), tensors.end(), [&](const auto& tensor) {
           return same_strides(param, tensor);
         });
}

uint32_t append_walk(TensorViews tensors, std::vector<int64_t>& numbers) {
  const TensorView& first = leader(tensors);
  const size_t width = Walk::numbers_per_dim(tensors.size());
  uint32_t dims = 0;
  for (int d : dims_by_stride(first)) {
    numbers.push_back(first.sizes[d]);
    for (const TensorView& tensor : tensors) numbers.push_back(tensor.strides[d]);
    ++dims;
    if (dims == 1) continue;
    const auto last_two = std::span(numbers).last(2 * width);
    if (!try_merge(last_two.first(width), last_two.last(width))) continue;
    numbers.resize(numbers.size() - width);
    --dims;
  }
  return dims;
}

}  // namespace fusedopt
