// The work that has been queued and not yet done, and who decides when it is done.
#pragma once

#include <functional>
#include <memory>
#include <random>
#include <vector>

namespace fusedopt::stand_in {

using Work = std::function<void()>;

struct Operation {
  Work work;
  std::vector<std::shared_ptr<Operation>> before;  // what has to be done first; empty once done
  bool is_done = false;

  bool is_runnable() const;
};
using OperationRef = std::shared_ptr<Operation>;

enum class Policy {
  kLatest,  // only when somebody waits for it
  kRandom,  // at any call, by chance
  kAtOnce,  // before the call that queues it returns
};

// Of the operations that may run it chooses by chance which one does, so that a seed is an order.
class Scheduler {
 public:
  void set(Policy policy, unsigned seed);

  // `before` may have null entries.
  OperationRef add(Work work, std::vector<OperationRef> before);
  // Does what may be done at a call that waits for nothing.
  void run_by_chance();
  // Does an operation, which may be null, and nothing that it need not come after.
  void run_until_done(const OperationRef& operation);
  void run_all();

  size_t pending() const { return pending_.size(); }
  // The same for every choice that depends on the seed.
  bool is_heads(double probability);
  std::mt19937& generator() { return generator_; }
  Policy policy() const { return policy_; }

 private:
  bool run_one_of(const std::vector<OperationRef>& candidates);
  void run(const OperationRef& operation);

  Policy policy_ = Policy::kLatest;
  double eagerness_ = 0;
  std::mt19937 generator_;
  std::vector<OperationRef> pending_;  // in the order of the calls
};

Scheduler& scheduler();

}  // namespace fusedopt::stand_in
