#include "bindings/step.h"

#include <algorithm>
#include <cmath>

#include "bindings/engines.h"
#include "core/codes.h"
#include "core/ieee_environment.h"
#include "core/refusal.h"

namespace fusedopt {
namespace {

// How many parameters ahead memory is prefetched.
constexpr size_t kMetadataAhead = 4, kStorageAhead = 2;

PyObject* const kStepKey = intern("step");
PyObject* const kAveragedKey = intern("ema_step");

// Every count below 2^53 is a float64.
bool is_count(double number) {
  return number >= 0 && number < 0x1p53 && std::floor(number) == number;
}

[[noreturn]] void refuse_count(PyObject* tensor, const char* name) {
  throw Refusal(Refusal::kValue, name + (" is not a count: " + to_string(tensor)));
}

std::string place_of(const ParamPlan& plan) {
  return "parameter " + std::to_string(plan.param_index) + " of group " +
         std::to_string(plan.group_index);
}

}  // namespace

Step::Step(BoundRule& rule, const TorchTensors& torch, PyObject* state, PyObject* create_state,
           AmpTensors& amp, Clipping& clipping, StepMemory& memory)
    : rule_(rule),
      torch_(torch),
      amp_(amp),
      clipping_(clipping),
      memory_(memory),
      state_(state, create_state, torch, memory),
      walk_(rule, torch, state_, amp, memory) {}

void Step::gather(PyObject* param_groups, const Location& only) {
  const IeeeEnvironment environment;
  walk_.collect(param_groups, only);
  if (clipping_.is_asked_for()) {
    find_sums();
    make_decision();
  }
  lay_out();
}

// For the device of the first parameter, which nearly always is that of all, before any other
// tensor is described.
void Step::make_decision() {
  if (memory_.params.empty()) return;
  const ParamPlan& first = memory_.params.front();
  locate(first);
  PyObject* const param = memory_.tensors_of(first)[kParam];
  const Device device = to_view(torch_.describe(param, "the parameter"), "the parameter").device;
  if (!engine_for(device).is_asynchronous()) return;
  (void)clipping_.decision_on(device, param, torch_);
}

void Step::find_sums() {
  for (ParamPlan& plan : memory_.params) {
    if (torch_.is_plain(plan.param)) continue;
    locate(plan);
    plan.sum = clipping_.sum_of(plan.param);
  }
}

// Describes what has been collected, and has everything ready to run.
void Step::lay_out() {
  // Each kind of Python code below is run once at most, so this ends.
  do {
    is_stale_ = false;
    memory_.forget_descriptions();
    describe_all();
  } while (is_stale_);
  if (is_skipped_) return;
  check_sharing();
  memory_.plan.prepare();
  if (memory_.new_states.empty()) return;
  // Room for dictionaries to grow, so that entering states does not fail when they are written.
  constexpr size_t kArena = size_t{2} << 20, kPerParam = 1024;
  AddressSpace space(kArena + kPerParam * memory_.new_states.size());
  if (!space.is_there()) throw std::bad_alloc();
  for_publishing_ = std::move(space);
}

void Step::describe_all() {
  for (size_t i = 0; i < memory_.params.size(); ++i) {
    prefetch(i);
    add_update(memory_.params[i]);
  }
  memory_.location = {};
  for (const auto& list : memory_.plan.lists()) {
    if (list->is_active) finish_list(*list);
  }
  is_skipped_ = host_must_know_ && wants_skip();
}

void Step::prefetch(size_t index) const {
  const auto& plans = memory_.params;
  const auto for_each_tensor = [&](const ParamPlan& plan, auto prefetch) {
    if (plan.step != nullptr) prefetch(plan.step);
    for (PyObject* tensor : memory_.tensors_of(plan)) prefetch(tensor);
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

void Step::add_update(ParamPlan& plan) {
  locate(plan);
  const std::span<Operand> operands = memory_.operands_of(plan).first(plan.operand_count);
  auto& views = memory_.views;
  auto& names = memory_.operand_names;
  views.clear();
  names.clear();
  for (size_t k = 0; k < operands.size(); ++k) {
    views.push_back(view_of(plan, k));
    names.push_back(name_of(operands[k]));
  }
  DeviceUpdates& list = list_for(views[kParam].device);
  plan.list = &list;
  const bool are_usual =
      std::all_of(views.begin() + kFirstState, views.end(),
                  [](const auto& view) { return plain_format(view.format) == view.format; });
  if (!are_usual || !group_of(plan).storage.is_usual()) choose_formats(plan);
  validate(views, names);
  if (amp_.scales() && may_overlap_itself(views[kGrad])) {
    throw Refusal(Refusal::kRuntime,
                  "the gradient has elements that share memory, so it cannot be unscaled in place");
  }
  if (!list.engine->is_asynchronous() && group_of(plan).capturable) {
    throw Refusal(Refusal::kAssertion,
                  "capturable=True needs a parameter on a device that can capture graphs; this "
                  "one is on the CPU");
  }
  if (list.execution.is_captured) check_capture(plan);

  Update update;
  update.in_double = computes_in_double(views);
  int64_t step = 0, averaged = 0;
  if (plan.step != nullptr) plan_step_count(plan, list, update, step);
  if (plan.averaged != nullptr) plan_averaged_count(plan, list, update, averaged);
  plan_scalars(plan, list, update, step);
  plan_draws(plan, list, update, step);
  if (group_of(plan).epilogue.is_asked_for()) plan_epilogue(plan, list, update, averaged);
  if (plan.has_new_states()) plan_new_states(plan, list);
  if (clipping_.is_asked_for()) list.gradients.add(views[kGrad], update.in_double, plan.sum);
  list.params.push_back(number_of(plan));
  list.updates.add(update, views, operands);
}

TensorView Step::view_of(const ParamPlan& plan, size_t operand) {
  PyObject*& tensor = memory_.tensors_of(plan)[operand];
  const char* const name = name_of(memory_.operands_of(plan)[operand]);
  if (operand == kGrad) return to_view(describe_gradient(tensor), name);
  torch_.refuse_negated_view(tensor, name);
  const DLTensor described = torch_.describe(tensor, name);
  return operand == kParam ? to_view(described, name) : to_view_of_state(described, name);
}

// What the group's options make of the operands' dtypes.
void Step::choose_formats(const ParamPlan& plan) {
  const StorageOptions& storage = group_of(plan).storage;
  const auto all = memory_.operands_of(plan);
  const auto scales = all.subspan(plan.operand_count);
  auto& views = memory_.views;
  views[kParam].format = storage.of_param(views[kParam].format);
  for (size_t k = kFirstState; k < views.size(); ++k) {
    if (all[k].role == rule_.info.role_of_average()) continue;
    if (all[k].role == rule_.info.role_of_remainder()) {
      if (views[k].format == Format::kRemainder) continue;
      throw Refusal(Refusal::kValue, name_of(all[k]) + std::string(" must be of dtype int16"));
    }
    const auto state = static_cast<unsigned>(all[k].role - kFirstState);
    const bool has_scales = std::any_of(scales.begin(), scales.end(), [&](const Operand& operand) {
      return operand.role == rule_.info.role_of_scales(state);
    });
    const StateInfo& info = rule_.info.states[state];
    const int64_t elements = std::max(views[k].numel, plan.part.of);
    views[k].format = storage.of_state(info, views[k].format, has_scales, elements);
  }
  describe_scales(plan);
}

void Step::describe_scales(const ParamPlan& plan) {
  const auto tensors = memory_.tensors_of(plan);
  const auto all = memory_.operands_of(plan);
  const TensorView& param = memory_.views[kParam];
  const int64_t blocks = scales_of(param.numel);
  for (size_t t = plan.operand_count; t < all.size(); ++t) {
    const char* const name = name_of(all[t]);
    const TensorView view = to_view(torch_.describe(tensors[t], name), name);
    if (view.device != param.device || view.format != Format::kFloat32 || view.numel < blocks ||
        !is_contiguous(view)) {
      throw Refusal(Refusal::kRuntime,
                    name + (" must be at least " + std::to_string(blocks) +
                            " numbers of dtype float32 without gaps, on the parameter's device"));
    }
    const auto of_state = std::find_if(all.begin(), all.end(), [&](const Operand& operand) {
      return rule_.info.role_of_scales(static_cast<unsigned>(operand.role - kFirstState)) ==
             all[t].role;
    });
    if (of_state->is_read() && !all[t].is_read()) {
      throw Refusal(Refusal::kValue, name + std::string(" of a new state that holds codes already "
                                                        "must hold its scales, too"));
    }
    of_state->scales = static_cast<float*>(view.data);
  }
}

void Step::plan_draws(const ParamPlan& plan, DeviceUpdates& list, Update& update, int64_t step) {
  const StorageOptions& storage = group_of(plan).storage;
  if (!storage.draws_random_bits()) return;
  update.draws = list.updates.add(Draws{.seed = storage.seed,
                                        .param = plan.number,
                                        .step = static_cast<uint32_t>(step),
                                        .first = plan.part.first});
}

DLTensor Step::describe_gradient(PyObject*& grad) {
  DLTensor described;
  if (torch_.describe_memory(grad, described)) return described;
  if (PyObject* const copy = torch_.copy_of_zeros(grad, memory_.keep)) {
    grad = copy;
    is_stale_ = true;
  }
  return torch_.describe(grad, name_of({.role = kGrad}));
}

// Who derives the scalars: the engine, where the host cannot know them; or else the host.
void Step::plan_scalars(const ParamPlan& plan, DeviceUpdates& list, Update& update, int64_t step) {
  GroupPlan& group = group_of(plan);
  if (group.has_left_options) {
    const auto* const options = &memory_.options[group.first_option];
    // An engine that derives the scalars needs the step count. Where the host has it, the host
    // derives, and needs the options.
    const bool host_counts = plan.step != nullptr && update.step == nullptr;
    const bool are_all_there =
        list.engine->is_asynchronous() && !host_counts &&
        std::all_of(options, options + group.option_count, [&](const GroupOption& option) {
          return option.tensor == nullptr || option.device == list.execution.device;
        });
    if (are_all_there) {
      update.derives = true;
    } else {
      walk_.fetch_options(group);
      is_stale_ = true;
    }
  }
  update.variant =
      static_cast<uint16_t>(plan.is_fresh ? group.hyper->variant(true) : group.variant);
  if (update.variant != group.variant) host_must_know_ = true;
  update.scalars = update.derives
                       ? options_for(group, list)
                       : group.scalars.derived(*group.hyper, list, step, update.in_double);
}

void Step::plan_step_count(ParamPlan& plan, DeviceUpdates& list, Update& update, int64_t& step) {
  Count count{kStepKey, "state 'step'", plan.step};
  count.place = find_count(count.tensor, count.name);
  const bool is_left = leaves(plan, list, count.place);
  place_count(plan, list, count, is_left);
  if (is_left) {
    update.derives = true;
    update.step = count.place.data;
    update.step_type = count.place.type;
  } else {
    step = count_on_host(plan, list, count) + 1;
  }
  memory_.plan.add_count({number_of(plan), count.name}, count.place);
}

// Of a parameter whose steps are counted, the count comes to where they are.
void Step::plan_averaged_count(ParamPlan& plan, DeviceUpdates& list, Update& update,
                               int64_t& averaged) {
  Count count{kAveragedKey, "state 'ema_step'", plan.averaged};
  count.place = find_count(count.tensor, count.name);
  const bool is_left =
      plan.step != nullptr ? update.step != nullptr : leaves(plan, list, count.place);
  if (plan.step != nullptr && !is_left && count.place.device.type != DeviceType::kCpu) {
    replace(plan, count, torch_.to_device(count.tensor, plan.step));
  }
  place_count(plan, list, count, is_left);
  if (is_left) {
    update.derives = true;
    update.averaged = count.place.data;
    update.averaged_type = count.place.type;
  } else {
    averaged = count_on_host(plan, list, count);
  }
  memory_.plan.add_count({number_of(plan), count.name}, count.place);
}

// Whether a count is the device's: where only the device will know whether this step counts, and
// from then on.
bool Step::leaves(const ParamPlan& plan, const DeviceUpdates& list, const NumberPlace& count) {
  return list.engine->is_asynchronous() &&
         (count.device.type != DeviceType::kCpu || group_of(plan).capturable || amp_.may_skip() ||
          clipping_.options().skips_nonfinite);
}

void Step::place_count(ParamPlan& plan, const DeviceUpdates& list, Count& count, bool is_left) {
  const Device& device = list.execution.device;
  if (is_left && count.place.device.type == DeviceType::kCpu && count.place.device != device) {
    if (group_of(plan).capturable) {
      throw Refusal(Refusal::kAssertion, std::string("capturable=True needs ") + count.name +
                                             " on the parameter's device");
    }
    require_count(count);
    replace(plan, count, torch_.to_device(count.tensor, memory_.tensors_of(plan)[kParam]));
  }
  if (count.place.device != (is_left ? device : Device{})) {
    throw Refusal(Refusal::kRuntime, count.name + std::string(" must be on ") +
                                         (is_left ? "the parameter's device" : "the CPU"));
  }
}

// The count before this step. A float32 count would stand still at 2^24; from there on another
// tensor counts.
int64_t Step::count_on_host(ParamPlan& plan, DeviceUpdates& list, Count& count) {
  require_count(count);
  const int64_t before = load_count(count.place.data, count.place.type);
  if (before + 1 > largest_count(count.place.type)) {
    replace(plan, count, torch_.in_double(count.tensor));
  }
  memory_.plan.count_step(list, count.place, before + 1);
  return before;
}

// Of one that the host can read.
void Step::require_count(const Count& count) const {
  if (!is_count(load_number(count.place.data, count.place.type))) {
    refuse_count(count.tensor, count.name);
  }
}

void Step::replace(ParamPlan& plan, Count& count, py::object tensor) {
  count.tensor = memory_.keep.steal(tensor.release().ptr());
  state_.replace(plan, count.key, count.tensor);
  count.place = find_count(count.tensor, count.name);
  is_stale_ = true;
}

// What follows the step. Comes after the options, which may have been fetched from a device.
void Step::plan_epilogue(const ParamPlan& plan, DeviceUpdates& list, Update& update,
                         int64_t averaged) {
  const GroupPlan& group = group_of(plan);
  const double lr = update.derives ? 1 : group.hyper->lr();
  Epilogue epilogue{.l1_threshold = group.epilogue.l1_threshold(lr)};
  const auto operands = memory_.operands_of(plan).first(plan.operand_count);
  for (size_t k = kFirstState; k < operands.size(); ++k) {
    if (operands[k].role != rule_.info.role_of_average()) continue;
    check_average(plan, k);
    epilogue.average = static_cast<uint32_t>(k);
    epilogue.average_weight = plan.begins_average ? 1 : group.epilogue.average_weight(averaged);
  }
  // No average is of a step that is skipped.
  if (plan.begins_average) host_must_know_ = true;
  update.epilogue = list.updates.add(epilogue);
}

// A parameter of few bits moves by less than an average of as many could follow.
void Step::check_average(const ParamPlan& plan, size_t operand) const {
  const Format format = memory_.views[operand].format;
  if (format == Format::kFloat32 || format == Format::kFloat64) return;
  const std::string name = name_of(memory_.operands_of(plan)[operand]);
  throw Refusal(Refusal::kValue, name + " must be of dtype float32 or float64");
}

// An engine that the host does not wait for may skip the step, so torch writes what its new states
// are; any other engine's first touch is its own.
void Step::plan_new_states(const ParamPlan& plan, const DeviceUpdates& list) {
  if (!list.engine->is_asynchronous()) return;
  const std::span<Operand> operands = memory_.operands_of(plan);
  for (size_t k = 0; k < operands.size(); ++k) {
    Operand& operand = operands[k];
    if (operand.is_read()) continue;
    const bool are_codes = k < plan.operand_count && is_scaled(memory_.views[k].format);
    torch_.fill(memory_.tensors_of(plan)[k], are_codes ? kCodeOfOne : operand.initial);
    operand.access = Access::kReadWrite;
    is_stale_ = true;
  }
}

DeviceUpdates& Step::list_for(const Device& device) {
  if (DeviceUpdates* const list = memory_.plan.find(device)) return *list;
  const Execution execution = {.device = device, .stream = torch_.current_stream(device)};
  return memory_.plan.begin(engine_for(device), execution, rule_.info.index);
}

void Step::check_capture(const ParamPlan& plan) {
  const bool counts = plan.step != nullptr || plan.averaged != nullptr;
  if (counts && !group_of(plan).capturable) {
    const py::handle create_state(state_.creator());
    throw Refusal(
        Refusal::kRuntime,
        "Attempting CUDA graph capture of step() for an instance of " +
            to_string(create_state.attr("__self__").attr("__class__").attr("__name__").ptr()) +
            " but param_groups' capturable is False.");
  }
  if (plan.has_new_states()) {
    throw Refusal(Refusal::kRuntime,
                  "its state does not exist yet, and a graph that creates it would do so at every "
                  "replay; call step() once before capturing");
  }
}

void Step::finish_list(DeviceUpdates& list) {
  PyObject* const example = memory_.tensors_of(memory_.params[list.params.front()])[kParam];
  auto [prologue, is_moved] = amp_.on_device(list.execution.device, example, memory_.keep);
  is_stale_ = is_stale_ || is_moved;
  if (list.engine->is_asynchronous() && clipping_.is_asked_for()) {
    const auto [decision, is_new] = clipping_.decision_on(list.execution.device, example, torch_);
    prologue.decision = decision;
    is_stale_ = is_stale_ || is_new;
  }
  list.updates.set_prologue(prologue);
  if (list.engine->is_asynchronous()) return;
  list.execution.max_threads = torch_.num_threads();
  host_must_know_ = true;
}

bool Step::wants_skip() {
  if (!amp_.may_skip()) return false;
  const auto [is_found, has_waited] = amp_.found_inf_on_host();
  is_stale_ = is_stale_ || has_waited;
  return is_found;
}

// What shares memory is put into an order, or refused.
void Step::check_sharing() {
  const auto identity = [&](uint32_t param) { return memory_.params[param].param; };
  if (const auto conflict = memory_.plan.arrange(identity)) refuse(*conflict);
  const auto shared = memory_.plan.shared_counts();
  if (!shared) return;
  const auto [earlier, later] = *shared;
  if (earlier.param != later.param && identity(earlier.param) == identity(later.param)) {
    refuse({PlanConflict::kRepeated, later.param, earlier.param});
  }
  locate(memory_.params[later.param]);
  const bool are_alike = std::string(earlier.name) == later.name;
  throw Refusal(Refusal::kValue, later.name + std::string(" shares memory with ") +
                                     (are_alike ? "that" : earlier.name) + " of " +
                                     place_of(memory_.params[earlier.param]) +
                                     ": each parameter needs a count of its own; clone it first");
}

void Step::refuse(const PlanConflict& conflict) {
  const std::string other = place_of(memory_.params[conflict.other]);
  const std::string& operand = rule_.info.operand_names[conflict.role];
  locate(memory_.params[conflict.param]);
  switch (conflict.kind) {
    case PlanConflict::kRepeated: throw Refusal(Refusal::kValue, "is also " + other);
    case PlanConflict::kScaled:
      throw Refusal(Refusal::kRuntime, operand + " shares memory with that of " + other +
                                           ", so it cannot be unscaled in place");
    default:
      throw Refusal(Refusal::kRuntime, operand + " shares memory with " +
                                           rule_.info.operand_names[conflict.other_role] +
                                           "; clone it first");
  }
}

NumberPlace Step::find_count(PyObject* tensor, const char* name) const {
  torch_.refuse_negated_view(tensor, name);
  const DLTensor described = torch_.describe(tensor, name);
  int64_t numel = 1;
  for (int d = 0; d < described.ndim; ++d) numel *= described.shape[d];
  if (numel != 1) throw Refusal(Refusal::kRuntime, std::string(name) + " must be one number");
  require_memory(described, name);
  const auto place = to_number_place(described);
  if (!place) refuse_count(tensor, name);
  return *place;
}

uint32_t Step::options_for(GroupPlan& group, DeviceUpdates& list) {
  if (const auto position = group.scalars.options_in(list)) return *position;
  std::vector<OptionValue> values;
  for (size_t i = 0; i < group.option_count; ++i) {
    const GroupOption& option = memory_.options[group.first_option + i];
    values.push_back(option.value);
    if (option.tensor != nullptr) values.back().source = torch_.address_of(option.tensor);
  }
  return group.scalars.add_options(values, list);
}

// Writes nothing but decisions, so that nothing has changed if it fails.
void Step::measure() {
  std::vector<ExactSum> sums = clipping_.new_sums();
  DeviceUpdates* const only = memory_.plan.only_asynchronous();
  if (only != nullptr && sums.size() == 1 && !host_must_know_) {
    {
      const ReleasedGil release;
      StepPlan::decide(*only, clipping_.options());
    }
    return clipping_.leave();
  }
  {
    const ReleasedGil release;
    memory_.plan.measure(sums);
  }
  ExactSum total = clipping_.total(sums);
  const IeeeEnvironment environment;
  total.carry();
  const Decision decision = decide(total, clipping_.options(), is_skipped_);
  is_skipped_ = decision.is_skipped != 0;
  const bool has_copied = clipping_.tell(decision);
  // Other ranks were waited for, or Python code has run meanwhile.
  if ((sums.size() > 1 || has_copied) && !is_skipped_) lay_out();
  if (decision.factor != 1) memory_.plan.clip(decision.factor);
}

void Step::run() {
  if (clipping_.is_asked_for()) measure();
  if (is_skipped_) return;
  const std::exception_ptr failure = [&] {
    const ReleasedGil release;
    return memory_.plan.run();
  }();
  for_publishing_.release();
  Interruption interruption;
  memory_.plan.count_steps();
  publish_states(interruption);
  count_versions(interruption);
  if (failure) std::rethrow_exception(failure);
  interruption.raise();
}

void Step::publish_states(Interruption& interruption) {
  if (memory_.new_states.empty()) return;
  for (const ParamPlan& plan : memory_.params) {
    if (!plan.has_new_states() || !plan.list->is_done) continue;
    interruption.hold_off([&] { state_.publish(plan); });
  }
}

void Step::count_versions(Interruption& interruption) {
  const auto& touched = memory_.touched;
  const auto count = [&](size_t first, size_t last) {
    const std::span tensors(touched.data() + first, last - first);
    interruption.hold_off([&] { torch_.increment_versions(tensors); });
  };
  const auto& params = memory_.params;
  const auto is_done = [](const ParamPlan& plan) { return plan.list->is_done; };
  if (std::all_of(params.begin(), params.end(), is_done)) return count(0, touched.size());
  for (size_t p = 0; p < params.size(); ++p) {
    const size_t end = p + 1 < params.size() ? params[p + 1].touched : touched.size();
    if (is_done(params[p])) count(params[p].touched, end);
  }
}

}  // namespace fusedopt
