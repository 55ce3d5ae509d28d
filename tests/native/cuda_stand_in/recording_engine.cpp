#include "recording_engine.h"

#include <optional>
#include <span>
#include <stdexcept>

#include "core/rule_info.h"
#include "cuda/engine.h"
#include "footprint.h"
#include "launches.h"
#include "runtime.h"

namespace fusedopt::stand_in {
namespace {

// What torch takes for a GPU's is there already.
Execution on_gpu(Execution execution) {
  if (execution.device.type == DeviceType::kCuda) return execution;
  execution.device.index = place_of_steps().device;
  execution.stream = place_of_steps().stream;
  return execution;
}

// Keeps what it reads, in the order in which a rule does.
class OrderedOptions {
 public:
  explicit OrderedOptions(const NamedOptions& named) : named_(named) {}

  double number(const char* name) { return keep(name, 0); }
  double non_negative(const char* name) { return keep(name, 0); }
  double rate(const char* name) { return keep(name, 0); }
  double below_one(const char* name, int index, int) { return keep(name, index); }
  bool flag(const char* name) { return keep(name, 0) != 0; }

  std::span<const OptionValue> values() const { return values_; }

 private:
  double keep(const char* name, int index) {
    return values_.emplace_back(named_.at(name).at(static_cast<size_t>(index))).value;
  }

  const NamedOptions& named_;
  std::vector<OptionValue> values_;
};

template <class Rule>
uint32_t add_options_of(const NamedOptions& named, UpdateList& list) {
  OrderedOptions options(named);
  (void)Rule::read(options);
  return list.add(options.values());
}

struct AddOptions {
  template <class Rule>
  auto operator()() const {
    return &add_options_of<Rule>;
  }
};

// Changes the list, which is const to engines alone. The options are added once: they take room in
// the table.
void leave_options(const LeftOptions& left, const UpdateList& list) {
  static const auto add = AllRules::map(AddOptions{});
  std::optional<uint32_t> position;
  for (const Update& update : list.updates()) {
    if (!left.params.contains(list.operands(update)[kParam].data)) continue;
    if (!position) position = add[list.rule()](left.options, const_cast<UpdateList&>(list));
    auto& changed = const_cast<Update&>(update);
    changed.derives = true;
    changed.scalars = *position;
    if (auto* const epilogue = const_cast<Epilogue*>(list.epilogue(update))) {
      const auto l1 = left.options.find("l1");
      epilogue->l1_threshold = l1 == left.options.end() ? 0 : l1->second.front().value;
    }
  }
  if (!position) throw std::logic_error("options are left for parameters that are not stepped");
}

class RecordingEngine final : public Engine {
 public:
  bool is_asynchronous() const override { return cuda_engine().is_asynchronous(); }

  bool is_capturing(const Execution& execution) const override {
    return cuda_engine().is_capturing(on_gpu(execution));
  }

  void prepare(const UpdateList& list, const Execution& execution,
               std::unique_ptr<EngineMemory>& memory) override {
    for (const LeftOptions& left : left_options()) leave_options(left, list);
    cuda_engine().prepare(list, on_gpu(execution), memory);
  }

  void decide(SquareList& list, const Prologue& prologue, const Execution& execution,
              std::unique_ptr<EngineMemory>& memory, const ClipOptions& options) override {
    announced() = {footprint_of(list, prologue, 1)};
    cuda_engine().decide(list, prologue, on_gpu(execution), memory, options);
  }

  void measure(SquareList& list, const Prologue& prologue, const Execution& execution,
               std::unique_ptr<EngineMemory>& memory, std::span<ExactSum> sums) override {
    announced() = {footprint_of(list, {.grad_scale = prologue.grad_scale}, sums.size())};
    cuda_engine().measure(list, prologue, on_gpu(execution), memory, sums);
  }

  void run(const UpdateList& list, const Execution& execution, EngineMemory* memory) override {
    announced().clear();
    for (const Round& round : list.rounds()) {
      if (is_launched(list, round)) announced().push_back(footprint_of(list, round));
    }
    cuda_engine().run(list, on_gpu(execution), memory);
    if (!announced().empty()) (void)violation("a round without a launch");
  }
};

}  // namespace

Place& place_of_steps() {
  thread_local Place place;
  return place;
}

std::vector<LeftOptions>& left_options() {
  static std::vector<LeftOptions> options;
  return options;
}

Engine& recording_engine() {
  static RecordingEngine engine;
  return engine;
}

}  // namespace fusedopt::stand_in
