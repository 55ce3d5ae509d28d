// Streams and events.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <vector>

#include "handles.h"
#include "operations.h"

namespace fusedopt::stand_in {

struct Capture;

// Where in a capture a stream or an event is: the nodes after which the next one comes.
struct CapturePoint {
  std::shared_ptr<Capture> capture;  // null: it captures nothing
  std::vector<size_t> after;
};

}  // namespace fusedopt::stand_in

// The names are CUDA's.
struct CUstream_st {
  int device;
  bool is_default;
  bool is_blocking;  // waits for the default stream, as that waits for it
  fusedopt::stand_in::OperationRef last;
  fusedopt::stand_in::CapturePoint point;
};

struct CUevent_st {
  int device;
  fusedopt::stand_in::OperationRef recorded;  // null: never, so it counts as done
  fusedopt::stand_in::CapturePoint point;     // where it was recorded in a capture
};

namespace fusedopt::stand_in {

Handles<CUstream_st>& streams();
Handles<CUevent_st>& events();

// The stream of a handle, or null after noting that there is none. 0 is the default stream of the
// current device.
CUstream_st* find_stream(cudaStream_t handle);

// Appends work to a stream or, while it captures, to the graph.
cudaError_t submit(CUstream_st& stream, Work work);

// What work that is queued in a stream now comes after.
std::vector<OperationRef> queued_before(const CUstream_st& stream);

void synchronize_device(int device);

// An error for a call that is not allowed while a stream captures, and an end to the captures that
// it disturbs.
cudaError_t refuse_unsafe_call();

}  // namespace fusedopt::stand_in
