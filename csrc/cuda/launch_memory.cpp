#include "cuda/launch_memory.h"

#include <algorithm>
#include <array>
#include <bit>
#include <mutex>
#include <string>
#include <vector>

#include "cuda/check.h"

namespace fusedopt::cuda {
namespace {

constexpr size_t kSmallest = 64 * 1024;
constexpr size_t kArrivalsSize = 256;  // keeps what follows aligned

// While any stream captures, CUDA refuses calls that are harmless here, such as an allocation.
class RelaxedCapture {
 public:
  RelaxedCapture() { exchange(); }
  ~RelaxedCapture() { exchange(); }
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;

 private:
  void exchange() { (void)cudaThreadExchangeStreamCaptureMode(&mode_); }

  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

// A stream that waits for no other and that no other waits for.
class PrivateStream {
 public:
  PrivateStream() {
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "creating a stream");
  }
  ~PrivateStream() { (void)cudaStreamDestroy(stream_); }
  PrivateStream(const PrivateStream&) = delete;
  PrivateStream& operator=(const PrivateStream&) = delete;

  cudaStream_t get() const { return stream_; }
  void wait() const { check(cudaStreamSynchronize(stream_), "waiting for a copy"); }

 private:
  cudaStream_t stream_ = nullptr;
};

void release(LaunchMemory& memory) {
  if (memory.finished != nullptr) (void)cudaEventDestroy(memory.finished);
  if (memory.arrivals != nullptr) (void)cudaFree(memory.arrivals);
  if (memory.host != nullptr) (void)cudaFreeHost(memory.host);
}

void allocate(LaunchMemory& memory, size_t capacity) {
  const std::string what = "allocating " + std::to_string(capacity) + " bytes for a launch's table";
  memory.capacity = capacity;
  void* device;
  check(cudaMalloc(&device, kArrivalsSize + capacity), what);
  memory.arrivals = static_cast<uint32_t*>(device);
  memory.device = static_cast<std::byte*>(device) + kArrivalsSize;
  check(cudaHostAlloc(reinterpret_cast<void**>(&memory.host), capacity, cudaHostAllocDefault),
        what);
  check(cudaEventCreateWithFlags(&memory.finished, cudaEventDisableTiming), "creating an event");
  const PrivateStream stream;
  check(cudaMemsetAsync(memory.arrivals, 0, kArrivalsSize, stream.get()), "clearing a counter");
  stream.wait();
}

bool is_finished(const LaunchMemory& memory) {
  const cudaError_t status = cudaEventQuery(memory.finished);
  if (status == cudaErrorNotReady) (void)cudaGetLastError();
  return status == cudaSuccess;
}

// The memory of one device. Never destroyed: at the end of the process CUDA may be gone before it.
class Pool {
 public:
  HeldMemory hold(size_t capacity) {
    const std::lock_guard lock(mutex_);
    const RelaxedCapture relaxed;
    for (const auto& memory : all_) {
      if (memory->capacity >= capacity && !memory->is_held.load(std::memory_order_acquire) &&
          is_finished(*memory)) {
        memory->is_held = true;
        return HeldMemory(memory.get());
      }
    }
    auto memory = std::make_unique<LaunchMemory>();
    try {
      allocate(*memory, std::max(kSmallest, std::bit_ceil(capacity)));
    } catch (...) {
      release(*memory);
      throw;
    }
    memory->is_held = true;
    all_.push_back(std::move(memory));
    return HeldMemory(all_.back().get());
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<LaunchMemory>> all_;
};

Pool& pool_of(int device) {
  static auto* const mutex = new std::mutex;
  static auto* const pools = new std::vector<std::unique_ptr<Pool>>;
  const std::lock_guard lock(*mutex);
  while (pools->size() <= static_cast<size_t>(device)) pools->push_back(std::make_unique<Pool>());
  return *(*pools)[static_cast<size_t>(device)];
}

}  // namespace

HeldMemory hold_memory(int device, size_t capacity) { return pool_of(device).hold(capacity); }

void upload_now(const LaunchMemory& memory, size_t size) {
  const RelaxedCapture relaxed;
  const PrivateStream stream;
  check(cudaMemcpyAsync(memory.device, memory.host, size, cudaMemcpyHostToDevice, stream.get()),
        "copying a launch's table");
  stream.wait();
}

void give_to_graph(HeldMemory memory, cudaStream_t stream) {
  cudaStreamCaptureStatus status;
  unsigned long long id;
  cudaGraph_t graph;
  check(cudaStreamGetCaptureInfo(stream, &status, &id, &graph), "asking for the captured graph");
  // CUDA calls this when the graph is gone. It may not call CUDA, so nothing is freed but given
  // back.
  const auto give_back = [](void* held) { GiveBack{}(static_cast<LaunchMemory*>(held)); };
  cudaUserObject_t object;
  check(cudaUserObjectCreate(&object, memory.get(), give_back, 1, cudaUserObjectNoDestructorSync),
        "leaving a launch's table to a graph");
  (void)memory.release();  // the object gives it back from now on
  check(cudaGraphRetainUserObject(graph, object, 1, cudaGraphUserObjectMove),
        "leaving a launch's table to a graph");
}

}  // namespace fusedopt::cuda
