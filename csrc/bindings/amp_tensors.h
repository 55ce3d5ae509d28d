// What torch.amp.GradScaler hands to an optimizer: the scale of the gradients and whether it has
// found an infinity or NaN in them, each a float32 tensor of one element, or None.
#pragma once

#include "bindings/torch_tensors.h"
#include "core/update_list.h"

namespace fusedopt {

class AmpTensors {
 public:
  AmpTensors(PyObject* grad_scale, PyObject* found_inf, const TorchTensors& torch)
      : grad_scale_(grad_scale), found_inf_(found_inf), torch_(torch) {}

  bool scales() const { return grad_scale_ != Py_None; }
  bool may_skip() const { return found_inf_ != Py_None; }

  // Where a device has them, which may mean a copy to it. `like` is a tensor on the device.
  AmpScaling on_device(const Device& device, PyObject* like, KeepAlive& keep) const;

  // Waits for the device that has found it, if that is not the CPU.
  bool found_inf_on_host() const;

 private:
  const float* find(PyObject* tensor, const char* name, const Device& device, PyObject* like,
                    KeepAlive& keep) const;

  PyObject* grad_scale_;
  PyObject* found_inf_;
  const TorchTensors& torch_;
};

}  // namespace fusedopt
