// Capture, graphs, and the user objects that live as long as graphs do.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <thread>
#include <vector>

#include "streams.h"

// The name is CUDA's.
struct CUuserObject_st {
  int device;
  void* pointer;
  cudaHostFn_t destroy;
  unsigned references;  // of all that hold it
  unsigned of_creator;  // those among them that no graph holds
};

namespace fusedopt::stand_in {

struct Node {
  Work work;
  std::vector<size_t> after;  // other nodes
};

// What a graph and everything that is instantiated from it have in common.
struct Body {
  std::vector<Node> nodes;
  std::vector<cudaUserObject_t> retained;  // one entry a reference

  Body() = default;
  Body(const Body& other);
  Body& operator=(const Body&) = delete;
  ~Body();
};

}  // namespace fusedopt::stand_in

// The names are CUDA's.
struct CUgraph_st {
  int device;
  std::unique_ptr<fusedopt::stand_in::Body> body;
};

struct CUgraphExec_st {
  int device;
  // Of the launches that are not done, too.
  std::shared_ptr<const fusedopt::stand_in::Body> body;
  fusedopt::stand_in::OperationRef last;  // launches of one come one after the other
};

namespace fusedopt::stand_in {

struct Capture {
  cudaGraph_t graph;
  CUstream_st* origin;
  cudaStreamCaptureMode mode;
  std::thread::id thread;
  bool is_valid = true;
  bool is_over = false;
};

// Appends a node to a capture.
cudaError_t capture(CapturePoint& point, Work work);

// Has a stream wait for an event, one or both of which are in a capture.
cudaError_t join(CapturePoint& stream, const CapturePoint& event);

// An error for work in the default stream while a stream captures that it would have to wait for.
cudaError_t refuse_implicit(const CUstream_st& stream);

// Calls the destructors of objects that nobody holds any more, in a thread of its own.
void destroy_user_objects();

Handles<CUgraph_st>& graphs();
Handles<CUgraphExec_st>& execs();
Handles<CUuserObject_st>& user_objects();

}  // namespace fusedopt::stand_in
