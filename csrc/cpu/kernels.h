// What one translation unit an instruction set provides: every rule's loop, the conversions of
// 16-bit floats, and the division by a gradient scale. All work on contiguous arrays, at any
// alignment and of any length.
#pragma once

#include <array>
#include <cstdint>

#include "core/layout.h"
#include "rules/registry.h"

namespace fusedopt::cpu {

// Updates n elements. operands: param, grad, states, in the type of the arithmetic; those that the
// variant does not use are not looked at.
using Kernel = void (*)(void* const* operands, const void* scalars, int64_t n);

struct KernelTable {
  const char* isa;
  // [rule][2 * variant + in_double]
  std::array<const Kernel*, AllRules::kCount> kernels;

  // Widening is exact; narrowing rounds to nearest, ties to even, NaN to kNarrowNan.
  void (*widen_bfloat16)(const uint16_t* from, float* to, int64_t n);
  void (*widen_float16)(const uint16_t* from, float* to, int64_t n);
  void (*narrow_bfloat16)(const float* from, uint16_t* to, int64_t n);
  void (*narrow_float16)(const float* from, uint16_t* to, int64_t n);

  // Divides gradients in the type of the arithmetic by the scale of a gradient scaler. [in_double]
  void (*unscale[2])(void* grads, double scale, int64_t n);
};

}  // namespace fusedopt::cpu
