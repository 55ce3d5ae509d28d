#include "bindings/step.h"

#include <cmath>
#include <cstring>
#include <unordered_map>

#include "core/engine.h"
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
PyObject* const kGradName = intern("grad");
PyObject* const kStepKey = intern("step");

std::string to_string(PyObject* object) { return py::str(py::handle(object)).cast<std::string>(); }

PyObject* require_list(PyObject* object, const char* what) {
  if (!PyList_Check(object)) {
    throw Refusal(Refusal::kType, std::string(what) + " must be a list");
  }
  return object;
}

// How a step count is stored: torch writes float32, or float64 where that is the default dtype;
// others may have put an integer tensor there.
template <class T>
int64_t load_count(const void* data) {
  T value;
  std::memcpy(&value, data, sizeof value);
  const auto number = static_cast<double>(value);
  const bool is_count = number >= 0 && number < 0x1p62 && std::floor(number) == number;
  return is_count ? static_cast<int64_t>(value) : -1;
}

template <class T>
void store_count(void* data, int64_t count) {
  const T value = static_cast<T>(count);
  std::memcpy(data, &value, sizeof value);
}

// Calls f with a value of the C type of a step count's dtype; false for any other dtype.
template <class F>
bool with_count_type(DLDataType dtype, F f) {
  if (dtype.code == kDLFloat && dtype.bits == 32) return f(float{}), true;
  if (dtype.code == kDLFloat && dtype.bits == 64) return f(double{}), true;
  if (dtype.code == kDLInt && dtype.bits == 64) return f(int64_t{}), true;
  if (dtype.code == kDLInt && dtype.bits == 32) return f(int32_t{}), true;
  return false;
}

}  // namespace

Step::Step(BoundRule& rule, const TorchTensors& torch, PyObject* state, PyObject* create_state,
           StepMemory& memory)
    : rule_(rule), torch_(torch), state_(state), create_state_(create_state), memory_(memory) {
  memory_.clear();
  memory_.updates.clear(rule.info.index);
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
  check_overlap();
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
  GroupOptions options(group, rule_.option_names);
  PyObject* const capturable = find_item(group, kCapturableKey);
  GroupPlan plan;
  plan.group = group;
  plan.hyper = rule_.read(options);
  plan.variant = plan.hyper->variant(false);
  plan.used_states = rule_.info.used_states(plan.variant);
  plan.required_states = rule_.info.used_states(kNoOptions);
  plan.capturable = capturable != nullptr && PyObject_IsTrue(capturable) == 1;
  return plan;
}

void Step::collect_param(PyObject* param, PyObject* grad) {
  const GroupPlan& group = current_group();
  const size_t new_states_before = memory_.new_states.size();
  ParamPlan plan{.group_index = group_index_, .param_index = param_index_};
  plan.operands[kParam] = param;
  plan.operands[kGrad] = resolve_negation(grad);
  PyObject* const states =
      rule_.info.counts_steps || group.used_states != 0 ? states_of(param) : nullptr;
  if (rule_.info.counts_steps) plan.step = state_tensor(param, states, kStepKey, false);
  for (unsigned s = 0; s < rule_.state_names.size(); ++s) {
    if (!(group.used_states >> s & 1)) continue;
    const bool optional = !(group.required_states >> s & 1);
    plan.operands[kFirstState + s] = state_tensor(param, states, rule_.state_names[s], optional);
  }
  plan.fresh = memory_.new_states.size() > new_states_before;
  memory_.params.push_back(plan);
}

void Step::prefetch_param(PyObject* params, Py_ssize_t index) const {
  constexpr auto ahead = static_cast<Py_ssize_t>(kMetadataAhead);
  const Py_ssize_t size = PyList_GET_SIZE(params);
  if (index + 2 * ahead < size) {
    TorchTensors::prefetch_object(PyList_GET_ITEM(params, index + 2 * ahead));
  }
  if (index + ahead < size) torch_.prefetch_metadata(PyList_GET_ITEM(params, index + ahead));
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
                    [&](PyObject* t) { torch_.prefetch_metadata(t); });
  }
  if (index + kStorageAhead < plans.size()) {
    for_each_tensor(plans[index + kStorageAhead], [&](PyObject* t) { torch_.prefetch_storage(t); });
  }
}

void Step::add_update(const ParamPlan& plan) {
  group_index_ = plan.group_index;
  param_index_ = plan.param_index;
  GroupPlan& group = current_group();
  std::array<TensorView, kMaxOperands> views;
  Operands operands{};
  for (int k = 0; k < kMaxOperands; ++k) {
    if (plan.operands[k] == nullptr) continue;
    views[k] = view(plan.operands[k], rule_.info.operand_names[k]);
    operands[k] = &views[k];
    if (k == kParam) check_device(plan.operands[k], views[k].device);
  }
  validate(operands, rule_.info.operand_names);
  int64_t step = 0;
  if (plan.step != nullptr) {
    StepCount count = read_step_count(plan.step);
    step = ++count.value;
    memory_.step_counts.push_back(count);
  }

  Update update;
  update.variant = static_cast<uint16_t>(plan.fresh ? group.hyper->variant(true) : group.variant);
  update.scalars = scalars_for(group, step, computes_in_double(views[kParam].dtype));
  memory_.updates.add(update, operands);
  if (PyList_Append(updated_.ptr(), plan.operands[kParam]) != 0) throw py::error_already_set();
}

void Step::check_overlap() {
  in_order_ = memory_.updates.may_overlap();
  if (!in_order_) return;
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

void Step::check_device(PyObject* param, const Device& device) const {
  if (device.type != DeviceType::kCpu) {
    throw Refusal(Refusal::kNotImplemented, "the parameter is on device " +
                                                to_string(py::handle(param).attr("device").ptr()) +
                                                ", for which fusedopt was built without an engine");
  }
  if (memory_.groups[static_cast<size_t>(group_index_)].capturable) {
    throw Refusal(Refusal::kAssertion,
                  "capturable=True needs a parameter on a device that can capture graphs; this "
                  "one is on the CPU");
  }
}

TensorView Step::view(PyObject* tensor, const char* what) {
  return to_view(torch_.describe(tensor, what, memory_.keep), what);
}

PyObject* Step::resolve_negation(PyObject* grad) {
  if (!torch_.is_negated_view(grad)) return grad;
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

StepCount Step::read_step_count(PyObject* tensor) {
  const DLTensor described = torch_.describe(tensor, "state 'step'", memory_.keep);
  StepCount count{static_cast<char*>(described.data) + described.byte_offset, described.dtype, -1};
  int64_t numel = 1;
  for (int d = 0; d < described.ndim; ++d) numel *= described.shape[d];
  if (numel != 1 || described.device.device_type != kDLCPU) {
    throw Refusal(Refusal::kRuntime, "state 'step' must be one number on the CPU");
  }
  const bool known = with_count_type(
      described.dtype, [&](auto type) { count.value = load_count<decltype(type)>(count.data); });
  if (!known || count.value < 0) {
    throw Refusal(Refusal::kValue, "state 'step' is not a count: " + to_string(tensor));
  }
  return count;
}

uint32_t Step::scalars_for(GroupPlan& group, int64_t step, bool in_double) {
  auto& latest = group.latest_scalars[in_double];
  if (latest.step != step) {
    latest = {step, group.hyper->add_scalars(memory_.updates, step, in_double)};
  }
  return latest.position;
}

void Step::run() {
  group_index_ = -1;
  publish_new_states();
  if (memory_.updates.numel() > 0) {
    const int threads = in_order_ ? 1 : torch_.num_threads();
    const py::gil_scoped_release release;
    cpu_engine().run(memory_.updates, threads);
  }
  count_steps();
  if (!updated_.empty()) torch_.increment_versions(updated_);
}

void Step::publish_new_states() {
  for (const NewState& state : memory_.new_states) {
    PyObject* states = state.states != nullptr ? state.states : find_item(state_, state.param);
    if (states == nullptr) {
      const py::object created = take(PyDict_New());
      if (PyObject_SetItem(state_, state.param, created.ptr()) != 0) throw py::error_already_set();
      states = created.ptr();
    }
    if (PyDict_SetItem(states, state.name, state.tensor) != 0) throw py::error_already_set();
  }
}

void Step::count_steps() {
  for (const StepCount& count : memory_.step_counts) {
    with_count_type(count.dtype,
                    [&](auto type) { store_count<decltype(type)>(count.data, count.value); });
  }
}

}  // namespace fusedopt
