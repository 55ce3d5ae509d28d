#include "recording_engine.h"

#include <deque>

#include "core/option.h"
#include "cuda/engine.h"
#include "footprint.h"
#include "launches.h"
#include "runtime.h"

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

// Whether a number of the type, which is written to `place`, has this value.
bool store_exactly(double value, NumberType type, void* place) {
  switch (type) {
    case NumberType::kFloat32: *static_cast<float*>(place) = static_cast<float>(value); break;
    case NumberType::kFloat64: *static_cast<double*>(place) = value; break;
    case NumberType::kInt32: *static_cast<int32_t*>(place) = static_cast<int32_t>(value); break;
    default: *static_cast<int64_t*>(place) = static_cast<int64_t>(value);
  }
  return load_number(place, type) == value;
}

void leave_numbers(const UpdateList& list, NumberType type) {
  static std::deque<double> numbers;  // double for its size and alignment
  numbers.clear();
  for (const Update& update : list.updates()) {
    if (!update.derives) continue;
    for (const OptionValue& option : options_of(list, update)) {
      if (option.source != nullptr) continue;
      double* const place = &numbers.emplace_back();
      if (!store_exactly(option.value, type, place)) continue;
      const_cast<OptionValue&>(option) = {.source = place, .type = type};
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
    if (left_numbers()) leave_numbers(list, *left_numbers());
    cuda_engine().prepare(list, on_gpu(execution), memory);
  }

  void run(const UpdateList& list, const Execution& execution, EngineMemory* memory) override {
    announced().clear();
    for (const Round& round : list.rounds()) {
      if (is_launched(list, round)) announced().push_back(footprint_of(list, round));
    }
    cuda_engine().run(list, on_gpu(execution), memory);
    if (!announced().empty()) (void)violation("a round without a launch");
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

std::optional<NumberType>& left_numbers() {
  static std::optional<NumberType> type;
  return type;
}

Engine& recording_engine() {
  static RecordingEngine engine;
  return engine;
}

}  // namespace fusedopt::stand_in
