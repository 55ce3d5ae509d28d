#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "bindings/conversion.h"
#include "bindings/engines.h"
#include "bindings/exceptions.h"
#include "bindings/excursion.h"
#include "bindings/norm.h"
#include "bindings/step.h"
#include "core/refusal.h"
#include "core/rule_info.h"
#include "cpu/isa.h"
#include "cpu/memory.h"
#include "cpu/threads.h"

namespace fusedopt {
namespace {

template <class Rule>
std::unique_ptr<Hyperparameters> read_hyperparameters(GroupOptions& options) {
  return std::make_unique<HyperparametersOf<Rule>>(Rule::read(options));
}

// Never destroyed: it holds references into the interpreter, which is gone when statics are.
std::vector<BoundRule>& rules() {
  static auto* const rules = new std::vector<BoundRule>([] {
    std::vector<BoundRule> bound;
    AllRules::map([&]<class Rule>() {
      const auto index = static_cast<unsigned>(bound.size());
      BoundRule rule{rule_info<Rule>(index), read_hyperparameters<Rule>, {}, {}, {}};
      for (unsigned s = 0; s < Rule::kStates.size(); ++s) {
        rule.state_names.push_back(intern(Rule::kStates[s].name));
        const int role = rule.info.role_of_scales(s);
        rule.scale_names.push_back(intern(rule.info.operand_names[role].c_str()));
      }
      bound.push_back(std::move(rule));
      return index;
    });
    return bound;
  }());
  return *rules;
}

BoundRule& find_rule(const std::string& name) {
  for (BoundRule& rule : rules()) {
    if (name == rule.info.name) return rule;
  }
  throw py::value_error("there is no rule '" + name + "'");
}

TorchTensors& torch_tensors() {
  static auto* const tensors = new TorchTensors;
  return *tensors;
}

// Memory from step to step of one optimizer on this thread: what it remembers is of use to that
// optimizer only, and correct for any. A step inside a step (a callback's) gets its own.
class BorrowedMemory {
 public:
  explicit BorrowedMemory(const void* owner) : owner_(owner) {
    auto spare = std::find_if(spares_.begin(), spares_.end(),
                              [&](const Spare& candidate) { return candidate.owner == owner; });
    if (spare == spares_.end() && spares_.size() == kMost) spare = spares_.begin();
    if (spare == spares_.end()) {
      memory_ = std::make_unique<StepMemory>();
    } else {
      memory_ = std::move(spare->memory);
      spares_.erase(spare);
    }
    spares_.reserve(kMost);
  }
  ~BorrowedMemory() {
    memory_->clear();
    if (spares_.size() == kMost) spares_.erase(spares_.begin());
    spares_.push_back({owner_, std::move(memory_)});
  }
  StepMemory& operator*() { return *memory_; }

 private:
  // Two for a generator and its critic, a few for the parts of a larger model.
  static constexpr size_t kMost = 4;
  struct Spare {
    const void* owner;
    std::unique_ptr<StepMemory> memory;
  };
  static thread_local std::vector<Spare> spares_;  // the one that was used last comes last

  const void* owner_;
  std::unique_ptr<StepMemory> memory_;
};
thread_local std::vector<BorrowedMemory::Spare> BorrowedMemory::spares_;

// Gathers a step and has `act` do something with it. Errors say where in the groups they arose.
template <class Act>
void with_step(const std::string& rule, const py::object& param_groups, const py::object& state,
               const py::object& create_state, const py::object& grad_scale,
               const py::object& found_inf, const py::object& measurement, const Location& only,
               Act act) {
  BorrowedMemory borrowed(state.ptr());
  StepMemory& memory = *borrowed;
  with_exceptions(
      [&] {
        AmpTensors amp(grad_scale.ptr(), found_inf.ptr(), torch_tensors());
        Clipping clipping(measurement.ptr());
        Step step(find_rule(rule), torch_tensors(), state.ptr(), create_state.ptr(), amp, clipping,
                  memory);
        step.gather(param_groups.ptr(), only);
        memory.location = {};
        act(step);
      },
      [&] { return describe(memory.location, memory); });
}

void step(const std::string& rule, const py::object& param_groups, const py::object& state,
          const py::object& create_state, const py::object& grad_scale, const py::object& found_inf,
          const py::object& measurement,
          const std::optional<std::pair<Py_ssize_t, Py_ssize_t>>& only) {
  const Location place = only ? Location{only->first, only->second} : Location{};
  with_step(rule, param_groups, state, create_state, grad_scale, found_inf, measurement, place,
            [](Step& step) { step.run(); });
}

// Refuses what step() would refuse, and writes nothing.
void check_step(const std::string& rule, const py::object& param_groups, const py::object& state,
                const py::object& create_state) {
  with_step(rule, param_groups, state, create_state, py::none(), py::none(), py::none(), {},
            [](Step&) {});
}

// Refuses options of a parameter group that cannot store its parameters, whose dtypes are given by
// their names in torch.
void check_storage(const py::object& group, Py_ssize_t index,
                   const std::vector<std::string>& dtypes) {
  Py_ssize_t param = -1;
  with_exceptions(
      [&] {
        KeepAlive keep;
        const StorageOptions options = read_storage_options(group.ptr(), keep);
        for (const std::string& dtype : dtypes) {
          ++param;
          for (const Format format :
               {Format::kFloat32, Format::kFloat64, Format::kBFloat16, Format::kFloat16}) {
            if (dtype == name_of(format)) (void)options.of_param(format);
          }
        }
      },
      [&] {
        const std::string text = "parameter group " + std::to_string(index);
        return param < 0 ? text : text + ", parameter " + std::to_string(param);
      });
}

// Refuses options of a parameter group for what follows a step.
void check_epilogue(const py::object& group, Py_ssize_t index) {
  with_exceptions(
      [&] {
        KeepAlive keep;
        (void)read_epilogue_options(group.ptr(), keep);
      },
      [&] { return "parameter group " + std::to_string(index); });
}

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const cpu::KernelTable* table : cpu::available_isas()) names.emplace_back(table->isa);
  return names;
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "The native engine of fusedopt. Everything public is in the package above it.";
  m.attr("compiler") = FUSEDOPT_COMPILER;
  m.def(
      "attach",
      [](const py::object& torch, const py::object& local_tensor, const py::object& part_of,
         bool use_library) { torch_tensors().attach(torch, local_tensor, part_of, use_library); },
      py::arg("torch"), py::arg("local_tensor"), py::arg("part_of"), py::arg("use_library") = true);
  m.def("torch_answers", [] { return torch_tensors().functions().answers(); });
  m.def(
      "step", &step, py::arg("rule"), py::arg("param_groups"), py::arg("state"),
      py::arg("create_state"), py::arg("grad_scale") = py::none(),
      py::arg("found_inf") = py::none(), py::arg("measurement") = py::none(),
      py::arg("only") = py::none(),
      "Updates every parameter of all groups that has a gradient, or the one at a place, which is "
      "the index of a group and that of a parameter in it; or raises and changes nothing.");
  m.def("check_step", &check_step, py::arg("rule"), py::arg("param_groups"), py::arg("state"),
        py::arg("create_state"));
  m.def("check_epilogue", &check_epilogue, py::arg("group"), py::arg("index"));
  m.def("check_storage", &check_storage, py::arg("group"), py::arg("index"), py::arg("dtypes"));
  m.def(
      "states",
      [](const std::string& rule) {
        py::dict signs;
        for (const StateInfo& state : find_rule(rule).info.states) {
          signs[state.name] = state.is_signed;
        }
        return signs;
      },
      py::arg("rule"), "The states of a rule, and whether their numbers may be negative.");
  m.def(
      "counts_steps", [](const std::string& rule) { return find_rule(rule).info.counts_steps; },
      py::arg("rule"));
  define_conversion(m, torch_tensors());
  define_excursion(m);
  define_norm(m, torch_tensors());
  m.def(
      "load_cuda", [] { with_exceptions([] { cuda_engine_of_module(); }); },
      "Loads the CUDA engine, as the first step of a parameter on a GPU does.");
  m.def("use_engine_on_cpu", &use_engine_on_cpu, py::arg("engine"));
  m.def("is_forked", &cpu::is_forked_process);
  m.def("use_huge_pages", &cpu::use_huge_pages, py::arg("wanted"));
  m.def("available_isas", &available_isas);
  m.def("selected_isa", [] { return cpu::selected_isa().isa; });
  m.def(
      "select_isa",
      [](const std::string& name) { with_exceptions([&] { cpu::select_isa(name); }); },
      py::arg("name"));
}

}  // namespace fusedopt
