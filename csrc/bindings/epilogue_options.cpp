#include "bindings/epilogue_options.h"

#include <cmath>

#include "bindings/group_options.h"

namespace fusedopt {
namespace {

PyObject* const kL1 = intern("l1");
PyObject* const kEmaDecay = intern("ema_decay");

}  // namespace

EpilogueOptions read_epilogue_options(PyObject* group, KeepAlive& keep) {
  EpilogueOptions options;
  if (PyObject* const l1 = find_item(group, kL1, keep)) {
    options.l1 = to_number(l1, "l1");
    const bool fits = options.l1 >= 0 && std::isfinite(options.l1);
    if (!fits) refuse_option("l1", l1, "finite and at least 0");
  }
  PyObject* const decay = find_item(group, kEmaDecay, keep);
  options.averages = decay != nullptr && decay != Py_None;
  if (options.averages) {
    options.ema_decay = to_number(decay, "ema_decay");
    const bool fits = !PyBool_Check(decay) && options.ema_decay >= 0 && options.ema_decay <= 1;
    if (!fits) refuse_option("ema_decay", decay, "None, or at least 0 and at most 1");
  }
  return options;
}

}  // namespace fusedopt
