#include "bindings/norm.h"

#include <algorithm>

#include "bindings/clipping.h"
#include "bindings/engines.h"
#include "bindings/exceptions.h"
#include "core/ieee_environment.h"
#include "cpu/measure.h"

namespace fusedopt {
namespace {

// The sums of plain tensors, of which each belongs to one.
class TensorSquares {
 public:
  explicit TensorSquares(const TorchTensors& torch) : torch_(torch) {
    execution_.max_threads = torch.num_threads();
  }

  void add(PyObject* tensor, uint32_t sum) {
    torch_.require_tensor(tensor, "an element of the list");
    PyObject* const zeros = torch_.copy_of_zeros(tensor, keep_);
    const DLTensor described = torch_.describe(zeros == nullptr ? tensor : zeros, kName);
    const TensorView view = to_view(described, kName);
    if (!engine_for(view.device).measures()) {
      throw Refusal(Refusal::kNotImplemented,
                    "the norm of tensors is measured on the CPU only so far");
    }
    list_.add(view, false, sum);
    sums_.resize(std::max<size_t>(sums_.size(), sum + 1));
  }

  const std::vector<ExactSum>& measure() {
    const ReleasedGil release;
    cpu_engine().measure(list_, {}, execution_, sums_);
    return sums_;
  }

 private:
  static constexpr const char* kName = "the tensor";

  const TorchTensors& torch_;
  Execution execution_;
  KeepAlive keep_;
  SquareList list_;
  std::vector<ExactSum> sums_{1};
};

py::list sums_of_squares(const TorchTensors& torch, const py::list& tensors, const py::list& sums) {
  py::list result;
  size_t position = 0;
  with_exceptions(
      [&] {
        TensorSquares squares(torch);
        for (; position < tensors.size(); ++position) {
          squares.add(py::object(tensors[position]).ptr(), py::cast<uint32_t>(sums[position]));
        }
        for (ExactSum sum : squares.measure()) {
          sum.carry();
          result.append(to_list(sum));
        }
      },
      [&] {
        return position < tensors.size() ? "tensor " + std::to_string(position) : std::string();
      });
  return result;
}

// Of tensors on the CPU, without gaps.
void touch_lines(const TorchTensors& torch, const py::list& tensors) {
  constexpr const char* kName = "the tensor";
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
      "The exact sums of the squares of tensors on the CPU, each of which belongs to one sum.");
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
