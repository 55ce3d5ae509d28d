// Steps tensors of every rule, dtype and kind of layout with the CPU engine, and measures them,
// each in memory of just its size, of which only the elements of the tensor are initialised: for
// valgrind's memcheck, which finds an access outside of them and a result that depends on anything
// else. See tests/sanitizers.py. With an argument it does one of both itself, to be found.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string_view>

#include "core/engine.h"
#include "core/rule_info.h"
#include "fixed_options.h"

namespace fusedopt {
namespace {

enum class Layout { kDense, kStrided, kTransposed };
// Beside a penalty: an average whose memory holds nothing yet, or one that there is.
enum class Following { kNothing, kFirstAverage, kLaterAverage };

// A matrix of two strides.
struct Tensor {
  int64_t sizes[2], strides[2];
  Format format;
  std::unique_ptr<std::byte, decltype(&std::free)> memory;

  Tensor(int64_t rows, int64_t columns, Layout layout, Format format, bool is_filled = true)
      : sizes{rows, columns}, format(format), memory(nullptr, std::free) {
    const bool is_transposed = layout == Layout::kTransposed;
    const int64_t gap = layout == Layout::kStrided ? 3 : 1;
    strides[0] = is_transposed ? 1 : columns * gap;
    strides[1] = is_transposed ? rows : gap;
    const int64_t last = (rows - 1) * strides[0] + (columns - 1) * strides[1];
    memory.reset(static_cast<std::byte*>(std::malloc(static_cast<size_t>(last + 1) * size())));
    if (is_filled) for_each([&](std::byte* element) { std::memset(element, 0x3c, size()); });
  }

  size_t size() const { return static_cast<size_t>(size_of(format)); }

  template <class Visit>
  void for_each(Visit visit) const {
    for (int64_t i = 0; i < sizes[0]; ++i) {
      for (int64_t j = 0; j < sizes[1]; ++j) {
        const int64_t offset = i * strides[0] + j * strides[1];
        visit(memory.get() + static_cast<size_t>(offset) * size());
      }
    }
  }

  TensorView view() const {
    TensorView view;
    view.data = memory.get();
    view.numel = sizes[0] * sizes[1];
    view.sizes = sizes;
    view.strides = strides;
    view.ndim = 2;
    view.format = format;
    return view;
  }
};

int64_t elements = 0, unchanged = 0;

// A jump for each element, so that one which is not initialised is reported.
void check(const Tensor& tensor) {
  std::byte before[sizeof(double)];
  std::memset(before, 0x3c, sizeof before);
  tensor.for_each([&](const std::byte* element) {
    ++elements;
    if (std::memcmp(element, before, tensor.size()) == 0) ++unchanged;
  });
}

void run(UpdateList& list) {
  std::unique_ptr<EngineMemory> memory;
  if (list.arrange()) std::abort();
  cpu_engine().prepare(list, {}, memory);
  cpu_engine().run(list, {}, memory.get());
}

template <class Rule>
void run_rule(unsigned index, const Hyperparameters& hyper, FormatMix formats, Layout layout,
              Layout layout_of_grad, const float* grad_scale, Following following) {
  UpdateList list;
  list.clear(index);
  const RuleInfo info = rule_info<Rule>(index);
  const bool averages = following != Following::kNothing;
  const bool is_first = following == Following::kFirstAverage;
  const unsigned used = info.used_states(hyper.variant(false)) << kFirstState | 3u |
                        unsigned{averages} << info.role_of_average();
  std::vector<std::unique_ptr<Tensor>> tensors;
  std::vector<const Tensor*> results;
  for (int64_t columns : {1, 7, 63, 64, 65, 257}) {
    std::vector<Operand> operands;
    std::vector<TensorView> views;
    std::vector<const char*> names;
    for (uint8_t role = 0; role < info.operand_names.size(); ++role) {
      if (!(used >> role & 1)) continue;
      const bool is_grad = role == kGrad, is_average = role == info.role_of_average();
      const Format format = role == kParam ? formats.param
                            : is_grad      ? formats.grad
                            : is_average   ? arithmetic_format(formats.param == Format::kFloat64)
                                           : formats.states;
      const bool is_new = is_average && is_first, is_read_only = is_grad && grad_scale == nullptr;
      tensors.push_back(
          std::make_unique<Tensor>(3, columns, is_grad ? layout_of_grad : layout, format, !is_new));
      views.push_back(tensors.back()->view());
      names.push_back(info.operand_names[role].c_str());
      operands.push_back({.access = is_new         ? Access::kWrite
                                    : is_read_only ? Access::kRead
                                                   : Access::kReadWrite,
                          .role = role});
      if (role == kParam || is_average) results.push_back(tensors.back().get());
    }
    validate(views, names);
    Update update;
    update.in_double = computes_in_double(views);
    update.variant = static_cast<uint16_t>(hyper.variant(false));
    update.scalars = hyper.add_scalars(list, 7, update.in_double);
    if (averages) {
      update.epilogue = list.add(Epilogue{.l1_threshold = 1e-3,
                                          .average_weight = is_first ? 1 : 0.25,
                                          .average = static_cast<uint32_t>(views.size() - 1)});
    }
    list.add(update, views, operands);
  }
  list.set_prologue({.grad_scale = grad_scale, .found_inf = nullptr});
  for (int step = 0; step < 2; ++step) run(list);
  for (const Tensor* result : results) check(*result);
}

template <class Rule>
void run_layouts(unsigned index, FormatMix formats) {
  const auto scale = std::make_unique<float>(2.0f);
  for (bool on : {false, true}) {
    FixedOptions options{on};
    const HyperparametersOf<Rule> hyper(Rule::read(options));
    for (Layout layout : {Layout::kDense, Layout::kStrided, Layout::kTransposed}) {
      for (Layout of_grad : {Layout::kDense, Layout::kStrided}) {
        using enum Following;
        run_rule<Rule>(index, hyper, formats, layout, of_grad, nullptr, kNothing);
        run_rule<Rule>(index, hyper, formats, layout, of_grad, scale.get(), kNothing);
        run_rule<Rule>(index, hyper, formats, layout, of_grad, nullptr, kFirstAverage);
        run_rule<Rule>(index, hyper, formats, layout, of_grad, scale.get(), kLaterAverage);
      }
    }
  }
}

// One of them has several blocks of squares.
void run_squares(Format format, Layout layout, const float* grad_scale) {
  SquareList list;
  std::vector<std::unique_ptr<Tensor>> tensors;
  for (int64_t columns : {1, 7, 63, 64, 65, 257, 30000}) {
    tensors.push_back(std::make_unique<Tensor>(3, columns, layout, format));
    list.add(tensors.back()->view(), format == Format::kFloat64, 0);
  }
  ExactSum sum{};
  std::unique_ptr<EngineMemory> memory;
  cpu_engine().measure(list, {.grad_scale = grad_scale}, {}, memory, std::span(&sum, 1));
  if (!(norm_of(sum) > 0)) std::abort();
}

void run_all() {
  unsigned index = 0;
  AllRules::map([&]<class Rule>() {
    using enum Format;
    for (Format format : {kFloat32, kFloat64, kBFloat16, kFloat16}) {
      run_layouts<Rule>(index, {format, format, format});
    }
    run_layouts<Rule>(index, {kFloat32, kBFloat16, kFloat16});
    run_layouts<Rule>(index, {kBFloat16, kFloat64, kFloat32});
    return index++;
  });
  const auto scale = std::make_unique<float>(2.0f);
  for (Format format : {Format::kFloat32, Format::kFloat64, Format::kBFloat16, Format::kFloat16}) {
    for (Layout layout : {Layout::kDense, Layout::kStrided, Layout::kTransposed}) {
      run_squares(format, layout, nullptr);
      run_squares(format, layout, scale.get());
    }
  }
  std::printf("%lld elements, %lld of them unchanged\n", static_cast<long long>(elements),
              static_cast<long long>(unchanged));
}

// Parameter elements that were never written; or a gradient that ends before its tensor does.
void run_planted(std::string_view fault) {
  FixedOptions options{false};
  const HyperparametersOf<Sgd> hyper(Sgd::read(options));
  const Tensor param(3, 65, Layout::kDense, Format::kFloat32);
  Tensor grad(3, fault == "overrun" ? 64 : 65, Layout::kDense, Format::kFloat32);
  const TensorView param_view = param.view();
  TensorView grad_view = param_view;
  grad_view.data = grad.memory.get();
  if (fault == "uninitialised") {
    grad.memory.reset(static_cast<std::byte*>(std::malloc(3 * 65 * sizeof(float))));
    grad_view.data = grad.memory.get();
  }
  UpdateList list;
  list.clear(0);
  Update update;
  update.scalars = hyper.add_scalars(list, 1, false);
  const TensorView views[] = {param_view, grad_view};
  const Operand operands[] = {{.role = kParam}, {.access = Access::kRead, .role = kGrad}};
  list.add(update, views, operands);
  run(list);
  check(param);
}

}  // namespace
}  // namespace fusedopt

int main(int argc, char** argv) {
  if (argc > 1) {
    fusedopt::run_planted(argv[1]);
  } else {
    fusedopt::run_all();
  }
}
