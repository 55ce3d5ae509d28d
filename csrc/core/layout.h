// How the tensors of one update lie in memory: as one flat run, or to be walked with strides.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "core/dtype.h"
#include "rules/registry.h"

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
  DType dtype = DType::kFloat32;
  Device device;
};

// Parameter, gradient, then the states.
constexpr int kParam = 0, kGrad = 1, kFirstState = 2;
constexpr int kMaxStates = static_cast<int>(AllRules::kMaxStates);
constexpr int kMaxOperands = kFirstState + kMaxStates;

using Operands = std::array<const TensorView*, kMaxOperands>;  // null: not part of this update
using OperandNames = std::array<const char*, kMaxOperands>;    // for errors

// Throws Refusal unless an engine can carry out an update of these operands: one device, dtype and
// shape, and no memory written twice.
void validate(const Operands& operands, const OperandNames& names);

// Whether two of its elements may share memory. Exact for tensors made by slicing, transposing and
// expanding; an exotic as_strided view may be taken for one that overlaps, never the reverse.
bool may_overlap_itself(const TensorView& tensor);

// A walk has at most this many dimensions: each has two elements or more.
constexpr size_t kMaxWalkDims = 62;

// One dimension of a walk over all operands at once. A contiguous run has stride 1.
struct StridedDim {
  int64_t size;
  std::array<int64_t, kMaxOperands> strides;
};

// Whether all operands are dense and hold their elements in the same order, so that they can be
// walked as one run. All have the same sizes.
bool is_one_run(const Operands& operands);

// Appends the dimensions to walk, outermost first and with as few as will do.
void append_strided_dims(const Operands& operands, std::vector<StridedDim>& dims);

}  // namespace fusedopt
