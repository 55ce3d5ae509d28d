// Compiled once for each instruction set, with FUSEDOPT_ISA naming it. Everything here is local to
// the translation unit or always inlined: code built for one instruction set must never stand in
// for another's at link time.
#include "cpu/kernels.h"

#include <utility>

#include "core/rule_info.h"
#include "cpu/convert.h"

namespace fusedopt::cpu {
namespace {

#if defined(__clang__)
#define FUSEDOPT_INDEPENDENT_ITERATIONS _Pragma("clang loop vectorize(assume_safety)")
#else
#define FUSEDOPT_INDEPENDENT_ITERATIONS _Pragma("GCC ivdep")
#endif

// load, rule, store
template <class Rule, unsigned variant, class T, size_t... state>
FUSEDOPT_FN void update_elements(void* const* operands, const void* packed_scalars, int64_t n,
                                 std::index_sequence<state...>) {
  constexpr std::array<bool, sizeof...(state)> used = {Rule::uses(rule_variant(variant), state)...};
  const auto scalars = *static_cast<const KernelScalars<Rule, T>*>(packed_scalars);
  T* const params = static_cast<T*>(operands[kParam]);
  const T* const grads = static_cast<const T*>(operands[kGrad]);
  const std::array<T*, sizeof...(state)> states = {
      static_cast<T*>(operands[kFirstState + state])...};

  FUSEDOPT_INDEPENDENT_ITERATIONS
  for (int64_t i = 0; i < n; ++i) {
    T param = params[i];
    T grad = grads[i];
    std::array<T, sizeof...(state)> values = {(used[state] ? states[state][i] : T(0))...};
    apply_shared<(variant & kL2Penalty) != 0>(param, grad, scalars.shared);
    Rule::template update<rule_variant(variant)>(param, grad, values[state]..., scalars.rule);
    params[i] = param;
    ((used[state] ? void(states[state][i] = values[state]) : void()), ...);
  }
}

template <class Rule, unsigned variant, class T>
void kernel(void* const* operands, const void* scalars, int64_t n) {
  update_elements<Rule, variant, T>(operands, scalars, n,
                                    std::make_index_sequence<Rule::kStates.size()>{});
}

template <class Rule, size_t... entry>
constexpr std::array<Kernel, sizeof...(entry)> kernels_of(std::index_sequence<entry...>) {
  return {(entry % 2 ? Kernel{kernel<Rule, entry / 2, double>}
                     : Kernel{kernel<Rule, entry / 2, float>})...};
}

template <class Rule>
constexpr auto kKernels = kernels_of<Rule>(std::make_index_sequence<2 * kVariantCount<Rule>>{});

struct KernelsOf {
  template <class Rule>
  constexpr const Kernel* operator()() const {
    static_assert(kKernels<Rule>.size() == 2 * kVariantCount<Rule>);
    return &kKernels<Rule>[0];
  }
};

void widen_bfloat16_array(const uint16_t* from, float* to, int64_t n) {
  FUSEDOPT_INDEPENDENT_ITERATIONS
  for (int64_t i = 0; i < n; ++i) to[i] = widen(BFloat16{from[i]});
}

void narrow_bfloat16_array(const float* from, uint16_t* to, int64_t n) {
  FUSEDOPT_INDEPENDENT_ITERATIONS
  for (int64_t i = 0; i < n; ++i) to[i] = narrow<BFloat16>(from[i]).bits;
}

void widen_float16_array(const uint16_t* from, float* to, int64_t n) {
  int64_t i = 0;
  for (; i + kFloat16Lanes <= n; i += kFloat16Lanes) widen_float16_register(from + i, to + i);
  for (; i < n; ++i) to[i] = widen(Float16{from[i]});
}

void narrow_float16_array(const float* from, uint16_t* to, int64_t n) {
  int64_t i = 0;
  for (; i + kFloat16Lanes <= n; i += kFloat16Lanes) narrow_float16_register(from + i, to + i);
  for (; i < n; ++i) to[i] = narrow<Float16>(from[i]).bits;
}

template <class T>
void unscale_array(void* grads, double scale, int64_t n) {
  T* const grad = static_cast<T*>(grads);
  FUSEDOPT_INDEPENDENT_ITERATIONS
  for (int64_t i = 0; i < n; ++i) grad[i] = unscale(grad[i], static_cast<T>(scale));
}

}  // namespace

#define FUSEDOPT_STRING_OF(x) #x
#define FUSEDOPT_STRING(x) FUSEDOPT_STRING_OF(x)

namespace FUSEDOPT_ISA {
extern const KernelTable kernel_table;
constinit const KernelTable kernel_table = {
    .isa = FUSEDOPT_STRING(FUSEDOPT_ISA),
    .kernels = AllRules::map(KernelsOf{}),
    .widen_bfloat16 = widen_bfloat16_array,
    .widen_float16 = widen_float16_array,
    .narrow_bfloat16 = narrow_bfloat16_array,
    .narrow_float16 = narrow_float16_array,
    .unscale = {unscale_array<float>, unscale_array<double>},
};
}  // namespace FUSEDOPT_ISA

}  // namespace fusedopt::cpu
