#include "bindings/engines.h"

#include "core/refusal.h"

namespace fusedopt {
namespace {

Engine* on_cpu = &cpu_engine();

Engine& from_capsule(const py::object& capsule) {
  auto* const engine = PyCapsule_GetPointer(capsule.ptr(), kEngineCapsule);
  if (engine == nullptr) throw py::error_already_set();
  return *static_cast<Engine*>(engine);
}

}  // namespace

Engine& cuda_engine_of_module() {
  try {
    return from_capsule(py::module_::import("fusedopt._cuda").attr("engine"));
  } catch (py::error_already_set& error) {
    if (!error.matches(PyExc_ModuleNotFoundError)) throw;
  }
  throw Refusal(
      Refusal::kNotImplemented,
      "this fusedopt was built without CUDA, which a parameter on a GPU needs: build it where "
      "nvcc is found, with  pip install . --config-settings=cmake.define.FUSEDOPT_CUDA=ON");
}

Engine& engine_for(const Device& device) {
  switch (device.type) {
    case DeviceType::kCpu: return *on_cpu;
    case DeviceType::kCuda: {
      static Engine& engine = cuda_engine_of_module();
      return engine;
    }
    case DeviceType::kOther: break;
  }
  throw Refusal(Refusal::kNotImplemented,
                "the parameter is on a device for which fusedopt has no engine");
}

void use_engine_on_cpu(const py::object& capsule) {
  on_cpu = capsule.is_none() ? &cpu_engine() : &from_capsule(capsule);
}

}  // namespace fusedopt
