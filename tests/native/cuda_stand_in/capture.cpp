// What is recorded instead of done, and which calls that forbids.
#include <algorithm>
#include <set>

#include "graphs.h"
#include "runtime.h"

namespace fusedopt::stand_in {
namespace {

bool is_ours(const Capture& capture) { return capture.thread == std::this_thread::get_id(); }

// Whether the mode of this thread, and that of a capture, forbid unsafe calls.
bool forbids_unsafe_calls(const Capture& capture) {
  switch (this_thread().capture_mode) {
    case cudaStreamCaptureModeRelaxed: return false;
    case cudaStreamCaptureModeThreadLocal: break;
    default:
      if (capture.mode == cudaStreamCaptureModeGlobal) return true;
  }
  return is_ours(capture) && capture.mode != cudaStreamCaptureModeRelaxed;
}

// All nodes before those of a point, and they themselves.
std::set<size_t> nodes_until(const CapturePoint& point) {
  std::vector<size_t> open = point.after;
  std::set<size_t> found;
  while (!open.empty()) {
    const size_t node = open.back();
    open.pop_back();
    if (!found.insert(node).second) continue;
    const auto& after = point.capture->graph->body->nodes[node].after;
    open.insert(open.end(), after.begin(), after.end());
  }
  return found;
}

bool is_joined(const Capture& capture) {
  const std::set<size_t> joined = nodes_until(capture.origin->point);
  const auto& all = streams().all();
  return std::all_of(all.begin(), all.end(), [&](const auto& stream) {
    const auto& after = stream->point.after;
    return stream->point.capture.get() != &capture ||
           std::all_of(after.begin(), after.end(), [&](size_t n) { return joined.contains(n); });
  });
}

// An invalid capture gives no graph.
cudaError_t end(CUstream_st& stream, cudaGraph_t* to) {
  const std::shared_ptr<Capture> capture = stream.point.capture;
  *to = nullptr;
  if (capture == nullptr || capture->origin != &stream) return cudaErrorStreamCaptureUnmatched;
  if (capture->mode != cudaStreamCaptureModeRelaxed && !is_ours(*capture)) {
    return cudaErrorStreamCaptureWrongThread;
  }
  const cudaError_t error = !capture->is_valid     ? cudaErrorStreamCaptureInvalidated
                            : !is_joined(*capture) ? cudaErrorStreamCaptureUnjoined
                                                   : cudaSuccess;
  for (const auto& other : streams().all()) {
    if (other->point.capture == capture) other->point = {};
  }
  capture->is_over = true;
  if (error == cudaSuccess) {
    *to = capture->graph;
  } else {
    capture->graph->body = nullptr;
    graphs().remove(capture->graph);
  }
  return error;
}

cudaStreamCaptureStatus status_of(const CUstream_st& stream) {
  const Capture* const capture = stream.point.capture.get();
  if (capture == nullptr) return cudaStreamCaptureStatusNone;
  return capture->is_valid ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusInvalidated;
}

// Whether a blocking stream of the same device captures.
bool would_wait_for_capture(const CUstream_st& stream) {
  const auto& all = streams().all();
  return stream.is_default && std::any_of(all.begin(), all.end(), [&](const auto& other) {
           return other->is_blocking && other->device == stream.device &&
                  other->point.capture != nullptr;
         });
}

}  // namespace

cudaError_t capture(CapturePoint& point, Work work) {
  if (!point.capture->is_valid) return cudaErrorStreamCaptureInvalidated;
  auto& nodes = point.capture->graph->body->nodes;
  nodes.push_back({std::move(work), point.after});
  point.after = {nodes.size() - 1};
  return cudaSuccess;
}

cudaError_t join(CapturePoint& stream, const CapturePoint& event) {
  if (event.capture != nullptr && event.capture->is_over) return cudaErrorCapturedEvent;
  if (stream.capture == nullptr) {
    stream = event;
    return cudaSuccess;
  }
  if (stream.capture != event.capture) {
    stream.capture->is_valid = false;
    return event.capture == nullptr ? cudaErrorStreamCaptureIsolation : cudaErrorStreamCaptureMerge;
  }
  stream.after.insert(stream.after.end(), event.after.begin(), event.after.end());
  return cudaSuccess;
}

cudaError_t refuse_implicit(const CUstream_st& stream) {
  if (!would_wait_for_capture(stream)) return cudaSuccess;
  for (const auto& other : streams().all()) {
    const bool is_disturbed = other->is_blocking && other->device == stream.device;
    if (is_disturbed && other->point.capture != nullptr) other->point.capture->is_valid = false;
  }
  return cudaErrorStreamCaptureImplicit;
}

cudaError_t refuse_unsafe_call() {
  cudaError_t error = cudaSuccess;
  for (const auto& stream : streams().all()) {
    Capture* const capture = stream->point.capture.get();
    if (capture == nullptr || !forbids_unsafe_calls(*capture)) continue;
    capture->is_valid = false;
    error = cudaErrorStreamCaptureUnsupported;
  }
  return error;
}

}  // namespace fusedopt::stand_in

using namespace fusedopt::stand_in;

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
  return call("cudaStreamBeginCapture", [&]() -> cudaError_t {
    CUstream_st* const stream = find_stream(handle);
    if (stream == nullptr) return cudaErrorInvalidResourceHandle;
    if (stream->is_default) return cudaErrorStreamCaptureUnsupported;
    if (stream->point.capture != nullptr) return cudaErrorInvalidValue;
    const cudaGraph_t graph =
        graphs().add(std::make_unique<CUgraph_st>(stream->device, std::make_unique<Body>()));
    stream->point.capture =
        std::make_shared<Capture>(graph, stream, mode, std::this_thread::get_id());
    return cudaSuccess;
  });
}

cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* to) {
  return call("cudaStreamEndCapture", [&]() -> cudaError_t {
    CUstream_st* const stream = find_stream(handle);
    return stream == nullptr ? cudaErrorInvalidResourceHandle : end(*stream, to);
  });
}

cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus* to) {
  return call("cudaStreamIsCapturing", [&]() -> cudaError_t {
    CUstream_st* const stream = find_stream(handle);
    if (stream == nullptr) return cudaErrorInvalidResourceHandle;
    if (would_wait_for_capture(*stream)) return cudaErrorStreamCaptureImplicit;
    *to = status_of(*stream);
    return cudaSuccess;
  });
}

#if CUDART_VERSION >= 13000
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t handle, cudaStreamCaptureStatus* status,
                                     unsigned long long* id, cudaGraph_t* graph,
                                     const cudaGraphNode_t**, const cudaGraphEdgeData**, size_t*) {
#else
cudaError_t cudaStreamGetCaptureInfo_v2(cudaStream_t handle, cudaStreamCaptureStatus* status,
                                        unsigned long long* id, cudaGraph_t* graph,
                                        const cudaGraphNode_t**, size_t*) {
#endif
  return call("cudaStreamGetCaptureInfo", [&]() -> cudaError_t {
    CUstream_st* const stream = find_stream(handle);
    if (stream == nullptr) return cudaErrorInvalidResourceHandle;
    if (would_wait_for_capture(*stream)) return cudaErrorStreamCaptureImplicit;
    *status = status_of(*stream);
    if (*status != cudaStreamCaptureStatusActive) return cudaSuccess;
    if (id != nullptr) *id = reinterpret_cast<uintptr_t>(stream->point.capture.get());
    if (graph != nullptr) *graph = stream->point.capture->graph;
    return cudaSuccess;
  });
}

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  return call("cudaThreadExchangeStreamCaptureMode", [&] {
    std::swap(*mode, this_thread().capture_mode);
    return cudaSuccess;
  });
}
