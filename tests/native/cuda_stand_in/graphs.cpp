#include "graphs.h"

#include <utility>

#include "runtime.h"

namespace fusedopt::stand_in {
namespace {

std::vector<cudaUserObject_t>& unreferenced() {
  static std::vector<cudaUserObject_t> objects;
  return objects;
}

void release(cudaUserObject_t object, unsigned count) {
  object->references -= count;
  if (object->references > 0) return;
  user_objects().remove(object);
  unreferenced().push_back(object);
}

// Queues all of a graph's nodes, and what holds the graph until they are done.
void queue(CUgraphExec_st& exec, CUstream_st& stream) {
  std::vector<OperationRef> before = queued_before(stream);
  before.push_back(exec.last);
  std::vector<OperationRef> all = {scheduler().add([] {}, std::move(before))};
  const OperationRef begin = all.front();
  for (const Node& node : exec.body->nodes) {
    std::vector<OperationRef> after = {begin};
    for (size_t n : node.after) after.push_back(all[1 + n]);
    all.push_back(scheduler().add(node.work, std::move(after)));
  }
  exec.last = stream.last = scheduler().add([body = exec.body] {}, std::move(all));
}

template <class T>
cudaError_t call_on(const char* name, Handles<T>& handles, T* handle,
                    const std::function<cudaError_t(T&)>& body) {
  return call(name, [&]() -> cudaError_t {
    if (handles.has(handle)) return body(*handle);
    return violation(std::string(name) + " of what does not exist");
  });
}

}  // namespace

Body::Body(const Body& other) : nodes(other.nodes), retained(other.retained) {
  for (cudaUserObject_t object : retained) ++object->references;
}

Body::~Body() {
  for (cudaUserObject_t object : retained) release(object, 1);
}

void destroy_user_objects() {
  while (!unreferenced().empty()) {
    const cudaUserObject_t object = unreferenced().back();
    unreferenced().pop_back();
    std::thread([object] {
      this_thread().may_call = false;
      object->destroy(object->pointer);
    }).join();
  }
}

Handles<CUgraph_st>& graphs() {
  static Handles<CUgraph_st> graphs;
  return graphs;
}

Handles<CUgraphExec_st>& execs() {
  static Handles<CUgraphExec_st> execs;
  return execs;
}

Handles<CUuserObject_st>& user_objects() {
  static Handles<CUuserObject_st> objects;
  return objects;
}

}  // namespace fusedopt::stand_in

using namespace fusedopt::stand_in;

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* to, cudaGraph_t handle, unsigned long long) {
  return call_on<CUgraph_st>("cudaGraphInstantiate", graphs(), handle, [&](CUgraph_st& graph) {
    *to = execs().add(std::make_unique<CUgraphExec_st>(
        graph.device, std::make_shared<const Body>(*graph.body), nullptr));
    return cudaSuccess;
  });
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t handle, cudaStream_t stream_handle) {
  return call_on<CUgraphExec_st>("cudaGraphLaunch", execs(), handle,
                                 [&](CUgraphExec_st& exec) -> cudaError_t {
                                   CUstream_st* const stream = find_stream(stream_handle);
                                   if (stream == nullptr) return cudaErrorInvalidResourceHandle;
                                   if (stream->point.capture != nullptr)
                                     return cudaErrorStreamCaptureUnsupported;
                                   if (const cudaError_t error = refuse_implicit(*stream))
                                     return error;
                                   queue(exec, *stream);
                                   return cudaSuccess;
                                 });
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t handle) {
  return call_on<CUgraphExec_st>("cudaGraphExecDestroy", execs(), handle, [](CUgraphExec_st& exec) {
    exec.body = nullptr;
    execs().remove(&exec);
    return cudaSuccess;
  });
}

cudaError_t cudaGraphDestroy(cudaGraph_t handle) {
  return call_on<CUgraph_st>("cudaGraphDestroy", graphs(), handle, [](CUgraph_st& graph) {
    graph.body = nullptr;
    graphs().remove(&graph);
    return cudaSuccess;
  });
}

cudaError_t cudaUserObjectCreate(cudaUserObject_t* to, void* pointer, cudaHostFn_t destroy,
                                 unsigned int references, unsigned int flags) {
  return call("cudaUserObjectCreate", [&] {
    if (flags != cudaUserObjectNoDestructorSync || references == 0) return cudaErrorInvalidValue;
    *to = user_objects().add(std::make_unique<CUuserObject_st>(this_thread().device, pointer,
                                                               destroy, references, references));
    return cudaSuccess;
  });
}

cudaError_t cudaUserObjectRelease(cudaUserObject_t handle, unsigned int count) {
  return call_on<CUuserObject_st>("cudaUserObjectRelease", user_objects(), handle,
                                  [&](CUuserObject_st& object) {
                                    if (count > object.of_creator)
                                      return violation("references are released that nobody has");
                                    object.of_creator -= count;
                                    release(&object, count);
                                    return cudaSuccess;
                                  });
}

cudaError_t cudaGraphRetainUserObject(cudaGraph_t handle, cudaUserObject_t object_handle,
                                      unsigned int count, unsigned int flags) {
  return call("cudaGraphRetainUserObject", [&] {
    if (!graphs().has(handle) || !user_objects().has(object_handle)) {
      return violation("cudaGraphRetainUserObject of what does not exist");
    }
    CUuserObject_st& object = *object_handle;
    const bool moves = flags == cudaGraphUserObjectMove;
    if (moves && count > object.of_creator) {
      return violation("references are moved that nobody has");
    }
    (moves ? object.of_creator -= count : object.references += count);
    handle->body->retained.insert(handle->body->retained.end(), count, object_handle);
    return cudaSuccess;
  });
}
