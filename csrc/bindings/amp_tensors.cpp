#include "bindings/amp_tensors.h"

#include "core/refusal.h"

namespace fusedopt {

AmpScaling AmpTensors::on_device(const Device& device, PyObject* like, KeepAlive& keep) const {
  return {
      .grad_scale = scales() ? find(grad_scale_, "grad_scale", device, like, keep) : nullptr,
      .found_inf = may_skip() ? find(found_inf_, "found_inf", device, like, keep) : nullptr,
  };
}

bool AmpTensors::found_inf_on_host() const {
  if (!may_skip()) return false;
  const double value = PyFloat_AsDouble(found_inf_);
  if (value == -1.0 && PyErr_Occurred()) throw py::error_already_set();
  return value != 0;
}

const float* AmpTensors::find(PyObject* tensor, const char* name, const Device& device,
                              PyObject* like, KeepAlive& keep) const {
  auto place = torch_.is_tensor(tensor) ? torch_.find_number(tensor) : std::nullopt;
  if (!place || place->type != NumberType::kFloat32) {
    throw Refusal(Refusal::kType,
                  std::string(name) + " must be a float32 tensor of one element, or None");
  }
  if (place->device != device) {
    tensor = keep.steal(torch_.to_device(tensor, like).release().ptr());
    place = torch_.is_tensor(tensor) ? torch_.find_number(tensor) : std::nullopt;
    // Modes of torch, and whoever replaces its functions, may make anything of a copy.
    if (!place || place->type != NumberType::kFloat32 || place->device != device) {
      throw Refusal(Refusal::kType, std::string(name) +
                                        " is on another device than the parameters, and its copy "
                                        "there is no float32 tensor of one element");
    }
  }
  return static_cast<const float*>(place->data);
}

}  // namespace fusedopt
