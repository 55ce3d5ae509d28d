// The options of a parameter group as an engine meets them: as bits that select a kernel, and as
// numbers, which the device may hold.
#pragma once

#include <cstdint>

#include "core/number.h"

namespace fusedopt {

// Bit 0 of a variant is shared by all rules; a rule's own bits are above it.
constexpr unsigned kNoOptions = 0;
constexpr unsigned kL2Penalty = 1;
constexpr unsigned rule_variant(unsigned variant) { return variant >> 1; }

// One option of a parameter group, in the order in which its rule reads them.
struct OptionValue {
  double value = 0;
  const void* source = nullptr;  // where the device holds it, or null
  NumberType type = NumberType::kFloat64;
};

// The options of a rule, read once more where `load(n)` gives the n-th OptionValue.
template <class Load>
class ReplayedOptions {
 public:
  FUSEDOPT_FN explicit ReplayedOptions(Load load) : load_(load) {}

  FUSEDOPT_FN double number(const char*) { return next(); }
  FUSEDOPT_FN double non_negative(const char*) { return next(); }
  FUSEDOPT_FN double rate(const char*) { return next(); }
  FUSEDOPT_FN double below_one(const char*, int, int) { return next(); }
  FUSEDOPT_FN bool flag(const char*) { return next() != 0; }

 private:
  FUSEDOPT_FN double next() {
    const OptionValue option = load_(position_++);
    return option.source == nullptr ? option.value : load_number(option.source, option.type);
  }

  Load load_;
  uint32_t position_ = 0;
};

}  // namespace fusedopt
