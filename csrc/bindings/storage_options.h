// The options of a parameter group that say how its parameters and states are stored.
#pragma once

#include <cstdint>

#include "bindings/python.h"
#include "core/format.h"
#include "rules/shared.h"

namespace fusedopt {

struct StorageOptions {
  int state_bits = 0;  // 32, 16 or 8; 0: states keep the format that they have
  bool stochastic_rounding = false;
  bool master_weights = false;
  uint64_t seed = 0;

  // Whether parameters and states are stored in the formats that they have.
  bool is_usual() const { return state_bits == 0 && !stochastic_rounding && !master_weights; }

  // Whether rounding draws random bits, for which steps have to be counted.
  bool draws_random_bits() const { return stochastic_rounding || state_bits == 16; }

  // How a parameter whose elements are of this format is stored. Throws Refusal if the options do
  // not fit it.
  Format of_param(Format format) const;
  // The same for a state of a parameter of `elements` on all processes. `format` is a float's; or
  // kUnsigned8 for codes, which have scales.
  Format of_state(const StateInfo& state, Format format, bool has_scales, int64_t elements) const;
};

// Throws Refusal if an option is out of bounds, or if two exclude each other.
StorageOptions read_storage_options(PyObject* group, KeepAlive& keep);

}  // namespace fusedopt
