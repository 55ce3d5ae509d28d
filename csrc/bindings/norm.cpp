#include "bindings/norm.h"

#include <algorithm>

#include "bindings/clipping.h"
#include "bindings/engines.h"
#include "bindings/exceptions.h"
#include "core/ieee_environment.h"
#include "cpu/measure.h"

namespace fusedopt {
namespace {

constexpr const char* kName = "the tensor";

// Plain tensors on any devices, of which each belongs to a sum.
class TensorSquares {
 public:
  explicit TensorSquares(const TorchTensors& torch) : torch_(torch) {}

  void add(PyObject* tensor, uint32_t sum) {
    torch_.require_tensor(tensor, "an element of the list");
    PyObject* const zeros = torch_.copy_of_zeros(tensor, keep_);
    const TensorView view = view_of(zeros == nullptr ? tensor : zeros);
    list_for(view.device).tensors.add(view, false, sum);
    sums_.resize(std::max<size_t>(sums_.size(), sum + 1));
  }

  const std::vector<ExactSum>& measure() {
    const ReleasedGil release;
    for (DeviceList& list : lists_) {
      list.engine->measure(list.tensors, {}, list.execution, list.memory, sums_);
    }
    return sums_;
  }

  // The device on which a first tensor lies, if the host need not wait for it.
  std::optional<Device> asynchronous_device(PyObject* tensor) const {
    torch_.require_tensor(tensor, "an element of the list");
    DLTensor described;
    if (!torch_.describe_memory(tensor, described)) return std::nullopt;
    const Device device = to_view(described, kName).device;
    if (!engine_for(device).is_asynchronous()) return std::nullopt;
    return device;
  }

  // Whether the device has been asked to decide: all tensors are on one.
  bool decide(Decision* decision, const ClipOptions& options) {
    if (lists_.size() > 1) return false;
    const ReleasedGil release;
    DeviceList& list = lists_.front();
    list.engine->decide(list.tensors, {.decision = decision}, list.execution, list.memory, options);
    return true;
  }

 private:
  struct DeviceList {
    Engine* engine;
    Execution execution;
    SquareList tensors;
    std::unique_ptr<EngineMemory> memory;
  };

  TensorView view_of(PyObject* tensor) const {
    return to_view(torch_.describe(tensor, kName), kName);
  }

  DeviceList& list_for(const Device& device) {
    for (DeviceList& list : lists_) {
      if (list.execution.device == device) return list;
    }
    DeviceList& list = lists_.emplace_back();
    list.engine = &engine_for(device);
    list.execution = {.device = device,
                      .stream = torch_.current_stream(device),
                      .max_threads = torch_.num_threads()};
    list.execution.is_captured = list.engine->is_capturing(list.execution);
    return list;
  }

  const TorchTensors& torch_;
  KeepAlive keep_;
  std::vector<DeviceList> lists_;
  std::vector<ExactSum> sums_{1};
};

// Calls act(squares, position), where position is that of the tensor at hand, for errors.
template <class Act>
void with_squares(const TorchTensors& torch, const py::list& tensors, Act act) {
  size_t position = 0;
  with_exceptions(
      [&] {
        TensorSquares squares(torch);
        act(squares, position);
      },
      [&] {
        return position < tensors.size() ? "tensor " + std::to_string(position) : std::string();
      });
}

py::list sums_of_squares(const TorchTensors& torch, const py::list& tensors, const py::list& sums) {
  py::list result;
  with_squares(torch, tensors, [&](TensorSquares& squares, size_t& position) {
    for (; position < tensors.size(); ++position) {
      squares.add(py::object(tensors[position]).ptr(), py::cast<uint32_t>(sums[position]));
    }
    for (ExactSum sum : squares.measure()) {
      sum.carry();
      result.append(to_list(sum));
    }
  });
  return result;
}

// `new_decision` makes the memory, before any other tensor is described.
py::object decide_on_device(const TorchTensors& torch, const py::list& tensors, double max_norm,
                            const py::object& new_decision) {
  py::object result = py::none();
  with_squares(torch, tensors, [&](TensorSquares& squares, size_t& position) {
    const py::object first = tensors[0];
    const auto device = squares.asynchronous_device(first.ptr());
    if (!device) return;
    const py::object memory = new_decision(first);
    Decision* const decision = to_decision(memory.ptr(), *device, torch);
    for (; position < tensors.size(); ++position) {
      squares.add(py::object(tensors[position]).ptr(), 0);
    }
    if (squares.decide(decision, {.max_norm = max_norm})) result = memory;
  });
  return result;
}

// Of tensors on the CPU, without gaps.
void touch_lines(const TorchTensors& torch, const py::list& tensors) {
  SquareList list;
  with_exceptions(
      [&] {
        for (const py::handle tensor : tensors) {
          torch.require_tensor(tensor.ptr(), "an element of the list");
          const DLTensor described = torch.describe(tensor.ptr(), kName);
          const TensorView view = to_view(described, kName);
          list.add(view, false, 0);
          if (view.device.type == DeviceType::kCpu && list.tensors().back().dim_count == 0)
            continue;
          throw Refusal(Refusal::kValue, "it has gaps in its memory, or is not on the CPU");
        }
        const int max_threads = torch.num_threads();
        const ReleasedGil release;
        cpu::touch_lines(list, max_threads);
      },
      [&] { return "tensor " + std::to_string(std::max<size_t>(list.tensors().size(), 1) - 1); });
}

}  // namespace

void define_norm(py::module_& m, const TorchTensors& torch) {
  m.def(
      "sums_of_squares",
      [&torch](const py::list& tensors, const py::list& sums) {
        return sums_of_squares(torch, tensors, sums);
      },
      py::arg("tensors"), py::arg("sums"),
      "The exact sums of the squares of tensors, each of which belongs to one sum.");
  m.def(
      "decide_on_device",
      [&torch](const py::list& tensors, double max_norm, const py::object& new_decision) {
        return decide_on_device(torch, tensors, max_norm, new_decision);
      },
      py::arg("tensors"), py::arg("max_norm"), py::arg("new_decision"),
      "What new_decision(tensors[0]) has made: the norm of all and the factor that clips it, which "
      "their device writes there. None if they are on the CPU, or on several devices.");
  m.def(
      "touch_lines", [&torch](const py::list& tensors) { touch_lines(torch, tensors); },
      py::arg("tensors"),
      "Reads a byte of every cache line of tensors on the threads that sums_of_squares takes.");
  m.def(
      "norm_of_squares",
      [](const py::object& sum) {
        double norm = 0;
        with_exceptions([&] {
          const IeeeEnvironment environment;
          norm = norm_of(to_sum(sum));
        });
        return norm;
      },
      py::arg("squares"));
  m.def(
      "clip_factor",
      [](double max_norm, double norm) {
        const IeeeEnvironment environment;
        return clip_factor(max_norm, norm);
      },
      py::arg("max_norm"), py::arg("norm"));
}

}  // namespace fusedopt
