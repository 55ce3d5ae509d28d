#include "cuda/engine.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "core/refusal.h"
#include "cuda/check.h"
#include "cuda/kernels.h"
#include "cuda/launch_memory.h"
#include "cuda/launch_plan.h"
#include "cuda/square_plan.h"

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

  bool overflows() const { return plan.storage() == Storage::kOverflow; }
};

// A kernel with its parameter, and how much of the memory beside it holds a table.
struct Queued {
  const void* kernel;
  uint32_t blocks;
  unsigned threads;
  void* parameter;
  size_t table_size = 0;
};

void upload(const Queued& launch, const LaunchMemory& memory, cudaStream_t stream) {
  if (launch.table_size == 0) return;
  check(cudaMemcpyAsync(memory.device, memory.host, launch.table_size, cudaMemcpyHostToDevice,
                        stream),
        "copying a launch's table");
}

void launch_kernel(const Queued& launch, const Execution& execution) {
  void* arguments[] = {launch.parameter};
  const cudaError_t error = cudaLaunchKernel(
      launch.kernel, dim3(launch.blocks), dim3(launch.threads), arguments, 0, stream_of(execution));
  if (error == cudaSuccess) return;
  fail(error, "launching " + std::to_string(launch.blocks) + " blocks of " +
                  std::to_string(launch.threads) + " threads on device " +
                  std::to_string(execution.device.index));
}

// Leaves the memory, which may be null, to the launch.
void queue(const Queued& launch, HeldMemory& memory, const Execution& execution) {
  const cudaStream_t stream = stream_of(execution);
  if (execution.is_captured) {
    // To the graph, before it has the kernel: it may not replay one whose table it does not keep.
    // The table is copied now, so that no replay has to.
    if (launch.table_size > 0) upload_now(memory, launch.table_size);
    if (memory != nullptr) give_to_graph(std::move(memory), stream);
    return launch_kernel(launch, execution);
  }
  const ReuseWhenDone reuse(memory, stream);
  if (memory != nullptr) upload(launch, *memory, stream);
  launch_kernel(launch, execution);
}

struct Memory final : EngineMemory {
  std::vector<Launch> launches;
  size_t count = 0;  // of them in this step; the others keep their memory for a later one
  SquarePlan squares;
  alignas(Table<kLargeTable>) std::byte table[sizeof(Table<kLargeTable>)];
};

Memory& memory_of(std::unique_ptr<EngineMemory>& memory) {
  if (memory == nullptr) memory = std::make_unique<Memory>();
  return static_cast<Memory&>(*memory);
}

// Writes the parameter of a launch whose table is of a plan. Whether the table is a large one.
template <class Header>
bool write_table(const TablePlan<Header>& plan, const LaunchMemory* memory, std::byte* to) {
  const bool overflows = plan.storage() == Storage::kOverflow;
  const std::byte* const overflow = overflows ? memory->device : nullptr;
  uint32_t* const arrivals = memory == nullptr ? nullptr : memory->arrivals;
  const bool is_large = plan.storage() == Storage::kLarge;
  if (is_large) {
    plan.write(*reinterpret_cast<Table<kLargeTable, Header>*>(to), overflow, arrivals);
  } else {
    plan.write(*reinterpret_cast<Table<kSmallTable, Header>*>(to), overflow, arrivals);
  }
  return is_large;
}

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
    auto& [launches, count, squares, table] = memory_of(memory);
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
      (void)write_table(launch.plan, launch.memory.get(), memory.table);
      const KernelKind kind = launch.plan.kernel(launch.plan.storage());
      queue({.kernel = kernel_of(list.rule(), kind),
             .blocks = launch.plan.blocks(),
             .threads = kThreads,
             .parameter = memory.table,
             .table_size = launch.overflows() ? launch.plan.sections().size() : 0},
            launch.memory, execution);
    }
  }

  void decide(SquareList& list, const Prologue& prologue, const Execution& execution,
              std::unique_ptr<EngineMemory>& engine_memory, const ClipOptions& options) override {
    Memory& memory = memory_of(engine_memory);
    const CurrentDevice current(execution.device.index);
    memory.squares.build(list, prologue, options);
    HeldMemory held = hold_memory(execution.device.index, table_size(memory.squares));
    memory.squares.set_sums(held->sum);
    const Queued launch = queued(memory, *held);
    queue(launch, held, execution);
  }

  void measure(SquareList& list, const Prologue& prologue, const Execution& execution,
               std::unique_ptr<EngineMemory>& engine_memory, std::span<ExactSum> sums) override {
    if (execution.is_captured) {
      throw Refusal(Refusal::kRuntime,
                    "a CUDA graph cannot capture the norm of gradients on several devices, or of "
                    "parameters that are cut up over ranks, because the host adds the sums");
    }
    Memory& memory = memory_of(engine_memory);
    const CurrentDevice current(execution.device.index);
    memory.squares.build(list, {.grad_scale = prologue.grad_scale}, {});
    // Behind the table, if that is there.
    const size_t sums_at = (table_size(memory.squares) + alignof(ExactSum) - 1) /
                           alignof(ExactSum) * alignof(ExactSum);
    HeldMemory held = hold_memory(execution.device.index, sums_at + sums.size_bytes());
    auto* const on_device = reinterpret_cast<int64_t*>(held->device + sums_at);
    memory.squares.set_sums(on_device);
    const cudaStream_t stream = stream_of(execution);
    const Queued launch = queued(memory, *held);
    auto* const found = reinterpret_cast<const ExactSum*>(held->host + sums_at);
    const ReuseWhenDone reuse(held, stream);
    check(cudaMemsetAsync(on_device, 0, sums.size_bytes(), stream), "clearing sums of squares");
    upload(launch, *held, stream);
    launch_kernel(launch, execution);
    check(cudaMemcpyAsync(held->host + sums_at, on_device, sums.size_bytes(),
                          cudaMemcpyDeviceToHost, stream),
          "fetching sums of squares");
    check(cudaStreamSynchronize(stream), "waiting for sums of squares");
    for (size_t s = 0; s < sums.size(); ++s) sums[s].add(found[s]);
  }

 private:
  // What the plan of squares takes of the memory beside its launch.
  static size_t table_size(const SquarePlan& plan) {
    return plan.storage() == Storage::kOverflow ? plan.sections().size() : 0;
  }

  static Queued queued(Memory& memory, const LaunchMemory& held) {
    const SquarePlan& plan = memory.squares;
    const size_t size = table_size(plan);
    std::copy_n(plan.sections().begin(), size, held.host);
    const bool is_large = write_table(plan, &held, memory.table);
    return {.kernel = square_kernel_of(is_large),
            .blocks = plan.blocks(),
            .threads = kSquareThreads,
            .parameter = memory.table,
            .table_size = size};
  }
};

}  // namespace
}  // namespace cuda

Engine& cuda_engine() {
  static cuda::CudaEngine engine;
  return engine;
}

}  // namespace fusedopt
