// The operations that a rule may use. IEEE 754 rounds each of them correctly, so the same order of
// operations gives the same bits on every CPU, in CUDA and in NumPy. Nothing here may be contracted
// into a fused multiply-add or replaced by an approximation: the build's flags see to that.
#pragma once

#include <math.h>

#include <cstdint>

#if defined(__CUDACC__)
#define FUSEDOPT_FN __host__ __device__ __forceinline__
#else
// Always inlined, so that no translation unit built for one instruction set exports a copy that
// the linker could give to another.
#define FUSEDOPT_FN inline __attribute__((always_inline))
#endif

namespace fusedopt {

FUSEDOPT_FN float square_root(float x) { return ::sqrtf(x); }
FUSEDOPT_FN double square_root(double x) { return ::sqrt(x); }

FUSEDOPT_FN float absolute(float x) { return ::fabsf(x); }
FUSEDOPT_FN double absolute(double x) { return ::fabs(x); }

FUSEDOPT_FN float with_sign(float magnitude, float sign) { return ::copysignf(magnitude, sign); }
FUSEDOPT_FN double with_sign(double magnitude, double sign) { return ::copysign(magnitude, sign); }

// The larger of two numbers; NaN if either is NaN, as in numpy.maximum and torch.maximum.
template <class T>
FUSEDOPT_FN T maximum(T a, T b) {
  return (a > b || a != a) ? a : b;
}

// start + weight * (end - start), computed from the nearer end: exact for weight 0 and weight 1.
template <class T>
FUSEDOPT_FN T lerp(T start, T end, T weight) {
  const T difference = end - start;
  return weight < T(0.5) ? start + weight * difference : end - difference * (T(1) - weight);
}

// base to the power of an integer by repeated squaring: a fixed sequence of multiplications, where
// a library's pow() may differ from one machine to the next.
FUSEDOPT_FN double power(double base, int64_t exponent) {
  double result = 1.0;
  for (; exponent > 0; exponent >>= 1) {
    if (exponent & 1) result *= base;
    base *= base;
  }
  return result;
}

}  // namespace fusedopt
