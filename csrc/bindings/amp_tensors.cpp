#include "bindings/amp_tensors.h"

#include <algorithm>

#include "core/refusal.h"

namespace fusedopt {

std::pair<Prologue, bool> AmpTensors::on_device(const Device& device, PyObject* like,
                                                KeepAlive& keep) {
  const size_t copies_before = copies_.size();
  const Prologue prologue = {
      .grad_scale = scales() ? find(grad_scale_, "grad_scale", device, like, keep) : nullptr,
      .found_inf = may_skip() ? find(found_inf_, "found_inf", device, like, keep) : nullptr,
  };
  return {prologue, copies_.size() > copies_before};
}

std::pair<bool, bool> AmpTensors::found_inf_on_host() {
  if (const auto place = torch_.find_number(found_inf_)) {
    if (place->device.type == DeviceType::kCpu) {
      return {load_number(place->data, place->type) != 0, false};
    }
  }
  const bool has_waited = !fetched_;
  if (!fetched_) {
    const double value = PyFloat_AsDouble(found_inf_);
    if (value == -1.0 && PyErr_Occurred()) throw py::error_already_set();
    fetched_ = value != 0;
  }
  return {*fetched_, has_waited};
}

const float* AmpTensors::find(PyObject* tensor, const char* name, const Device& device,
                              PyObject* like, KeepAlive& keep) {
  const auto copy = std::find_if(copies_.begin(), copies_.end(), [&](const Copy& candidate) {
    return candidate.of == tensor && candidate.device == device;
  });
  PyObject* local = copy != copies_.end() ? copy->tensor : tensor;
  auto place = torch_.is_tensor(local) ? torch_.find_number(local) : std::nullopt;
  if (place && place->device != device) {
    local = keep.steal(torch_.to_device(tensor, like).release().ptr());
    copies_.push_back({tensor, device, local});
    place = torch_.is_tensor(local) ? torch_.find_number(local) : std::nullopt;
    // Modes of torch, and whoever replaces its functions, may make anything of a copy.
    if (!place || place->type != NumberType::kFloat32 || place->device != device) {
      throw Refusal(Refusal::kType, std::string(name) +
                                        " is on another device than the parameters, and its copy "
                                        "there is no float32 tensor of one element");
    }
  }
  if (!place || place->type != NumberType::kFloat32) {
    throw Refusal(Refusal::kType,
                  std::string(name) + " must be a float32 tensor of one element, or None");
  }
  return static_cast<const float*>(place->data);
}

}  // namespace fusedopt
