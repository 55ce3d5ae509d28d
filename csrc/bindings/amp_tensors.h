// What torch.amp.GradScaler hands to an optimizer: the scale of the gradients and whether it has
// found an infinity or NaN in them, each a float32 tensor of one element, or None.
#pragma once

#include "bindings/torch_tensors.h"
#include "core/prologue.h"

namespace fusedopt {

class AmpTensors {
 public:
  AmpTensors(PyObject* grad_scale, PyObject* found_inf, const TorchTensors& torch)
      : grad_scale_(grad_scale), found_inf_(found_inf), torch_(torch) {}

  bool scales() const { return grad_scale_ != Py_None; }
  bool may_skip() const { return found_inf_ != Py_None; }

  // Where a device has them, which may mean a copy to it. `like` is a tensor on the device.
  // The second says that torch has copied something, which it does once for each device.
  std::pair<Prologue, bool> on_device(const Device& device, PyObject* like, KeepAlive& keep);

  // Whether something was found. The second says that the device which has found it was waited for.
  std::pair<bool, bool> found_inf_on_host();

 private:
  struct Copy {
    PyObject* of;
    Device device;
    PyObject* tensor;
  };

  const float* find(PyObject* tensor, const char* name, const Device& device, PyObject* like,
                    KeepAlive& keep);

  PyObject* grad_scale_;
  PyObject* found_inf_;
  const TorchTensors& torch_;
  std::vector<Copy> copies_;
  std::optional<bool> fetched_;
};

}  // namespace fusedopt
