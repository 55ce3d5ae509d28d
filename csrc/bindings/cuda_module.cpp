// The module fusedopt._cuda: the CUDA engine, apart from the rest so that a package without it
// stays small and one with it can be imported where there is no driver.
#include <cuda_runtime_api.h>

#include "bindings/engines.h"
#include "cuda/check.h"
#include "cuda/engine.h"

namespace fusedopt {
namespace {

int device_count() {
  int count = 0;
  cuda::check(cudaGetDeviceCount(&count), "asking for devices");
  return count;
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "The CUDA engine of fusedopt, which the native module loads when it is first needed.";
  m.attr("engine") = py::capsule(&cuda_engine(), kEngineCapsule);
  m.attr("toolkit") =
      std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10);
  m.attr("architectures") = FUSEDOPT_CUDA_ARCHITECTURES;
  m.def("device_count", &device_count,
        "Raises RuntimeError with CUDA's words if none can be used.");
}

}  // namespace fusedopt
