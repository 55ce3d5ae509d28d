// Kingma, Ba: Adam: A Method for Stochastic Optimization, ICLR 2015, algorithm 1; amsgrad: Reddi,
// Kale, Kumar: On the Convergence of Adam and Beyond, ICLR 2018, algorithm 2, with the maximum
// taken before bias correction as in torch.optim.Adam. AdamW (Loshchilov, Hutter: Decoupled Weight
// Decay Regularization, ICLR 2019) is this rule with the decoupled decay of shared.h, which torch,
// unlike the paper, multiplies with the learning rate.
#pragma once

#include <array>

#include "rules/shared.h"

namespace fusedopt {

struct Adam {
  static constexpr const char* kName = "adam";
  static constexpr bool kCountsSteps = true;
  static constexpr std::array<StateInfo, 3> kStates = {
      {{"exp_avg", kSigned}, {"exp_avg_sq", kUnsigned}, {"max_exp_avg_sq", kUnsigned}}};

  enum : unsigned { kAmsgrad = 1, kVariants = 2 };

  struct Hyper : SharedHyper {
    double beta1 = 0, beta2 = 0, eps = 0;
    bool amsgrad = false;
  };

  template <class Options>
  FUSEDOPT_FN static Hyper read(Options& options) {
    Hyper hyper;
    hyper.read_shared(options);
    hyper.beta1 = options.below_one("betas", 0, 2);
    hyper.beta2 = options.below_one("betas", 1, 2);
    hyper.eps = options.non_negative("eps");
    hyper.amsgrad = options.flag("amsgrad");
    hyper.decoupled_weight_decay = options.flag("decoupled_weight_decay");
    return hyper;
  }

  static unsigned variant(const Hyper& hyper, bool) { return hyper.amsgrad ? kAmsgrad : 0u; }

  static constexpr bool uses(unsigned variant, unsigned state) {
    return state < 2 || (variant & kAmsgrad);
  }

  template <class T>
  struct Scalars {
    T one_minus_beta1, beta2, one_minus_beta2, rsqrt_bias_correction2, eps, step_size;
  };

  template <class T>
  FUSEDOPT_FN static Scalars<T> derive(const Hyper& hyper, int64_t step) {
    const double bias_correction1 = 1.0 - power(hyper.beta1, step);
    const double bias_correction2 = 1.0 - power(hyper.beta2, step);
    return {
        .one_minus_beta1 = T(1.0 - hyper.beta1),
        .beta2 = T(hyper.beta2),
        .one_minus_beta2 = T(1.0 - hyper.beta2),
        .rsqrt_bias_correction2 = T(1.0 / square_root(bias_correction2)),
        .eps = T(hyper.eps),
        .step_size = T(hyper.lr / bias_correction1),
    };
  }

  template <unsigned variant, class T>
  FUSEDOPT_FN static T update(T, T grad, T& exp_avg, T& exp_avg_sq, T& max_exp_avg_sq,
                              const Scalars<T>& s) {
    exp_avg = lerp(exp_avg, grad, s.one_minus_beta1);
    exp_avg_sq = s.beta2 * exp_avg_sq + s.one_minus_beta2 * grad * grad;
    T second_moment = exp_avg_sq;
    if constexpr (variant & kAmsgrad) {
      max_exp_avg_sq = maximum(max_exp_avg_sq, exp_avg_sq);
      second_moment = max_exp_avg_sq;
    }
    const T denom = square_root(second_moment) * s.rsqrt_bias_correction2 + s.eps;
    return s.step_size * exp_avg / denom;
  }
};

}  // namespace fusedopt
