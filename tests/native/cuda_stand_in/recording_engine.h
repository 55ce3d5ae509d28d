// The CUDA engine, for tensors that torch takes for the CPU's.
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "core/engine.h"
#include "core/option.h"

namespace fusedopt::stand_in {

// On which device and stream the steps of this thread run.
struct Place {
  int device = 0;
  void* stream = nullptr;
};
Place& place_of_steps();

// The options of a parameter group by name, several where one is a tuple. Those with a source are
// in the device's memory.
using NamedOptions = std::map<std::string, std::vector<OptionValue>>;

// Options from which kernels derive the scalars of some parameters, which are named by address. The
// library itself leaves none that torch has on the CPU to a device. If the rule counts steps, the
// device has to count them.
struct LeftOptions {
  std::set<const void*> params;
  NamedOptions options;
};
std::vector<LeftOptions>& left_options();

// Announces what each launch may touch before the engine queues it.
Engine& recording_engine();

}  // namespace fusedopt::stand_in
