// What carries out a list of updates on one kind of device.
#pragma once

#include "core/update_list.h"

namespace fusedopt {

class Engine {
 public:
  virtual ~Engine() = default;

  // Carries out every update of the list. The list has been validated: this writes.
  virtual void run(const UpdateList& list, int max_threads) = 0;
};

Engine& cpu_engine();

}  // namespace fusedopt
