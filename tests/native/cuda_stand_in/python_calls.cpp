#include "python_calls.h"

#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

namespace fusedopt::stand_in {
namespace {

template <class Handle>
Handle as(Address address) {
  return static_cast<Handle>(pointer_to(address));
}

// Without the GIL, which whoever runs a launch may want.
template <class... Parameters, class... Arguments>
cudaError_t without_gil(cudaError_t (*function)(Parameters...), Arguments... arguments) {
  const py::gil_scoped_release release;
  return function(arguments...);
}

template <class... Parameters, class... Arguments>
void require(cudaError_t (*function)(Parameters...), Arguments... arguments) {
  const cudaError_t error = without_gil(function, arguments...);
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorName(error));
}

// The handle or address that a function writes to its first argument.
template <class Handle, class... Parameters, class... Arguments>
Address result_of(cudaError_t (*function)(Handle*, Parameters...), Arguments... arguments) {
  Handle handle = nullptr;
  require(function, &handle, arguments...);
  return address_of(handle);
}

cudaError_t begin_capture(cudaStream_t stream, const std::string& mode) {
  return cudaStreamBeginCapture(stream, mode == "global"   ? cudaStreamCaptureModeGlobal
                                        : mode == "thread" ? cudaStreamCaptureModeThreadLocal
                                                           : cudaStreamCaptureModeRelaxed);
}

void define_memory(py::module_& m) {
  m.def("malloc", [](size_t size) {
    return result_of<void*>(static_cast<cudaError_t (*)(void**, size_t)>(&cudaMalloc), size);
  });
  m.def("free", [](Address address) { require(&cudaFree, pointer_to(address)); });
  m.def("host_alloc", [](size_t size) { return result_of<void*>(&cudaHostAlloc, size, 0u); });
  m.def("free_host", [](Address address) { require(&cudaFreeHost, pointer_to(address)); });
  m.def("upload", [](Address to, Address from, size_t size, Address stream) {
    require(&cudaMemcpyAsync, pointer_to(to), pointer_to(from), size, cudaMemcpyHostToDevice,
            as<cudaStream_t>(stream));
  });
  m.def("memset", [](Address at, int value, size_t size, Address stream) {
    require(&cudaMemsetAsync, pointer_to(at), value, size, as<cudaStream_t>(stream));
  });
}

void define_streams(py::module_& m) {
  m.def("stream_create", [](bool is_blocking) {
    return result_of<cudaStream_t>(&cudaStreamCreateWithFlags,
                                   is_blocking ? cudaStreamDefault : cudaStreamNonBlocking);
  });
  m.def("stream_destroy",
        [](Address stream) { require(&cudaStreamDestroy, as<cudaStream_t>(stream)); });
  m.def("stream_synchronize",
        [](Address stream) { require(&cudaStreamSynchronize, as<cudaStream_t>(stream)); });
  m.def("stream_wait_event", [](Address stream, Address event) {
    require(&cudaStreamWaitEvent, as<cudaStream_t>(stream), as<cudaEvent_t>(event), 0u);
  });
  m.def("event_create",
        [] { return result_of<cudaEvent_t>(&cudaEventCreateWithFlags, cudaEventDisableTiming); });
  m.def("event_destroy", [](Address event) { require(&cudaEventDestroy, as<cudaEvent_t>(event)); });
  m.def("event_record", [](Address event, Address stream) {
    require(&cudaEventRecord, as<cudaEvent_t>(event), as<cudaStream_t>(stream));
  });
  m.def("event_query", [](Address event) { require(&cudaEventQuery, as<cudaEvent_t>(event)); });
  m.def("event_synchronize",
        [](Address event) { require(&cudaEventSynchronize, as<cudaEvent_t>(event)); });
}

void define_graphs(py::module_& m) {
  m.def("begin_capture", [](Address stream, const std::string& mode) {
    require(&begin_capture, as<cudaStream_t>(stream), mode);
  });
  m.def("end_capture", [](Address stream) {
    cudaGraph_t graph = nullptr;
    require(&cudaStreamEndCapture, as<cudaStream_t>(stream), &graph);
    return address_of(graph);
  });
  m.def("graph_instantiate", [](Address graph) {
    return result_of<cudaGraphExec_t>(&cudaGraphInstantiate, as<cudaGraph_t>(graph), 0ull);
  });
  m.def("graph_launch", [](Address exec, Address stream) {
    require(&cudaGraphLaunch, as<cudaGraphExec_t>(exec), as<cudaStream_t>(stream));
  });
  m.def("exec_destroy",
        [](Address exec) { require(&cudaGraphExecDestroy, as<cudaGraphExec_t>(exec)); });
  m.def("graph_destroy", [](Address graph) { require(&cudaGraphDestroy, as<cudaGraph_t>(graph)); });
}

}  // namespace

void define_calls(py::module_& m) {
  define_memory(m);
  define_streams(m);
  define_graphs(m);
  m.def("set_device", [](int device) { require(&cudaSetDevice, device); });
  m.def("get_device", [] {
    int device = 0;
    require(&cudaGetDevice, &device);
    return device;
  });
  m.def("device_synchronize", [] { require(&cudaDeviceSynchronize); });
  m.def("take_last_error", [] { return std::string(cudaGetErrorName(cudaGetLastError())); });
  m.def("restore_capture_mode", [] {  // of this thread; says whether it was another
    auto mode = cudaStreamCaptureModeGlobal;
    require(&cudaThreadExchangeStreamCaptureMode, &mode);
    return mode != cudaStreamCaptureModeGlobal;
  });
}

}  // namespace fusedopt::stand_in
