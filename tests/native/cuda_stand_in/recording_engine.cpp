#include "recording_engine.h"

#include "core/scalars.h"
#include "cuda/engine.h"
#include "launches.h"

namespace fusedopt::stand_in {
namespace {

Execution on_gpu(Execution execution) {
  execution.device.index = place_of_steps().device;
  execution.stream = place_of_steps().stream;
  return execution;
}

void leave_options(const UpdateList& list) {
  for (const Update& update : list.updates()) {
    if (!update.derives) continue;
    auto* const options = static_cast<OptionValue*>(const_cast<void*>(list.scalars(update)));
    for (const auto& [n, source] : left_options()) {
      options[n] = {.source = source, .type = NumberType::kFloat32};
    }
  }
}

class RecordingEngine final : public Engine {
 public:
  bool is_asynchronous() const override { return cuda_engine().is_asynchronous(); }

  bool is_capturing(const Execution& execution) const override {
    return cuda_engine().is_capturing(on_gpu(execution));
  }

  void prepare(const UpdateList& list, const Execution& execution,
               std::unique_ptr<EngineMemory>& memory) override {
    leave_options(list);
    cuda_engine().prepare(list, on_gpu(execution), memory);
  }

  void run(const UpdateList& list, const Execution& execution, EngineMemory* memory) override {
    announced().clear();
    for (const Round& round : list.rounds()) {
      if (is_launched(list, round)) announced().push_back(footprint_of(list, round));
    }
    cuda_engine().run(list, on_gpu(execution), memory);
  }
};

}  // namespace

Place& place_of_steps() {
  thread_local Place place;
  return place;
}

std::map<uint32_t, const void*>& left_options() {
  static std::map<uint32_t, const void*> options;
  return options;
}

Engine& recording_engine() {
  static RecordingEngine engine;
  return engine;
}

}  // namespace fusedopt::stand_in
