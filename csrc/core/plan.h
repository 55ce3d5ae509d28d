// One optimizer step, as it will be carried out: which updates run on which device with which
// scalars, and which step counts follow. Whoever describes tensors feeds it; it knows no framework.
#pragma once

#include <algorithm>
#include <exception>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "core/engine.h"
#include "core/erased_rule.h"
#include "core/option.h"

namespace fusedopt {

// A number in the memory of some device.
struct NumberPlace {
  void* data;
  NumberType type;
  Device device;
};

// The updates of the parameters on one device. Kept from step to step, so that steps do not
// allocate.
struct DeviceUpdates {
  Engine* engine = nullptr;
  Execution execution;
  UpdateList updates;
  SquareList gradients;  // those to be measured
  std::unique_ptr<EngineMemory> memory;
  std::vector<uint32_t> params;  // of each update, by its source: the caller's number of it
  bool is_active = false;        // in this step
  bool is_done = false;          // its engine has run
};

// The scalars that most parameters of a group share, because they have the same step count.
class GroupScalars {
 public:
  // Those of a step count, in a list: the ones of the last call, or new ones.
  uint32_t derived(const Hyperparameters& hyper, DeviceUpdates& list, int64_t step, bool in_double);
  // The options themselves, for an engine that derives, if they are in the list already.
  std::optional<uint32_t> options_in(const DeviceUpdates& list) const;
  uint32_t add_options(std::span<const OptionValue> values, DeviceUpdates& list);

 private:
  struct Latest {
    const DeviceUpdates* list = nullptr;
    int64_t step = -1;
    uint32_t position = 0;
  };

  Latest latest_[2];  // by in_double
  Latest latest_options_;
};

// What no order of updates makes right. Parameters by the caller's numbers.
struct PlanConflict {
  enum Kind {
    kRepeated,  // both are one parameter
    kOperands,  // operands of one parameter share memory
    kScaled,    // gradients of two parameters, which a scale would divide twice, share memory
  };

  Kind kind;
  uint32_t param, other;
  int role = 0, other_role = 0;  // of the operands
};

// A count that belongs to a parameter, by the caller's number.
struct CountOf {
  uint32_t param;
  const char* name;
};

class StepPlan {
 public:
  // Forgets the step, but not what it has allocated.
  void clear();

  // The list of a device in this step, if it has one yet.
  DeviceUpdates* find(const Device& device);
  // Begins it, for a rule by its index. `execution` names the device.
  DeviceUpdates& begin(Engine& engine, const Execution& execution, unsigned rule);
  const std::vector<std::unique_ptr<DeviceUpdates>>& lists() const { return lists_; }

  // Where a count is, whoever counts.
  void add_count(const CountOf& count, const NumberPlace& place);
  // Has the host write a count when the list's engine has run.
  void count_step(const DeviceUpdates& list, const NumberPlace& place, int64_t value);

  // When all is fed: puts updates into an order. `identity(param)` is the same for one parameter
  // that is there twice.
  template <class Identity>
  std::optional<PlanConflict> arrange(Identity identity);
  // Two counts that share memory, the earlier first.
  std::optional<std::pair<CountOf, CountOf>> shared_counts();

  // Has engines reserve what they need; writes nothing.
  void prepare();
  // Adds the squares of the gradients to be measured to sums; writes nothing.
  void measure(std::span<ExactSum> sums) const;
  // The only list of the step, if the host need not wait for its device.
  DeviceUpdates* only_asynchronous() const;
  // Has its device decide on the gradients that are to be measured.
  static void decide(DeviceUpdates& list, const ClipOptions& options);
  // Has gradients multiplied by a factor ahead of everything else, but those of asynchronous
  // engines, which read it in the prologue's decision.
  void clip(double factor);
  // Runs the engines: asynchronous ones first, because a launch may fail; those that cannot, last.
  // Returns what an engine has thrown; lists say whether they are done.
  std::exception_ptr run();
  // Writes the step counts of the lists that are done.
  void count_steps() const;

 private:
  struct StepCount {
    const DeviceUpdates* list;
    NumberPlace place;
    int64_t value;
  };

  void run(bool asynchronous);

  std::vector<std::unique_ptr<DeviceUpdates>> lists_;  // nearly always one
  RangeSet count_places_;
  std::vector<CountOf> counts_;  // that are there
  std::vector<StepCount> step_counts_;
};

template <class Identity>
std::optional<PlanConflict> StepPlan::arrange(Identity identity) {
  for (const auto& list : lists_) {
    if (!list->is_active) continue;
    const std::optional<Conflict> conflict = list->updates.arrange();
    const auto sharing = list->updates.sharing();
    std::vector<std::pair<decltype(identity(0)), uint32_t>> seen;
    for (uint32_t source : sharing) {
      seen.emplace_back(identity(list->params[source]), list->params[source]);
    }
    std::sort(seen.begin(), seen.end());
    const auto repeated = std::adjacent_find(
        seen.begin(), seen.end(), [](const auto& a, const auto& b) { return a.first == b.first; });
    if (repeated != seen.end()) {
      return PlanConflict{PlanConflict::kRepeated, std::next(repeated)->second, repeated->second};
    }
    if (!conflict) continue;
    const bool is_of_one = conflict->source == conflict->other_source;
    return PlanConflict{is_of_one ? PlanConflict::kOperands : PlanConflict::kScaled,
                        list->params[conflict->source], list->params[conflict->other_source],
                        conflict->role, conflict->other_role};
  }
  return std::nullopt;
}

}  // namespace fusedopt
