#include "core/plan.h"

namespace fusedopt {

uint32_t GroupScalars::derived(const Hyperparameters& hyper, DeviceUpdates& list, int64_t step,
                               bool in_double) {
  Latest& latest = latest_[in_double];
  if (latest.step != step || latest.list != &list) {
    latest = {&list, step, hyper.add_scalars(list.updates, step, in_double)};
  }
  return latest.position;
}

std::optional<uint32_t> GroupScalars::options_in(const DeviceUpdates& list) const {
  if (latest_options_.list != &list) return std::nullopt;
  return latest_options_.position;
}

uint32_t GroupScalars::add_options(std::span<const OptionValue> values, DeviceUpdates& list) {
  latest_options_ = {&list, 0, list.updates.add(values)};
  return latest_options_.position;
}

void StepPlan::clear() {
  for (const auto& list : lists_) list->is_active = false;
  count_places_.clear();
  counts_.clear();
  step_counts_.clear();
}

DeviceUpdates* StepPlan::find(const Device& device) {
  for (const auto& list : lists_) {
    if (list->is_active && list->execution.device == device) return list.get();
  }
  return nullptr;
}

DeviceUpdates& StepPlan::begin(Engine& engine, const Execution& execution, unsigned rule) {
  DeviceUpdates* unused = nullptr;
  for (const auto& list : lists_) {
    const bool fits = list->engine == &engine && list->execution.device == execution.device;
    if (fits && !list->is_active) unused = list.get();
  }
  if (unused == nullptr) {
    unused = lists_.emplace_back(std::make_unique<DeviceUpdates>()).get();
    unused->engine = &engine;
  }
  unused->execution = execution;
  unused->updates.clear(rule);
  unused->gradients.clear();
  unused->params.clear();
  unused->is_active = true;
  unused->is_done = false;
  unused->execution.is_captured = engine.is_capturing(unused->execution);
  return *unused;
}

void StepPlan::add_count(const CountOf& count, const NumberPlace& place) {
  const auto* const begin = static_cast<const char*>(place.data);
  count_places_.add({begin, begin + size_of(place.type)});
  counts_.push_back(count);
}

void StepPlan::count_step(const DeviceUpdates& list, const NumberPlace& place, int64_t value) {
  step_counts_.push_back({&list, place, value});
}

std::optional<std::pair<CountOf, CountOf>> StepPlan::shared_counts() {
  const auto overlap = count_places_.find_overlap();
  if (!overlap) return std::nullopt;
  return std::pair{counts_[overlap->first], counts_[overlap->second]};
}

void StepPlan::prepare() {
  for (const auto& list : lists_) {
    if (list->is_active) list->engine->prepare(list->updates, list->execution, list->memory);
  }
}

void StepPlan::measure(std::span<ExactSum> sums) const {
  for (const auto& list : lists_) {
    if (!list->is_active) continue;
    list->engine->measure(list->gradients, list->updates.prologue(), list->execution, list->memory,
                          sums);
  }
}

DeviceUpdates* StepPlan::only_asynchronous() const {
  DeviceUpdates* found = nullptr;
  for (const auto& list : lists_) {
    if (!list->is_active) continue;
    if (found != nullptr || !list->engine->is_asynchronous()) return nullptr;
    found = list.get();
  }
  return found;
}

void StepPlan::decide(DeviceUpdates& list, const ClipOptions& options) {
  list.engine->decide(list.gradients, list.updates.prologue(), list.execution, list.memory,
                      options);
}

void StepPlan::clip(double factor) {
  for (const auto& list : lists_) {
    if (list->is_active && !list->engine->is_asynchronous()) list->updates.clip(factor);
  }
}

std::exception_ptr StepPlan::run() {
  try {
    run(true);
    run(false);
  } catch (...) {
    return std::current_exception();
  }
  return nullptr;
}

void StepPlan::run(bool asynchronous) {
  for (const auto& list : lists_) {
    if (!list->is_active || list->engine->is_asynchronous() != asynchronous) continue;
    list->engine->run(list->updates, list->execution, list->memory.get());
    list->is_done = true;
  }
}

void StepPlan::count_steps() const {
  for (const StepCount& count : step_counts_) {
    if (count.list->is_done) store_count(count.place.data, count.place.type, count.value);
  }
}

}  // namespace fusedopt
