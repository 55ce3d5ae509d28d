#include "operations.h"

#include <algorithm>
#include <set>

#include "runtime.h"

namespace fusedopt::stand_in {
namespace {

// An operation and all that has to be done before it, as far as that is not done.
std::vector<OperationRef> needed_for(const OperationRef& operation) {
  std::vector<OperationRef> needed = {operation};
  std::set<const Operation*> seen = {operation.get()};
  for (size_t n = 0; n < needed.size(); ++n) {
    const auto before = needed[n]->before;
    for (const OperationRef& earlier : before) {
      if (!earlier->is_done && seen.insert(earlier.get()).second) needed.push_back(earlier);
    }
  }
  return needed;
}

}  // namespace

bool Operation::is_runnable() const {
  return !is_done && std::all_of(before.begin(), before.end(),
                                 [](const OperationRef& earlier) { return earlier->is_done; });
}

void Scheduler::set(Policy policy, unsigned seed) {
  policy_ = policy;
  generator_.seed(seed);
  eagerness_ = std::uniform_real_distribution(0.05, 0.9)(generator_);
}

OperationRef Scheduler::add(Work work, std::vector<OperationRef> before) {
  std::erase_if(before, [](const OperationRef& o) { return o == nullptr || o->is_done; });
  return pending_.emplace_back(
      std::make_shared<Operation>(std::move(work), std::move(before), false));
}

bool Scheduler::is_heads(double probability) {
  return std::bernoulli_distribution(probability)(generator_);
}

void Scheduler::run_by_chance() {
  if (policy_ != Policy::kRandom) return;
  while (is_heads(eagerness_) && run_one_of(pending_)) continue;
}

void Scheduler::run_until_done(const OperationRef& operation) {
  if (operation == nullptr || operation->is_done) return;
  std::vector<OperationRef> needed = needed_for(operation);
  while (run_one_of(needed)) {
    std::erase_if(needed, [](const OperationRef& o) { return o->is_done; });
  }
}

void Scheduler::run_all() {
  while (run_one_of(pending_)) continue;
}

bool Scheduler::run_one_of(const std::vector<OperationRef>& candidates) {
  std::vector<OperationRef> runnable;
  std::copy_if(candidates.begin(), candidates.end(), std::back_inserter(runnable),
               [](const OperationRef& o) { return o->is_runnable(); });
  if (runnable.empty()) return false;
  const size_t last = runnable.size() - 1;
  run(runnable[std::uniform_int_distribution<size_t>(0, last)(generator_)]);
  return true;
}

void Scheduler::run(const OperationRef& operation) {
  std::erase(pending_, operation);
  try {
    operation->work();
  } catch (const std::exception& error) {
    (void)violation(error.what());
  }
  operation->is_done = true;
  operation->before.clear();
  operation->work = nullptr;
}

Scheduler& scheduler() {
  static Scheduler scheduler;
  return scheduler;
}

}  // namespace fusedopt::stand_in
