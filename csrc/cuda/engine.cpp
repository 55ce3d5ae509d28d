#include "cuda/engine.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "cuda/check.h"
#include "cuda/kernels.h"
#include "cuda/launch_memory.h"
#include "cuda/launch_plan.h"

namespace fusedopt {
namespace cuda {
namespace {

// Makes a device the current one for as long as it lives.
class CurrentDevice {
 public:
  explicit CurrentDevice(int device) {
    check(cudaGetDevice(&before_), "asking for the current device");
    if (before_ == device) return;
    check(cudaSetDevice(device), "selecting the parameters' device");
    is_changed_ = true;
  }
  ~CurrentDevice() {
    if (is_changed_) ignore(cudaSetDevice(before_));
  }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  int before_ = 0;
  bool is_changed_ = false;
};

cudaStream_t stream_of(const Execution& execution) {
  return static_cast<cudaStream_t>(execution.stream);
}

struct Launch {
  LaunchPlan plan;
  HeldMemory memory;  // null where the table is small and no step is counted

  bool overflows() const { return plan.storage() == LaunchPlan::Storage::kOverflow; }
};

struct Memory final : EngineMemory {
  std::vector<Launch> launches;
  size_t count = 0;  // of them in this step; the others keep their memory for a later one
  alignas(Table<kLargeTable>) std::byte table[sizeof(Table<kLargeTable>)];
};

class CudaEngine final : public Engine {
 public:
  bool is_asynchronous() const override { return true; }

  bool is_capturing(const Execution& execution) const override {
    cudaStreamCaptureStatus status;
    const CurrentDevice current(execution.device.index);
    check(cudaStreamIsCapturing(stream_of(execution), &status), "asking whether a stream captures");
    return status != cudaStreamCaptureStatusNone;
  }

  void prepare(const UpdateList& list, const Execution& execution,
               std::unique_ptr<EngineMemory>& memory) override {
    if (memory == nullptr) memory = std::make_unique<Memory>();
    auto& [launches, count, table] = static_cast<Memory&>(*memory);
    const CurrentDevice current(execution.device.index);
    count = list.rounds().size();
    if (launches.size() < count) launches.resize(count);
    for (size_t l = 0; l < count; ++l) {
      Launch& launch = launches[l];
      launch.plan.build(list, list.rounds()[l]);
      launch.memory = nullptr;
      if (!launch.overflows() && !launch.plan.counts_steps()) continue;
      const auto& sections = launch.plan.sections();
      const size_t capacity = launch.overflows() ? sections.size() : 0;
      launch.memory = hold_memory(execution.device.index, capacity);
      std::copy_n(sections.begin(), capacity, launch.memory->host);
    }
  }

  void run(const UpdateList& list, const Execution& execution,
           EngineMemory* engine_memory) override {
    auto& memory = static_cast<Memory&>(*engine_memory);
    const CurrentDevice current(execution.device.index);
    for (size_t l = 0; l < memory.count; ++l) {
      Launch& launch = memory.launches[l];
      if (launch.plan.blocks() == 0) continue;
      write_table(launch, memory.table);
      if (execution.is_captured) {
        leave_memory(launch, stream_of(execution));
        queue(list.rule(), launch.plan, execution, memory.table);
      } else {
        const ReuseWhenDone reuse(launch.memory, stream_of(execution));
        if (launch.overflows()) upload(launch, stream_of(execution));
        queue(list.rule(), launch.plan, execution, memory.table);
      }
    }
  }

 private:
  static void write_table(const Launch& launch, std::byte* table) {
    const std::byte* const overflow = launch.overflows() ? launch.memory->device : nullptr;
    uint32_t* const arrivals = launch.memory == nullptr ? nullptr : launch.memory->arrivals;
    if (launch.plan.storage() == LaunchPlan::Storage::kLarge) {
      launch.plan.write(*reinterpret_cast<Table<kLargeTable>*>(table), overflow, arrivals);
    } else {
      launch.plan.write(*reinterpret_cast<Table<kSmallTable>*>(table), overflow, arrivals);
    }
  }

  // To the graph, before it has the kernel: it may not replay one whose table it does not keep. The
  // table is copied now, so that no replay has to.
  static void leave_memory(Launch& launch, cudaStream_t stream) {
    if (launch.overflows()) upload_now(launch.memory, launch.plan.sections().size());
    if (launch.memory != nullptr) give_to_graph(std::move(launch.memory), stream);
  }

  static void upload(const Launch& launch, cudaStream_t stream) {
    check(cudaMemcpyAsync(launch.memory->device, launch.memory->host, launch.plan.sections().size(),
                          cudaMemcpyHostToDevice, stream),
          "copying a launch's table");
  }

  static void queue(unsigned rule, const LaunchPlan& plan, const Execution& execution,
                    std::byte* table) {
    void* arguments[] = {table};
    const uint32_t blocks = plan.blocks();
    const KernelKind kind = plan.kernel(plan.storage());
    const cudaError_t error = cudaLaunchKernel(kernel_of(rule, kind), dim3(blocks), dim3(kThreads),
                                               arguments, 0, stream_of(execution));
    if (error == cudaSuccess) return;
    fail(error, "launching " + std::to_string(blocks) + " blocks of " + std::to_string(kThreads) +
                    " threads on device " + std::to_string(execution.device.index));
  }
};

}  // namespace
}  // namespace cuda

Engine& cuda_engine() {
  static cuda::CudaEngine engine;
  return engine;
}

}  // namespace fusedopt
