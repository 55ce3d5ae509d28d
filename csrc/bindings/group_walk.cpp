#include "bindings/group_walk.h"

#include <algorithm>

#include "core/refusal.h"

namespace fusedopt {
namespace {

// How many parameters ahead memory is prefetched: far enough to arrive in time, near enough that a
// core can have that many reads under way.
constexpr Py_ssize_t kAhead = 4;

PyObject* const kParamsKey = intern("params");
PyObject* const kParamNamesKey = intern("param_names");
PyObject* const kCapturableKey = intern("capturable");
PyObject* const kDifferentiableKey = intern("differentiable");
PyObject* const kGradName = intern("grad");
PyObject* const kStepKey = intern("step");
PyObject* const kRemainderKey = intern("param_remainder");
PyObject* const kAverageKey = intern("ema");
PyObject* const kAveragedKey = intern("ema_step");

PyObject* require_sequence(PyObject* object, const char* what, KeepAlive& keep) {
  PyObject* const sequence = to_sequence(object, keep);
  if (sequence == nullptr) throw Refusal(Refusal::kType, std::string(what) + " must be a list");
  return sequence;
}

}  // namespace

std::string describe(const Location& location, const StepMemory& memory) {
  if (location.group < 0) return "";
  std::string text = "parameter group " + std::to_string(location.group);
  if (location.param < 0) return text;
  text += ", parameter " + std::to_string(location.param);
  PyObject* const group = memory.groups[static_cast<size_t>(location.group)].group;
  PyObject* const names = PyDict_Check(group) ? PyDict_GetItem(group, kParamNamesKey) : nullptr;
  if (names != nullptr && PyList_Check(names) && location.param < PyList_GET_SIZE(names)) {
    text += " ('" + to_string(PyList_GET_ITEM(names, location.param)) + "')";
  }
  return text;
}

void GroupWalk::collect(PyObject* param_groups, const Location& only) {
  Location& location = memory_.location;
  PyObject* const groups = require_sequence(param_groups, "param_groups", memory_.keep);
  for (location.group = 0; location.group < PySequence_Fast_GET_SIZE(groups); ++location.group) {
    location.param = -1;
    collect_group(memory_.keep.share(PySequence_Fast_GET_ITEM(groups, location.group)), only);
    if (location.group == only.group) break;
  }
  for (const Unresolved& unresolved : memory_.unresolved) resolve(unresolved);
  location = {};
}

void GroupWalk::collect_group(PyObject* group, const Location& only) {
  // A group that is passed by is not read: its parameters count, for the numbers of others.
  const bool is_passed_by = only.group >= 0 && memory_.location.group != only.group;
  memory_.groups.emplace_back().group = group;
  if (!is_passed_by) memory_.groups.back() = read_group(group);
  PyObject* params = find_item(group, kParamsKey, memory_.keep);
  if (params == nullptr) throw Refusal(Refusal::kKey, "key 'params' is missing");
  params = require_sequence(params, "'params'", memory_.keep);
  const Py_ssize_t size = PySequence_Fast_GET_SIZE(params);
  Py_ssize_t& index = memory_.location.param;
  index = is_passed_by ? size : std::max<Py_ssize_t>(only.param, 0);
  const Py_ssize_t last = only.group < 0 ? size : std::min(index + 1, size);
  number_ += static_cast<uint32_t>(index);
  for (; index < last; ++index) {
    prefetch(params, index);
    PyObject* const param = memory_.keep.share(PySequence_Fast_GET_ITEM(params, index));
    if (!torch_.is_tensor(param)) throw Refusal(Refusal::kType, "is not a tensor");
    PyObject* const grad =
        memory_.keep.steal(take(PyObject_GetAttr(param, kGradName)).release().ptr());
    if (grad == Py_None) {
      state_.skip(param);
    } else {
      collect_param(param, grad);
    }
    ++number_;
  }
}

GroupPlan GroupWalk::read_group(PyObject* group) {
  if (!PyMapping_Check(group)) throw Refusal(Refusal::kType, "a parameter group must be a dict");
  if (is_true(find_item(group, kDifferentiableKey, memory_.keep))) {
    throw Refusal(Refusal::kNotImplemented, "differentiable=True is not supported");
  }
  GroupPlan plan;
  plan.group = group;
  read_options(plan, GroupOptions::kLeave);
  plan.used_states = rule_.info.used_states(plan.variant);
  plan.required_states = rule_.info.used_states(kNoOptions);
  plan.storage = read_storage_options(group, memory_.keep);
  plan.epilogue = read_epilogue_options(group, memory_.keep);
  plan.counts_steps = rule_.info.counts_steps || plan.storage.draws_random_bits();
  plan.capturable = is_true(find_item(group, kCapturableKey, memory_.keep));
  return plan;
}

void GroupWalk::read_options(GroupPlan& plan, GroupOptions::OnDevice on_device) {
  plan.first_option = memory_.options.size();
  GroupOptions options(plan.group, rule_.option_names, torch_, on_device, memory_.keep,
                       memory_.options);
  plan.hyper = rule_.read(options);
  plan.variant = plan.hyper->variant(false);
  plan.option_count = memory_.options.size() - plan.first_option;
  plan.has_left_options = false;
  for (size_t i = plan.first_option; i < memory_.options.size(); ++i) {
    if (memory_.options[i].tensor != nullptr) plan.has_left_options = true;
  }
}

void GroupWalk::collect_param(PyObject* param, PyObject* grad) {
  const Location& location = memory_.location;
  const GroupPlan& group = memory_.groups[static_cast<size_t>(location.group)];
  torch_.require_tensor(grad, "the gradient");
  ParamPlan plan{.group_index = location.group,
                 .param_index = location.param,
                 .param = param,
                 .number = number_};
  plan.touched = static_cast<uint32_t>(memory_.touched.size());
  plan.first_operand = static_cast<uint32_t>(memory_.operands.size());
  add_operand(plan, param, {.role = kParam});
  add_operand(plan, resolve_gradient(grad),
              {.access = amp_.scales() ? Access::kReadWrite : Access::kRead, .role = kGrad});
  collect_states(plan, group);
  plan.tensor_count = static_cast<uint8_t>(memory_.operands.size() - plan.first_operand);
  memory_.params.push_back(plan);
}

void GroupWalk::collect_states(ParamPlan& plan, const GroupPlan& group) {
  const StorageOptions& storage = group.storage;
  const EpilogueOptions& epilogue = group.epilogue;
  if (group.counts_steps || group.used_states != 0 || storage.master_weights || epilogue.averages) {
    plan.states = state_.of(plan.param);
  }
  if (group.counts_steps) {
    const bool is_optional = !rule_.info.counts_steps;  // only rounding needs it
    plan.step = state_.tensor(plan, group.group, kStepKey, is_optional, nullptr).tensor;
    memory_.touched.push_back(plan.step);
    note_unresolved(plan, plan.step, Unresolved::kStep);
  }
  memory_.scales.clear();
  for (unsigned s = 0; s < rule_.state_names.size(); ++s) {
    if (!(group.used_states >> s & 1)) continue;
    const bool is_optional = !(group.required_states >> s & 1);
    Operand operand{.role = static_cast<uint8_t>(kFirstState + s)};
    const OptimizerState::Found state =
        state_.tensor(plan, group.group, rule_.state_names[s], is_optional, &operand);
    add_operand(plan, state.tensor, operand);
    plan.is_fresh = plan.is_fresh || state.is_new;
    if (storage.state_bits != 8) continue;
    Operand of_scales{.role = static_cast<uint8_t>(rule_.info.role_of_scales(s))};
    PyObject* const tensor =
        state_.scales(plan, group.group, rule_.scale_names[s], state, &of_scales);
    if (tensor != nullptr) memory_.scales.emplace_back(tensor, of_scales);
  }
  if (epilogue.averages) {
    Operand operand{.role = static_cast<uint8_t>(rule_.info.role_of_average())};
    const OptimizerState::Found average =
        state_.tensor(plan, group.group, kAverageKey, true, &operand);
    add_operand(plan, average.tensor, operand);
    plan.begins_average = !operand.is_read();
    if (epilogue.counts_averaged()) {
      plan.averaged = state_.averaged(plan, group.group, kAveragedKey, plan.begins_average);
      memory_.touched.push_back(plan.averaged);
      note_unresolved(plan, plan.averaged, Unresolved::kAveraged);
    }
  }
  if (storage.master_weights) {
    Operand remainder{.role = static_cast<uint8_t>(rule_.info.role_of_remainder())};
    add_operand(plan, state_.tensor(plan, group.group, kRemainderKey, true, &remainder).tensor,
                remainder);
  }
  plan.operand_count = static_cast<uint8_t>(memory_.operands.size() - plan.first_operand);
  for (const auto& [tensor, operand] : memory_.scales) add_operand(plan, tensor, operand);
}

void GroupWalk::add_operand(const ParamPlan& plan, PyObject* tensor, const Operand& operand) {
  const size_t position = memory_.operands.size() - plan.first_operand;
  memory_.tensors.push_back(tensor);
  memory_.operands.push_back(operand);
  if (operand.is_written()) memory_.touched.push_back(tensor);
  note_unresolved(plan, tensor, static_cast<int>(position));
}

void GroupWalk::note_unresolved(const ParamPlan& plan, PyObject* tensor, int operand) {
  if (!torch_.is_plain(tensor) || !torch_.is_plain(plan.param) ||
      !torch_.functions().tells_negation()) {
    memory_.unresolved.push_back({static_cast<uint32_t>(memory_.params.size()), operand});
  }
}

// What is no plain memory of its own, as a copy: a view that negates.
PyObject* GroupWalk::resolve_gradient(PyObject* grad) {
  if (!torch_.is_negated_view(grad)) return grad;
  if (amp_.scales()) {
    throw Refusal(
        Refusal::kRuntime,
        "the gradient is a negated view of its memory, so it cannot be unscaled in place");
  }
  return memory_.keep.steal(
      take(PyObject_CallMethod(grad, "resolve_neg", nullptr)).release().ptr());
}

void GroupWalk::resolve(const Unresolved& unresolved) {
  ParamPlan& plan = memory_.params[unresolved.param];
  memory_.location = {plan.group_index, plan.param_index};
  const bool is_step = unresolved.operand == Unresolved::kStep;
  const bool is_count = is_step || unresolved.operand == Unresolved::kAveraged;
  const size_t position = is_count ? 0 : static_cast<size_t>(unresolved.operand);
  PyObject*& tensor = is_step    ? plan.step
                      : is_count ? plan.averaged
                                 : memory_.tensors_of(plan)[position];
  const bool is_grad = unresolved.operand == kGrad;
  if (is_count) {
    if (!torch_.is_plain(tensor)) tensor = torch_.unwrap(tensor, Py_None, false, memory_.keep);
  } else if (!torch_.is_plain(tensor) || !torch_.is_plain(plan.param)) {
    const bool is_param = unresolved.operand == kParam;
    if (is_param && !memory_.groups[static_cast<size_t>(plan.group_index)].storage.is_usual()) {
      plan.part = torch_.part_of(plan.param);
    }
    PyObject* const owner = is_param ? Py_None : plan.param;
    tensor = torch_.unwrap(tensor, owner, is_grad, memory_.keep);
  }
  const char* const name =
      is_step    ? "state 'step'"
      : is_count ? "state 'ema_step'"
                 : rule_.info.operand_names[memory_.operands_of(plan)[position].role].c_str();
  torch_.require_tensor(tensor, name);
  // Gradients have been asked before, and negated ones are copies by now.
  if (!is_grad && torch_.is_negated_view(tensor)) {
    throw Refusal(Refusal::kValue, std::string(name) + " is a negated view of its memory");
  }
}

void GroupWalk::prefetch(PyObject* params, Py_ssize_t index) const {
  const Py_ssize_t size = PySequence_Fast_GET_SIZE(params);
  if (index + 2 * kAhead < size) {
    TorchLibrary::prefetch_object(PySequence_Fast_GET_ITEM(params, index + 2 * kAhead));
  }
  if (index + kAhead >= size) return;
  PyObject* const param = PySequence_Fast_GET_ITEM(params, index + kAhead);
  if (torch_.is_tensor(param)) torch_.functions().prefetch_metadata(param);
}

}  // namespace fusedopt
