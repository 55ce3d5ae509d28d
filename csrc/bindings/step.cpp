#include "bindings/step.h"

#include <algorithm>
#include <cmath>
#include <unordered_map>

#include "bindings/engines.h"
#include "core/ieee_environment.h"
#include "core/refusal.h"

namespace fusedopt {
namespace {

// How many parameters ahead memory is prefetched: far enough to arrive in time, near enough that a
// core can have that many reads under way.
constexpr size_t kMetadataAhead = 4, kStorageAhead = 2;

PyObject* const kParamsKey = intern("params");
PyObject* const kParamNamesKey = intern("param_names");
PyObject* const kCapturableKey = intern("capturable");
PyObject* const kDifferentiableKey = intern("differentiable");
PyObject* const kGradName = intern("grad");
PyObject* const kStepKey = intern("step");

std::string to_string(PyObject* object) { return py::str(py::handle(object)).cast<std::string>(); }

PyObject* require_list(PyObject* object, const char* what) {
  if (!PyList_Check(object)) {
    throw Refusal(Refusal::kType, std::string(what) + " must be a list");
  }
  return object;
}

bool is_true(PyObject* option) {
  if (option == nullptr) return false;
  const int truth = PyObject_IsTrue(option);
  if (truth < 0) throw py::error_already_set();
  return truth != 0;
}

// Every count below 2^53 is a float64.
bool is_count(double number) {
  return number >= 0 && number < 0x1p53 && std::floor(number) == number;
}

}  // namespace

Step::Step(BoundRule& rule, const TorchTensors& torch, PyObject* state, PyObject* create_state,
           const AmpTensors& amp, StepMemory& memory)
    : rule_(rule),
      torch_(torch),
      state_(state),
      create_state_(create_state),
      amp_(amp),
      memory_(memory) {
  memory_.clear();
  if (!PyDict_Check(state_)) throw Refusal(Refusal::kType, "optimizer.state must be a dict");
}

std::string Step::location() const {
  if (group_index_ < 0) return "";
  std::string text = "parameter group " + std::to_string(group_index_);
  if (param_index_ < 0) return text + ": ";
  text += ", parameter " + std::to_string(param_index_);
  PyObject* group = memory_.groups[static_cast<size_t>(group_index_)].group;
  PyObject* names = PyDict_GetItem(group, kParamNamesKey);
  if (names != nullptr && PyList_Check(names) && param_index_ < PyList_GET_SIZE(names)) {
    text += " ('" + to_string(PyList_GET_ITEM(names, param_index_)) + "')";
  }
  return text + ": ";
}

void Step::gather(PyObject* param_groups) {
  const IeeeEnvironment environment;
  require_list(param_groups, "param_groups");
  for (group_index_ = 0; group_index_ < PyList_GET_SIZE(param_groups); ++group_index_) {
    collect_group(PyList_GET_ITEM(param_groups, group_index_));
  }
  for (size_t i = 0; i < memory_.params.size(); ++i) {
    prefetch_plan(i);
    add_update(memory_.params[i]);
  }
  group_index_ = -1;
  for (const auto& list : memory_.lists) {
    if (list->is_active) finish_list(*list);
  }
  is_skipped_ = host_must_know_ && amp_.found_inf_on_host();
}

void Step::collect_group(PyObject* group) {
  param_index_ = -1;
  memory_.groups.push_back(read_group(memory_.keep.share(group)));
  PyObject* params = find_item(group, kParamsKey);
  if (params == nullptr) throw Refusal(Refusal::kKey, "key 'params' is missing");
  memory_.keep.share(require_list(params, "'params'"));
  for (param_index_ = 0; param_index_ < PyList_GET_SIZE(params); ++param_index_) {
    prefetch_param(params, param_index_);
    PyObject* param = memory_.keep.share(PyList_GET_ITEM(params, param_index_));
    if (!torch_.is_tensor(param)) throw Refusal(Refusal::kType, "is not a tensor");
    PyObject* grad = memory_.keep.steal(take(PyObject_GetAttr(param, kGradName)).release().ptr());
    if (grad == Py_None) {
      next_states_if_of(param);
    } else {
      collect_param(param, grad);
    }
  }
}

GroupPlan Step::read_group(PyObject* group) {
  if (!PyDict_Check(group)) throw Refusal(Refusal::kType, "a parameter group must be a dict");
  if (is_true(find_item(group, kDifferentiableKey))) {
    throw Refusal(Refusal::kNotImplemented, "differentiable=True is not supported");
  }
  GroupPlan plan;
  plan.group = group;
  read_options(plan, GroupOptions::kLeave);
  plan.used_states = rule_.info.used_states(plan.variant);
  plan.required_states = rule_.info.used_states(kNoOptions);
  plan.capturable = is_true(find_item(group, kCapturableKey));
  return plan;
}

void Step::read_options(GroupPlan& plan, GroupOptions::OnDevice on_device) {
  plan.first_option = memory_.options.size();
  GroupOptions options(plan.group, rule_.option_names, torch_, on_device, memory_.options);
  plan.hyper = rule_.read(options);
  plan.variant = plan.hyper->variant(false);
  plan.option_count = memory_.options.size() - plan.first_option;
  plan.has_left_options = false;
  for (size_t i = plan.first_option; i < memory_.options.size(); ++i) {
    if (memory_.options[i].device.type != DeviceType::kCpu) plan.has_left_options = true;
  }
}

void Step::collect_param(PyObject* param, PyObject* grad) {
  const GroupPlan& group = current_group();
  const size_t new_states_before = memory_.new_states.size();
  ParamPlan plan{.group_index = group_index_, .param_index = param_index_};
  plan.operands[kParam] = param;
  plan.operands[kGrad] = resolve_negation(grad);
  if (rule_.info.counts_steps || group.used_states != 0) plan.states = states_of(param);
  if (rule_.info.counts_steps) plan.step = state_tensor(param, plan.states, kStepKey, false);
  for (unsigned s = 0; s < rule_.state_names.size(); ++s) {
    if (!(group.used_states >> s & 1)) continue;
    const bool optional = !(group.required_states >> s & 1);
    plan.operands[kFirstState + s] =
        state_tensor(param, plan.states, rule_.state_names[s], optional);
  }
  plan.fresh = memory_.new_states.size() > new_states_before;
  memory_.params.push_back(plan);
}

void Step::prefetch_param(PyObject* params, Py_ssize_t index) const {
  constexpr auto ahead = static_cast<Py_ssize_t>(kMetadataAhead);
  const Py_ssize_t size = PyList_GET_SIZE(params);
  if (index + 2 * ahead < size) {
    TorchLibrary::prefetch_object(PyList_GET_ITEM(params, index + 2 * ahead));
  }
  if (index + ahead >= size) return;
  PyObject* const param = PyList_GET_ITEM(params, index + ahead);
  if (torch_.is_tensor(param)) torch_.functions().prefetch_metadata(param);
}

void Step::prefetch_plan(size_t index) const {
  const auto& plans = memory_.params;
  const auto for_each_tensor = [](const ParamPlan& plan, auto prefetch) {
    if (plan.step != nullptr) prefetch(plan.step);
    for (PyObject* operand : plan.operands) {
      if (operand != nullptr) prefetch(operand);
    }
  };
  if (index + kMetadataAhead < plans.size()) {
    for_each_tensor(plans[index + kMetadataAhead],
                    [&](PyObject* tensor) { torch_.functions().prefetch_metadata(tensor); });
  }
  if (index + kStorageAhead < plans.size()) {
    for_each_tensor(plans[index + kStorageAhead],
                    [&](PyObject* tensor) { torch_.functions().prefetch_storage(tensor); });
  }
}

void Step::add_update(const ParamPlan& plan) {
  group_index_ = plan.group_index;
  param_index_ = plan.param_index;
  std::array<TensorView, kMaxOperands> views;
  Operands operands{};
  PyObject* const param = memory_of(plan, kParam, nullptr);
  for (int k = 0; k < kMaxOperands; ++k) {
    if (plan.operands[k] == nullptr) continue;
    PyObject* const memory = k == kParam ? param : memory_of(plan, k, param);
    const char* const name = rule_.info.operand_names[k];
    views[k] = to_view(torch_.describe(memory, name), name);
    operands[k] = &views[k];
  }
  validate(operands, rule_.info.operand_names);
  if (amp_.scales() && may_overlap_itself(views[kGrad])) {
    throw Refusal(Refusal::kRuntime,
                  "the gradient has elements that share memory, so it cannot be unscaled in place");
  }
  DeviceUpdates& list = list_for(plan.operands[kParam], views[kParam].device);
  if (!list.engine->is_asynchronous() && current_group().capturable) {
    throw Refusal(Refusal::kAssertion,
                  "capturable=True needs a parameter on a device that can capture graphs; this "
                  "one is on the CPU");
  }
  if (list.execution.is_captured) check_capture(plan);

  Update update;
  update.in_double = computes_in_double(views[kParam].dtype);
  plan_scalars(plan, list, update);
  list.updates.add(update, operands);
}

// Who derives the scalars: the engine, where the host cannot know them; or else the host.
void Step::plan_scalars(const ParamPlan& plan, DeviceUpdates& list, Update& update) {
  GroupPlan& group = current_group();
  int64_t step = 0;
  if (plan.step != nullptr) plan_step_count(plan, list, update, step);
  if (group.has_left_options) {
    const auto* const options = &memory_.options[group.first_option];
    const bool are_all_there =
        list.engine->is_asynchronous() &&
        std::all_of(options, options + group.option_count, [&](const GroupOption& option) {
          return option.device.type == DeviceType::kCpu || option.device == list.execution.device;
        });
    if (are_all_there) {
      update.derives = true;
    } else {
      read_options(group, GroupOptions::kFetch);
    }
  }
  update.variant = static_cast<uint16_t>(plan.fresh ? group.hyper->variant(true) : group.variant);
  if (update.variant != group.variant) host_must_know_ = true;
  update.scalars =
      update.derives ? options_for(group, list) : scalars_for(group, list, step, update.in_double);
}

void Step::plan_step_count(const ParamPlan& plan, const DeviceUpdates& list, Update& update,
                           int64_t& step) {
  const bool is_capturable = current_group().capturable;
  const Device& device = list.execution.device;
  NumberPlace place = find_step_count(plan.step);
  const bool is_left = list.engine->is_asynchronous() &&
                       (place.device.type != DeviceType::kCpu || is_capturable || amp_.may_skip());
  if (is_left && place.device.type == DeviceType::kCpu && place.device != device) {
    if (is_capturable) {
      throw Refusal(Refusal::kAssertion,
                    "capturable=True needs state 'step' on the parameter's device");
    }
    // Only the device will know whether this step counts, so the count goes there, and stays.
    PyObject* const moved =
        memory_.keep.steal(torch_.to_device(plan.step, plan.operands[kParam]).release().ptr());
    memory_.new_states.push_back({plan.operands[kParam], plan.states, kStepKey, moved});
    place = find_step_count(moved);
  }
  if (place.device != (is_left ? device : Device{})) {
    throw Refusal(Refusal::kRuntime, "state 'step' is on another device than the parameter");
  }
  if (is_left) {
    update.derives = true;
    update.step = place.data;
    update.step_type = place.type;
  } else {
    step = read_step_count(plan.step, place) + 1;
    if (step > largest_count(place.type)) place = widen_step_count(plan);
    memory_.step_counts.push_back({place, step});
  }
}

// A float32 count would stand still at 2^24. From there on another tensor counts.
NumberPlace Step::widen_step_count(const ParamPlan& plan) {
  PyObject* const wide = memory_.keep.steal(torch_.in_double(plan.step).release().ptr());
  memory_.new_states.push_back({plan.operands[kParam], plan.states, kStepKey, wide});
  return find_step_count(wide);
}

// What an earlier step has left for this engine and device, or a new one.
DeviceUpdates& Step::unused_list(const Engine& engine, const Device& device) {
  for (const auto& list : memory_.lists) {
    if (list->engine == &engine && list->execution.device == device) return *list;
  }
  return *memory_.lists.emplace_back(std::make_unique<DeviceUpdates>());
}

DeviceUpdates& Step::list_for(PyObject* param, const Device& device) {
  for (const auto& list : memory_.lists) {
    if (list->is_active && list->execution.device == device) return *list;
  }
  Engine& engine = engine_for(device);
  DeviceUpdates& list = unused_list(engine, device);
  list.engine = &engine;
  list.execution = {.device = device, .stream = torch_.current_stream(device)};
  list.updates.clear(rule_.info.index);
  list.is_active = true;
  list.execution.is_captured = engine.is_capturing(list.execution);
  list.example = param;
  return list;
}

void Step::check_capture(const ParamPlan& plan) const {
  if (rule_.info.counts_steps && !memory_.groups[static_cast<size_t>(group_index_)].capturable) {
    const py::handle create_state(create_state_);
    throw Refusal(Refusal::kRuntime,
                  "Attempting CUDA graph capture of step() for an instance of " +
                      py::str(py::type::of(create_state.attr("__self__")).attr("__name__"))
                          .cast<std::string>() +
                      " but param_groups' capturable is False.");
  }
  if (plan.fresh) {
    throw Refusal(Refusal::kRuntime,
                  "its state does not exist yet, and a graph that creates it would do so at every "
                  "replay; call step() once before capturing");
  }
}

void Step::finish_list(DeviceUpdates& list) {
  check_overlap(list);
  list.updates.set_amp(amp_.on_device(list.execution.device, list.example, memory_.keep));
  if (!list.engine->is_asynchronous()) {
    list.execution.max_threads = torch_.num_threads();
    host_must_know_ = true;
  }
  list.engine->prepare(list.updates, list.execution, list.memory);
}

void Step::check_overlap(DeviceUpdates& list) {
  list.execution.in_order = list.updates.may_overlap();
  if (!list.execution.in_order) return;
  std::unordered_map<PyObject*, const ParamPlan*> seen;
  for (const ParamPlan& plan : memory_.params) {
    const auto [earlier, is_new] = seen.emplace(plan.operands[kParam], &plan);
    if (is_new) continue;
    group_index_ = plan.group_index;
    param_index_ = plan.param_index;
    throw Refusal(Refusal::kValue, "is also parameter " +
                                       std::to_string(earlier->second->param_index) + " of group " +
                                       std::to_string(earlier->second->group_index));
  }
}

// The plain tensor that holds an operand's memory; nearly always the operand itself.
PyObject* Step::memory_of(const ParamPlan& plan, int operand, PyObject* param_memory) {
  PyObject* const param = plan.operands[kParam];
  PyObject* memory = plan.operands[operand];
  const bool param_is_plain = operand == kParam || param_memory == param;
  if (!param_is_plain || !torch_.is_plain(memory)) {
    memory =
        torch_.unwrap(memory, operand == kParam ? Py_None : param, operand == kGrad, memory_.keep);
  }
  // Gradients that are so have been resolved, which makes a copy.
  if (operand != kGrad && torch_.is_negated_view(memory)) {
    throw Refusal(Refusal::kValue, std::string(rule_.info.operand_names[operand]) +
                                       " is a negated view of its memory");
  }
  return memory;
}

PyObject* Step::resolve_negation(PyObject* grad) {
  if (!torch_.is_negated_view(grad)) return grad;
  if (amp_.scales()) {
    throw Refusal(
        Refusal::kRuntime,
        "the gradient is a negated view of its memory, so it cannot be unscaled in place");
  }
  return memory_.keep.steal(
      take(PyObject_CallMethod(grad, "resolve_neg", nullptr)).release().ptr());
}

PyObject* Step::next_states_if_of(PyObject* param) {
  Py_ssize_t position = next_state_;
  PyObject *key, *value;
  if (!PyDict_Next(state_, &position, &key, &value) || key != param) return nullptr;
  next_state_ = position;
  return value;
}

PyObject* Step::states_of(PyObject* param) {
  // The dictionary is nearly always in the order of the parameters, and walking it is cheaper than
  // a lookup, which calls Tensor.__hash__ in Python.
  PyObject* states = next_states_if_of(param);
  if (states == nullptr) states = find_item(state_, param);
  if (states == nullptr) return nullptr;
  if (!PyDict_Check(states)) throw Refusal(Refusal::kType, "its state must be a dict");
  return memory_.keep.share(states);
}

PyObject* Step::state_tensor(PyObject* param, PyObject* states, PyObject* name, bool optional) {
  const bool is_new = states == nullptr || PyDict_GET_SIZE(states) == 0;
  PyObject* const tensor = is_new ? nullptr : find_item(states, name);
  if (tensor == nullptr || tensor == Py_None) {
    if (is_new || optional) return new_state(param, states, name);
    throw Refusal(Refusal::kKey, "its state has no '" + to_string(name) +
                                     "'; does the checkpoint come from another optimizer?");
  }
  if (!torch_.is_tensor(tensor)) {
    throw Refusal(Refusal::kType, "state '" + to_string(name) + "' must be a tensor");
  }
  return memory_.keep.share(tensor);
}

PyObject* Step::new_state(PyObject* param, PyObject* states, PyObject* name) {
  PyObject* const tensor = memory_.keep.steal(
      take(PyObject_CallFunctionObjArgs(create_state_, name, param, current_group().group, nullptr))
          .release()
          .ptr());
  memory_.new_states.push_back({param, states, name, tensor});
  return tensor;
}

NumberPlace Step::find_step_count(PyObject* tensor) {
  if (!torch_.is_plain(tensor)) tensor = torch_.unwrap(tensor, Py_None, false, memory_.keep);
  const DLTensor described = torch_.describe(tensor, "state 'step'");
  if (torch_.is_negated_view(tensor)) {
    throw Refusal(Refusal::kValue, "state 'step' is a negated view of its memory");
  }
  int64_t numel = 1;
  for (int d = 0; d < described.ndim; ++d) numel *= described.shape[d];
  if (numel != 1) throw Refusal(Refusal::kRuntime, "state 'step' must be one number");
  require_memory(described, "state 'step'");
  const auto place = to_number_place(described);
  if (!place) {
    throw Refusal(Refusal::kValue, "state 'step' is not a count: " + to_string(tensor));
  }
  return *place;
}

int64_t Step::read_step_count(PyObject* tensor, const NumberPlace& place) const {
  if (!is_count(load_number(place.data, place.type))) {
    throw Refusal(Refusal::kValue, "state 'step' is not a count: " + to_string(tensor));
  }
  return load_count(place.data, place.type);
}

uint32_t Step::scalars_for(GroupPlan& group, DeviceUpdates& list, int64_t step, bool in_double) {
  auto& latest = group.latest_scalars[in_double];
  if (latest.step != step || latest.list != &list) {
    latest = {&list, step, group.hyper->add_scalars(list.updates, step, in_double)};
  }
  return latest.position;
}

uint32_t Step::options_for(GroupPlan& group, DeviceUpdates& list) {
  if (group.latest_options.list == &list) return group.latest_options.position;
  std::vector<OptionValue> values;
  for (size_t i = 0; i < group.option_count; ++i) {
    const GroupOption& option = memory_.options[group.first_option + i];
    values.push_back(option.value);
    // What another device holds, the host has read.
    if (option.device != list.execution.device) values.back().source = nullptr;
  }
  group.latest_options = {&list, 0, list.updates.add(std::span<const OptionValue>(values))};
  return group.latest_options.position;
}

void Step::run() {
  if (is_skipped_) return;
  Interruption interruption;
  for (const NewState& state : memory_.new_states) {
    interruption.hold_off([&] { publish(state); });
  }
  {
    const ReleasedGil release;
    // A launch may fail. The CPU cannot, so it comes last.
    run_lists(true);
    run_lists(false);
  }
  count_steps();
  py::list left;
  for (const ParamPlan& plan : memory_.params) {
    PyObject* const param = plan.operands[kParam];
    if (!torch_.functions().increment_version(param)) left.append(py::handle(param));
  }
  if (!left.empty()) interruption.hold_off([&] { torch_.increment_versions(left); });
  interruption.raise();
}

void Step::run_lists(bool asynchronous) {
  for (const auto& list : memory_.lists) {
    if (!list->is_active || list->engine->is_asynchronous() != asynchronous) continue;
    list->engine->run(list->updates, list->execution, list->memory.get());
  }
}

// Looking up a parameter runs Python code, Tensor.__hash__.
void Step::publish(const NewState& state) {
  PyObject* states = state.states != nullptr ? state.states : find_item(state_, state.param);
  if (states == nullptr) {
    const py::object created = take(PyDict_New());
    if (PyObject_SetItem(state_, state.param, created.ptr()) != 0) throw py::error_already_set();
    states = created.ptr();
  }
  if (PyDict_SetItem(states, state.name, state.tensor) != 0) throw py::error_already_set();
}

void Step::count_steps() {
  for (const StepCount& count : memory_.step_counts) {
    store_count(count.place.data, count.place.type, count.value);
  }
}

}  // namespace fusedopt
