// Keeps a caller's floating-point modes out of the results.
#pragma once

#include <cfenv>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace fusedopt {

// IEEE 754's default for this thread, for as long as it lives: rounding to nearest, subnormals
// kept. On x86-64 the one register that matters, because fesetenv takes longer than a small step.
class IeeeEnvironment {
 public:
#if defined(__x86_64__)
  IeeeEnvironment() : saved_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
  ~IeeeEnvironment() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#else
  IeeeEnvironment() {
    std::fegetenv(&saved_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~IeeeEnvironment() { std::fesetenv(&saved_); }

 private:
  std::fenv_t saved_;
#endif
};

}  // namespace fusedopt
