#include "cuda/launch_memory.h"

#include <algorithm>
#include <bit>
#include <mutex>
#include <string>
#include <vector>

#include "core/reduction.h"
#include "cuda/check.h"

namespace fusedopt::cuda {
namespace {

constexpr size_t kSmallest = 64 * 1024;
// Ahead of each table: the counter and the sum, whose sizes keep what follows aligned.
constexpr size_t kArrivalsSize = 256, kSumSize = 768, kZerosSize = kArrivalsSize + kSumSize;
static_assert(sizeof(ExactSum) <= kSumSize);

// How many are allocated together: a host that runs several steps ahead of the GPU has as many
// tables under way.
constexpr size_t kTogether = 8;

// While any stream captures, CUDA refuses calls that are harmless here, such as an allocation.
class RelaxedCapture {
 public:
  RelaxedCapture() { check(exchange(), "relaxing the mode of capture"); }
  ~RelaxedCapture() { ignore(exchange()); }
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;

 private:
  cudaError_t exchange() { return cudaThreadExchangeStreamCaptureMode(&mode_); }

  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

// A stream that waits for no other and that no other waits for.
class PrivateStream {
 public:
  PrivateStream() {
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "creating a stream");
  }
  ~PrivateStream() { ignore(cudaStreamDestroy(stream_)); }
  PrivateStream(const PrivateStream&) = delete;
  PrivateStream& operator=(const PrivateStream&) = delete;

  cudaStream_t get() const { return stream_; }
  void wait(const char* what) const { check(cudaStreamSynchronize(stream_), what); }

 private:
  cudaStream_t stream_ = nullptr;
};

// Several of one capacity, in one piece of memory of either side. Never freed.
class Slab {
 public:
  explicit Slab(size_t capacity) : stride_(kZerosSize + capacity) {
    const size_t size = kTogether * stride_;
    const std::string what = "allocating " + std::to_string(size) + " bytes for tables";
    try {
      check(cudaMalloc(&device_, size), what.c_str());
      check(cudaHostAlloc(&host_, size, cudaHostAllocDefault), what.c_str());
      const PrivateStream stream;
      check(cudaMemsetAsync(device_, 0, size, stream.get()), "clearing counters");
      stream.wait("waiting for cleared counters");
      for (cudaEvent_t& event : events_) {
        check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "creating an event");
      }
    } catch (...) {
      for (cudaEvent_t event : events_) {
        if (event != nullptr) ignore(cudaEventDestroy(event));
      }
      if (device_ != nullptr) ignore(cudaFree(device_));
      if (host_ != nullptr) ignore(cudaFreeHost(host_));
      throw;
    }
  }

  std::unique_ptr<LaunchMemory> take(size_t index) const {
    auto memory = std::make_unique<LaunchMemory>();
    memory->finished = events_[index];
    std::byte* const device = static_cast<std::byte*>(device_) + index * stride_;
    memory->arrivals = reinterpret_cast<uint32_t*>(device);
    memory->sum = reinterpret_cast<int64_t*>(device + kArrivalsSize);
    memory->device = device + kZerosSize;
    memory->host = static_cast<std::byte*>(host_) + index * stride_;
    memory->capacity = stride_ - kZerosSize;
    return memory;
  }

 private:
  size_t stride_;
  void* device_ = nullptr;
  void* host_ = nullptr;
  cudaEvent_t events_[kTogether] = {};
};

bool is_finished(const LaunchMemory& memory) {
  const cudaError_t status = cudaEventQuery(memory.finished);
  ignore(status);
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
    const Slab slab(std::max(kSmallest, std::bit_ceil(capacity)));
    for (size_t m = 0; m < kTogether; ++m) all_.push_back(slab.take(m));
    all_.back()->is_held = true;
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

ReuseWhenDone::~ReuseWhenDone() {
  if (memory_ == nullptr) return;
  const cudaError_t error = cudaEventRecord(memory_->finished, stream_);
  ignore(error);
  // Nobody would ever know when it is done: it is lost.
  if (error != cudaSuccess) (void)memory_.release();
  memory_ = nullptr;
}

void upload_now(HeldMemory& memory, size_t size) {
  const RelaxedCapture relaxed;
  const PrivateStream stream;
  check(cudaMemcpyAsync(memory->device, memory->host, size, cudaMemcpyHostToDevice, stream.get()),
        "copying a launch's table");
  try {
    stream.wait("waiting for a launch's table");
  } catch (...) {
    (void)memory.release();
    throw;
  }
}

void give_to_graph(HeldMemory memory, cudaStream_t stream) {
  cudaStreamCaptureStatus status;
  unsigned long long id;
  cudaGraph_t graph;
  const char* const asking = "asking for the captured graph";
  check(cudaStreamGetCaptureInfo(stream, &status, &id, &graph), asking);
  if (status != cudaStreamCaptureStatusActive) fail(cudaErrorStreamCaptureInvalidated, asking);
  // CUDA calls this when the graph is gone. It may not call CUDA, so nothing is freed but given
  // back.
  const auto give_back = [](void* held) { GiveBack{}(static_cast<LaunchMemory*>(held)); };
  cudaUserObject_t object;
  const char* const leaving = "leaving a launch's table to a graph";
  check(cudaUserObjectCreate(&object, memory.get(), give_back, 1, cudaUserObjectNoDestructorSync),
        leaving);
  (void)memory.release();  // the object gives it back from now on
  const cudaError_t error = cudaGraphRetainUserObject(graph, object, 1, cudaGraphUserObjectMove);
  if (error == cudaSuccess) return;
  ignore(cudaUserObjectRelease(object, 1));
  fail(error, leaving);
}

}  // namespace fusedopt::cuda
