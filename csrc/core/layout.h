// How the tensors of one update lie in memory: as one flat run, or to be walked with strides.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/format.h"
#include "core/walk.h"

namespace fusedopt {

enum class DeviceType : uint8_t { kCpu, kCuda, kOther };

struct Device {
  DeviceType type = DeviceType::kCpu;
  int32_t index = 0;

  bool operator==(const Device&) const = default;
};

// A tensor as the caller's framework describes it. Sizes and strides (in elements) are borrowed.
struct TensorView {
  void* data = nullptr;
  int64_t numel = 0;
  const int64_t* sizes = nullptr;
  const int64_t* strides = nullptr;
  int ndim = 0;
  Format format = Format::kFloat32;
  Device device;
};

// Those of one update, in the order of its operands.
using TensorViews = std::span<const TensorView>;

// Throws Refusal unless an engine can carry out an update of these tensors: one device and shape,
// no memory written twice, and codes without gaps and all in one order. `names` are theirs, for
// errors.
void validate(TensorViews tensors, std::span<const char* const> names);

// Whether the arithmetic of an update of these is done in double: one of them is float64.
bool computes_in_double(TensorViews tensors);

// Whether it lies in the order of its indices without gaps.
bool is_contiguous(const TensorView& tensor);

// Whether two of its elements may share memory. Exact for tensors made by slicing, transposing and
// expanding; an exotic as_strided view may be taken for one that overlaps, never the reverse.
bool may_overlap_itself(const TensorView& tensor);

// Whether all are dense and hold their elements in the same order, so that they can be walked as
// one run. All have the same sizes.
bool is_one_run(TensorViews tensors);

// Appends the numbers of a Walk over them, of as few dimensions as will do, in the order of the
// memory of codes if there are any, or else of the parameter. Returns how many.
uint32_t append_walk(TensorViews tensors, std::vector<int64_t>& numbers);

}  // namespace fusedopt
