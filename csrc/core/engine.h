// What carries out a list of updates on one kind of device.
#pragma once

#include <memory>
#include <span>

#include "core/decision.h"
#include "core/square_list.h"
#include "core/update_list.h"

namespace fusedopt {

// How the caller wants it done.
struct Execution {
  Device device;
  void* stream = nullptr;    // of a GPU: the caller's current one
  bool is_captured = false;  // into a graph
  int max_threads = 1;       // of a CPU
};

// What an engine keeps from step to step.
class EngineMemory {
 public:
  virtual ~EngineMemory() = default;
};

class Engine {
 public:
  virtual ~Engine() = default;

  // Whether it works while the host goes on, which then cannot look into the device's memory: step
  // counts, options and the finding of a gradient scaler that are there are read by the kernel.
  virtual bool is_asynchronous() const = 0;

  // Whether the work is being recorded, to be repeated later.
  virtual bool is_capturing(const Execution&) const { return false; }

  // Reserves everything that run() needs, and writes nothing. `memory` is null in the first step;
  // what it is then made is passed to every run(), also of later steps.
  virtual void prepare(const UpdateList&, const Execution&, std::unique_ptr<EngineMemory>&) {}

  // Adds the squares of tensors, unscaled as run() unscales gradients, to sums that the host has
  // when this returns. Reads only, and may throw. `memory` is that of prepare().
  virtual void measure(SquareList&, const Prologue&, const Execution&,
                       std::unique_ptr<EngineMemory>& memory, std::span<ExactSum>) = 0;

  // Of an asynchronous engine: the same for a single sum, from which the device itself decides. The
  // prologue's decision is there for a run() that follows.
  virtual void decide(SquareList&, const Prologue&, const Execution&,
                      std::unique_ptr<EngineMemory>&, const ClipOptions&) {}

  // Carries out every update of the list, round by round. The list has been validated, arranged
  // and prepared: this writes. An engine that is not asynchronous does not fail here.
  virtual void run(const UpdateList& list, const Execution& execution, EngineMemory* memory) = 0;
};

Engine& cpu_engine();

}  // namespace fusedopt
