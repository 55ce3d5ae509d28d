// The CUDA engine, for tensors that torch takes for the CPU's.
#pragma once

#include <cstdint>
#include <map>
#include <optional>

#include "core/engine.h"

namespace fusedopt::stand_in {

// On which device and stream the steps of this thread run.
struct Place {
  int device = 0;
  void* stream = nullptr;
};
Place& place_of_steps();

// Options that a kernel reads in the device's memory, a float32 each, by the order in which a rule
// reads its options. The library itself leaves none that torch has on the CPU to a device.
std::map<uint32_t, const void*>& left_options();

// Or all of them, as numbers of one type, where they are such numbers. They are there until the
// next step is prepared.
std::optional<NumberType>& left_numbers();

// Announces what each launch may touch before the engine queues it.
Engine& recording_engine();

}  // namespace fusedopt::stand_in
