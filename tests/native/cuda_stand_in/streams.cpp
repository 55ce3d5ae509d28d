#include "streams.h"

#include <map>

#include "graphs.h"
#include "runtime.h"

namespace fusedopt::stand_in {
namespace {

CUstream_st& default_stream(int device) {
  static std::map<int, CUstream_st*> by_device;
  CUstream_st*& stream = by_device[device];
  if (stream == nullptr) {
    stream = streams().add(std::make_unique<CUstream_st>(device, true, true));
  }
  return *stream;
}

CUevent_st* find_event(cudaEvent_t handle) {
  if (events().has(handle)) return handle;
  (void)violation("an event that does not exist", cudaErrorInvalidResourceHandle);
  return nullptr;
}

// A call about one event, which has to exist.
cudaError_t call_on(const char* name, cudaEvent_t handle,
                    const std::function<cudaError_t(CUevent_st&)>& body) {
  return call(name, [&]() -> cudaError_t {
    CUevent_st* const event = find_event(handle);
    return event == nullptr ? cudaErrorInvalidResourceHandle : body(*event);
  });
}

cudaError_t call_on(const char* name, cudaStream_t handle,
                    const std::function<cudaError_t(CUstream_st&)>& body) {
  return call(name, [&]() -> cudaError_t {
    CUstream_st* const stream = find_stream(handle);
    return stream == nullptr ? cudaErrorInvalidResourceHandle : body(*stream);
  });
}

// Nobody may ask about an event whose record is a part of a graph.
cudaError_t refuse_captured(const CUevent_st& event) {
  if (event.point.capture == nullptr) return refuse_unsafe_call();
  event.point.capture->is_valid = false;
  return cudaErrorCapturedEvent;
}

cudaError_t record(CUevent_st& event, CUstream_st& stream) {
  if (event.device != stream.device) {
    return violation("an event is recorded in a stream of another device",
                     cudaErrorInvalidResourceHandle);
  }
  if (const cudaError_t error = submit(stream, [] {})) return error;
  event.point = stream.point;
  if (stream.point.capture == nullptr) event.recorded = stream.last;
  return cudaSuccess;
}

cudaError_t wait(CUstream_st& stream, const CUevent_st& event) {
  if (stream.point.capture != nullptr || event.point.capture != nullptr) {
    return join(stream.point, event.point);
  }
  if (const cudaError_t error = refuse_implicit(stream)) return error;
  std::vector<OperationRef> before = queued_before(stream);
  before.push_back(event.recorded);
  stream.last = scheduler().add([] {}, std::move(before));
  return cudaSuccess;
}

}  // namespace

Handles<CUstream_st>& streams() {
  static Handles<CUstream_st> streams;
  return streams;
}

Handles<CUevent_st>& events() {
  static Handles<CUevent_st> events;
  return events;
}

CUstream_st* find_stream(cudaStream_t handle) {
  if (handle == nullptr || handle == cudaStreamLegacy) {
    return &default_stream(this_thread().device);
  }
  if (streams().has(handle)) return handle;
  (void)violation("a stream that does not exist", cudaErrorInvalidResourceHandle);
  return nullptr;
}

std::vector<OperationRef> queued_before(const CUstream_st& stream) {
  std::vector<OperationRef> before = {stream.last};
  if (stream.is_default) {  // destroyed streams finish their work, too
    for (const auto& other : streams().all()) {
      if (other->is_blocking && other->device == stream.device) before.push_back(other->last);
    }
  } else if (stream.is_blocking) {
    before.push_back(default_stream(stream.device).last);
  }
  return before;
}

cudaError_t submit(CUstream_st& stream, Work work) {
  if (stream.point.capture != nullptr) return capture(stream.point, std::move(work));
  if (const cudaError_t error = refuse_implicit(stream)) return error;
  stream.last = scheduler().add(std::move(work), queued_before(stream));
  return cudaSuccess;
}

void synchronize_device(int device) {
  for (const auto& stream : streams().all()) {
    if (stream->device == device) scheduler().run_until_done(stream->last);
  }
}

}  // namespace fusedopt::stand_in

using namespace fusedopt::stand_in;

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* to, unsigned int flags) {
  return call("cudaStreamCreateWithFlags", [&] {
    const bool is_blocking = flags != cudaStreamNonBlocking;
    *to = streams().add(std::make_unique<CUstream_st>(this_thread().device, false, is_blocking));
    return cudaSuccess;
  });
}

// What is queued in it is done all the same, later.
cudaError_t cudaStreamDestroy(cudaStream_t handle) {
  return call_on("cudaStreamDestroy", handle, [](CUstream_st& stream) {
    if (stream.is_default || stream.point.capture != nullptr) {
      return violation("a stream is destroyed that captures, or is the default one");
    }
    streams().remove(&stream);
    return cudaSuccess;
  });
}

cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
  return call_on("cudaStreamSynchronize", handle, [](CUstream_st& stream) {
    if (stream.point.capture != nullptr) {
      stream.point.capture->is_valid = false;
      return cudaErrorStreamCaptureUnsupported;
    }
    if (const cudaError_t error = refuse_unsafe_call()) return error;
    if (const cudaError_t error = refuse_implicit(stream)) return error;
    scheduler().run_until_done(stream.last);
    return cudaSuccess;
  });
}

cudaError_t cudaDeviceSynchronize() {
  return call("cudaDeviceSynchronize", [&] {
    if (const cudaError_t error = refuse_unsafe_call()) return error;
    synchronize_device(this_thread().device);
    return cudaSuccess;
  });
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* to, unsigned int) {
  return call("cudaEventCreateWithFlags", [&] {
    *to = events().add(std::make_unique<CUevent_st>(this_thread().device));
    return cudaSuccess;
  });
}

cudaError_t cudaEventDestroy(cudaEvent_t handle) {
  return call_on("cudaEventDestroy", handle, [](CUevent_st& event) {
    events().remove(&event);
    return cudaSuccess;
  });
}

cudaError_t cudaEventQuery(cudaEvent_t handle) {
  return call_on("cudaEventQuery", handle, [](CUevent_st& event) {
    if (const cudaError_t error = refuse_captured(event)) return error;
    const bool is_done = event.recorded == nullptr || event.recorded->is_done;
    return is_done ? cudaSuccess : cudaErrorNotReady;
  });
}

cudaError_t cudaEventSynchronize(cudaEvent_t handle) {
  return call_on("cudaEventSynchronize", handle, [](CUevent_st& event) {
    if (const cudaError_t error = refuse_captured(event)) return error;
    scheduler().run_until_done(event.recorded);
    return cudaSuccess;
  });
}

cudaError_t cudaEventRecord(cudaEvent_t handle, cudaStream_t stream_handle) {
  return call_on("cudaEventRecord", handle, [&](CUevent_st& event) {
    CUstream_st* const stream = find_stream(stream_handle);
    return stream == nullptr ? cudaErrorInvalidResourceHandle : record(event, *stream);
  });
}

cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event_handle, unsigned int) {
  return call_on("cudaStreamWaitEvent", handle, [&](CUstream_st& stream) {
    CUevent_st* const event = find_event(event_handle);
    return event == nullptr ? cudaErrorInvalidResourceHandle : wait(stream, *event);
  });
}
