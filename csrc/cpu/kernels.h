// What one translation unit an instruction set provides: every rule's loops, the conversions
// between formats, and the passes over a block. All work on contiguous arrays, at any alignment and
// of any length.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "core/operand.h"
#include "core/random.h"
#include "rules/registry.h"

namespace fusedopt::cpu {

// The combinations of formats that one loop decodes, computes and encodes. Any other goes through
// blocks, in which a kernel finds as numbers of the arithmetic what it does not take as it is
// stored (pipeline.h).
inline constexpr std::array kUsualFormats = {
    FormatMix{Format::kFloat32, Format::kFloat32, Format::kFloat32},
    FormatMix{Format::kFloat64, Format::kFloat64, Format::kFloat64},
    FormatMix{Format::kBFloat16, Format::kBFloat16, Format::kBFloat16},
    FormatMix{Format::kFloat16, Format::kFloat16, Format::kFloat16},
    FormatMix{Format::kFloat32, Format::kFloat32, Format::kStochasticBFloat16},
    FormatMix{Format::kFloat32, Format::kBFloat16, Format::kFloat32},
    FormatMix{Format::kFloat32, Format::kBFloat16, Format::kStochasticBFloat16},
    FormatMix{Format::kBFloat16, Format::kBFloat16, Format::kFloat32},
    FormatMix{Format::kBFloat16, Format::kBFloat16, Format::kStochasticBFloat16},
    FormatMix{Format::kFloat16, Format::kFloat16, Format::kFloat32},
    FormatMix{Format::kFloat16, Format::kFloat16, Format::kStochasticBFloat16},
    FormatMix{Format::kMasterBFloat16, Format::kBFloat16, Format::kFloat32},
    FormatMix{Format::kMasterBFloat16, Format::kBFloat16, Format::kBFloat16},
    FormatMix{Format::kMasterBFloat16, Format::kBFloat16, Format::kStochasticBFloat16},
    FormatMix{Format::kStochasticBFloat16, Format::kBFloat16, Format::kFloat32},
    FormatMix{Format::kStochasticBFloat16, Format::kBFloat16, Format::kBFloat16},
    FormatMix{Format::kStochasticBFloat16, Format::kBFloat16, Format::kStochasticBFloat16},
};

// Elements of a block, on which a pass works. Of codes it has several parts with a scale each: what
// a pass begins with is loaded once for all of them, and no part waits for another one's maximum.
constexpr int64_t kBlockParts = 4, kBlock = kBlockParts * kScaledBlock;

// Of a part's numbers: the largest finite magnitude, which is the scale of their codes.
struct PartRange {
  float scale;
  bool is_finite;  // all of them
};

// Updates n elements. operands: param, grad, and the states that the variant uses; then the
// remainder, where the parameter has a master. draws: from the first element on, where any is
// rounded with random bits. ranges: null, or else n is no more than a block and the states are
// float32: those of each state's whole parts are written.
using Kernel = void (*)(void* const* operands, const void* scalars, const Draws* draws, int64_t n,
                        PartRange (*ranges)[kBlockParts]);

constexpr int64_t kLine = 64;  // bytes that a cache holds together

// Asks for memory, a line at a time.
FUSEDOPT_FN void prefetch_lines(const void* begin, size_t size) {
  for (size_t at = 0; at < size; at += kLine) {
    __builtin_prefetch(static_cast<const std::byte*>(begin) + at, 1);
  }
}

// Memory of several operands that is wanted soon. Passes ask for it in pieces: asked for at once it
// would take all that a core can wait for, and the pass's own loads come after.
class MemoryAhead {
 public:
  // Bytes of all operands together, about: if more are asked for at once, a step is slower than if
  // all of them are left to the hardware.
  static constexpr size_t kMostAtOnce = 20 * kLine;

  explicit MemoryAhead(size_t pieces = 0) : pieces_(pieces) {}

  void add(const std::byte* begin, size_t size) {
    ranges_[count_++] = {begin, (size + pieces_ - 1) / pieces_};
  }

  FUSEDOPT_FN void ask_for_piece() {
    if (asked_for_ == pieces_) return;
    for (unsigned k = 0; k < count_; ++k) {
      prefetch_lines(ranges_[k].begin + asked_for_ * ranges_[k].piece, ranges_[k].piece);
    }
    ++asked_for_;
  }

 private:
  struct {
    const std::byte* begin;
    size_t piece;  // bytes
  } ranges_[kMostOperands];
  unsigned count_ = 0;
  size_t pieces_, asked_for_ = 0;
};

// One block of an operand where it is stored, and what it takes to decode and encode it.
struct StoredBlock {
  void* elements = nullptr;
  int16_t* remainders = nullptr;          // of a master
  float* scales = nullptr;                // of codes, by part
  const PartRange* ranges = nullptr;      // of what is to be encoded to codes, by part
  const uint16_t* random_bits = nullptr;  // as many as elements, where rounding draws them
  MemoryAhead* ahead = nullptr;           // if there is any, a piece is asked for with each part

  FUSEDOPT_FN void ask_ahead() const {
    if (ahead != nullptr) ahead->ask_for_piece();
  }
};

// Between a block, of kBlock elements at most, and numbers in the format of the arithmetic.
using Decode = void (*)(const StoredBlock& from, void* numbers, int64_t n);
using Encode = void (*)(const void* numbers, const StoredBlock& to, int64_t n);

struct KernelTable {
  const char* isa;
  // [rule][variant * kUsualFormats.size() + position among them]; null where the instruction set
  // does not convert between the format and that of the arithmetic.
  std::array<const Kernel*, AllRules::kCount> kernels;

  // Null where there is none.
  Kernel kernel(size_t rule, unsigned variant, size_t usual) const {
    return kernels[rule][variant * kUsualFormats.size() + usual];
  }
  Kernel find_kernel(size_t rule, unsigned variant, const FormatMix& formats) const {
    for (size_t usual = 0; usual < kUsualFormats.size(); ++usual) {
      if (kUsualFormats[usual] == formats) return kernel(rule, variant, usual);
    }
    return nullptr;
  }

  // [in_double][format]
  std::array<std::array<Decode, kFormats>, 2> decode;
  std::array<std::array<Encode, kFormats>, 2> encode;

  // Apart from the encoding, so that blocks of several operands need not wait for one another's.
  // [in_double]
  void (*find_ranges[2])(const void* numbers, int64_t n, PartRange* ranges);

  // The random bits of kBlock elements at most, from the first on, of an operand by its role. They
  // are those of whole groups, which random_bits has room for.
  const uint16_t* (*draw)(const Draws& draws, uint32_t operand, int64_t n, uint16_t* random_bits);

  // Divides gradients in the format of the arithmetic by the scale of a gradient scaler.
  // [in_double]
  void (*unscale[2])(void* grads, double scale, int64_t n);

  // What follows the step, in the format of the arithmetic (core/epilogue.h). [in_double]
  void (*shrink[2])(void* params, double threshold, int64_t n);
  void (*average[2])(void* averages, const void* params, double weight, int64_t n);

  // Adds the squares of n elements, whole rows but for the last ones, to lanes (core/reduction.h).
  // [format], for those of numbers that torch has.
  std::array<void (*)(const void* elements, int64_t n, double* lanes), kDtypes> add_squares;
};

}  // namespace fusedopt::cpu
