// The plan of a step, fed and carried out without Python, torch or a real engine. Prints what
// happens; tests/native/test_plan.py knows what should.
#include "core/plan.h"
#include "core/rule_info.h"

#include <cstdio>
#include <stdexcept>

#include "fixed_options.h"

namespace fusedopt {
namespace {

// Says what it is asked to do.
class TalkingEngine final : public Engine {
 public:
  TalkingEngine(const char* name, bool is_asynchronous, bool fails)
      : name_(name), is_asynchronous_(is_asynchronous), fails_(fails) {}

  bool is_asynchronous() const override { return is_asynchronous_; }

  void prepare(const UpdateList& list, const Execution&, std::unique_ptr<EngineMemory>&) override {
    std::printf("%s prepares %zu updates in %zu rounds\n", name_, list.updates().size(),
                list.rounds().size());
  }

  void measure(SquareList& list, const Prologue&, const Execution&, std::unique_ptr<EngineMemory>&,
               std::span<ExactSum>) override {
    std::printf("%s measures %zu tensors\n", name_, list.tensors().size());
  }

  void run(const UpdateList& list, const Execution&, EngineMemory*) override {
    std::printf("%s runs %zu updates\n", name_, list.updates().size());
    if (fails_) throw std::runtime_error("launch failed");
  }

 private:
  const char* name_;
  bool is_asynchronous_, fails_;
};

constexpr Device kHost{DeviceType::kCpu, 0}, kGpu{DeviceType::kCuda, 0};
constexpr int64_t kSize = 8;

// Feeds parameters without states, each of one run of floats.
class Feeder {
 public:
  explicit Feeder(const float* grad_scale = nullptr) : grad_scale_(grad_scale) {}

  DeviceUpdates& add(StepPlan& plan, Engine& engine, const Device& device, float* param,
                     float* grad) {
    DeviceUpdates* list = plan.find(device);
    if (list == nullptr) list = &plan.begin(engine, {.device = device}, 0);
    list->updates.set_prologue({.grad_scale = grad_scale_, .found_inf = nullptr});
    const int64_t size = kSize, stride = 1;
    const auto view = [&](float* data) {
      return TensorView{.data = data,
                        .numel = size,
                        .sizes = &size,
                        .strides = &stride,
                        .ndim = 1,
                        .format = Format::kFloat32,
                        .device = device};
    };
    const TensorView views[] = {view(param), view(grad)};
    const Access of_grad = grad_scale_ == nullptr ? Access::kRead : Access::kReadWrite;
    const Operand operands[] = {{.role = kParam}, {.access = of_grad, .role = kGrad}};
    list->params.push_back(count_++);
    list->updates.add({}, views, operands);
    return *list;
  }

 private:
  const float* grad_scale_;
  uint32_t count_ = 0;
};

void print(const std::optional<PlanConflict>& conflict) {
  constexpr const char* kinds[] = {"repeated", "operands", "scaled"};
  if (!conflict) {
    std::printf("no conflict\n");
  } else {
    std::printf("%s: parameters %u and %u\n", kinds[conflict->kind], conflict->param,
                conflict->other);
  }
}

float memory[8 * kSize];
float* run_of(int index) { return memory + index * kSize; }

// A launch fails: nothing on that device and on later ones has happened.
void run_two_devices(bool gpu_fails) {
  StepPlan plan;
  TalkingEngine host("host", false, false), gpu("gpu", true, gpu_fails);
  Feeder feeder;
  float counts[] = {1, 1};
  DeviceUpdates& on_host = feeder.add(plan, host, kHost, run_of(0), run_of(1));
  DeviceUpdates& on_gpu = feeder.add(plan, gpu, kGpu, run_of(2), run_of(3));
  feeder.add(plan, host, kHost, run_of(4), run_of(5));
  plan.count_step(on_host, {&counts[0], NumberType::kFloat32, kHost}, 2);
  plan.count_step(on_gpu, {&counts[1], NumberType::kFloat32, kHost}, 2);
  print(plan.arrange([](uint32_t param) { return param; }));
  plan.prepare();
  std::printf("counts %g %g\n", counts[0], counts[1]);
  const std::exception_ptr failure = plan.run();
  plan.count_steps();
  std::printf("%s, counts %g %g\n", failure ? "failed" : "done", counts[0], counts[1]);
}

void find_conflicts() {
  const float scale = 2;
  const auto conflict_of = [&](float* second, float* second_grad, bool same, bool scaled) {
    StepPlan plan;
    TalkingEngine host("host", false, false);
    Feeder feeder(scaled ? &scale : nullptr);
    feeder.add(plan, host, kHost, run_of(0), run_of(1));
    feeder.add(plan, host, kHost, second, second_grad);
    print(plan.arrange([&](uint32_t param) { return same ? 0u : param; }));
    if (plan.lists().front()->updates.rounds().empty()) return;
    std::printf("%zu rounds\n", plan.lists().front()->updates.rounds().size());
  };
  conflict_of(run_of(2), run_of(3), false, false);
  conflict_of(run_of(0) + 1, run_of(3), false, false);  // overlapping parameters: two rounds
  conflict_of(run_of(0), run_of(1), true, false);
  conflict_of(run_of(2), run_of(2) + 1, false, false);
  conflict_of(run_of(2), run_of(1), false, false);  // one gradient is read twice
  conflict_of(run_of(2), run_of(1), false, true);   // and divided twice
}

// Parameters of a group with one count share scalars; another count has its own. Options are in the
// list of one device.
void share_scalars() {
  StepPlan plan;
  TalkingEngine host("host", false, false);
  FixedOptions options{false};
  const HyperparametersOf<Sgd> hyper(Sgd::read(options));
  DeviceUpdates& list = plan.begin(host, {.device = kHost}, 0);
  GroupScalars scalars;
  const uint32_t first = scalars.derived(hyper, list, 1, false);
  const bool is_shared = scalars.derived(hyper, list, 1, false) == first;
  const bool is_own = scalars.derived(hyper, list, 2, false) != first;
  std::printf("shared %d, own %d\n", is_shared, is_own);
  DeviceUpdates& other = plan.begin(host, {.device = kGpu}, 0);
  scalars.add_options({}, list);
  std::printf("options are there %d, in another list %d\n", scalars.options_in(list).has_value(),
              scalars.options_in(other).has_value());
  float counts[] = {1, 1};
  const auto add = [&](uint32_t param, const char* name, float& count) {
    plan.add_count({param, name}, {&count, NumberType::kFloat32, kHost});
  };
  add(3, "step", counts[0]);
  add(5, "step", counts[1]);
  std::printf("counts share memory %d\n", plan.shared_counts().has_value());
  add(5, "ema_step", counts[0]);
  const auto [earlier, later] = *plan.shared_counts();
  std::printf("%s of %u and %s of %u share memory\n", earlier.name, earlier.param, later.name,
              later.param);
}

}  // namespace
}  // namespace fusedopt

int main() {
  fusedopt::run_two_devices(false);
  fusedopt::run_two_devices(true);
  fusedopt::find_conflicts();
  fusedopt::share_scalars();
}
