// A rule whose variant() names one that has no kernels, and one with more than a field holds.
#include <cstdint>
#include <cstdio>
#include <stdexcept>

#include "core/rule_info.h"

namespace fusedopt {
namespace {

struct Wrong {
  static constexpr const char* kName = "wrong";
  static constexpr bool kCountsSteps = false;
  static constexpr std::array<StateInfo, 1> kStates = {{{"state", kSigned}}};
  enum : unsigned { kVariants = 2 };

  struct Hyper : SharedHyper {
    unsigned variant = 0;
  };

  static unsigned variant(const Hyper& hyper, bool fresh) { return hyper.variant + fresh; }
  static constexpr bool uses(unsigned, unsigned) { return true; }

  template <class T>
  struct Scalars {
    T lr;
  };

  template <class T>
  static Scalars<T> derive(const Hyper& hyper, int64_t) {
    return {T(hyper.lr)};
  }
};

template <unsigned variants>
struct WithVariants {
  static constexpr std::array<StateInfo, 0> kStates = {};
  enum : unsigned { kVariants = variants };
};

// One bit is shared by all rules.
static_assert(kHoldsEveryVariant<uint8_t, RuleList<WithVariants<1>, WithVariants<128>>>);
static_assert(!kHoldsEveryVariant<uint8_t, RuleList<WithVariants<1>, WithVariants<129>>>);

void print_variant(unsigned variant, bool fresh) {
  Wrong::Hyper hyper;
  hyper.variant = variant;
  const HyperparametersOf<Wrong> hyperparameters(hyper);
  try {
    std::printf("%u\n", hyperparameters.variant(fresh));
  } catch (const std::logic_error& error) {
    std::printf("%s\n", error.what());
  }
}

}  // namespace
}  // namespace fusedopt

int main() {
  fusedopt::print_variant(1, false);
  fusedopt::print_variant(1, true);
  fusedopt::print_variant(7, false);
}
