// What one translation unit an instruction set provides: every rule's loops, the conversions
// between formats, and the passes over a block. All work on contiguous arrays, at any alignment and
// of any length.
#pragma once

#include <array>
#include <cstdint>

#include "core/operand.h"
#include "rules/registry.h"

namespace fusedopt::cpu {

// The combinations of formats that one loop decodes, computes and encodes. Any other goes through
// blocks in the format of the arithmetic (pipeline.h), for which the first two are the kernels.
inline constexpr std::array kUsualFormats = {
    FormatMix{Format::kFloat32, Format::kFloat32, Format::kFloat32},
    FormatMix{Format::kFloat64, Format::kFloat64, Format::kFloat64},
    FormatMix{Format::kBFloat16, Format::kBFloat16, Format::kBFloat16},
    FormatMix{Format::kFloat16, Format::kFloat16, Format::kFloat16},
};

// Updates n elements. operands: param, grad, and the states that the variant uses.
using Kernel = void (*)(void* const* operands, const void* scalars, int64_t n);

using Convert = void (*)(const void* from, void* to, int64_t n);

struct KernelTable {
  const char* isa;
  // [rule][variant * kUsualFormats.size() + position among them]
  std::array<const Kernel*, AllRules::kCount> kernels;

  // Between formats and that of the arithmetic. [in_double][format]
  std::array<std::array<Convert, 4>, 2> decode, encode;

  // Divides gradients in the format of the arithmetic by the scale of a gradient scaler.
  // [in_double]
  void (*unscale[2])(void* grads, double scale, int64_t n);
};

}  // namespace fusedopt::cpu
