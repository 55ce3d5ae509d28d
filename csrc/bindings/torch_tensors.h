// Tensors as torch describes them: through its library where that answers, or else through its C
// exchange table (DLPack 1.2 and later).
#pragma once

#include <dlpack/dlpack.h>

#include <optional>
#include <span>
#include <string>

#include "bindings/python.h"
#include "bindings/torch_library.h"
#include "core/plan.h"

namespace fusedopt {

// Elements that are part of a larger tensor.
struct Part {
  int64_t of = 0;     // elements of the whole
  int64_t first = 0;  // number of the first in it
};

class TorchTensors {
 public:
  // What the rest of this library needs of the torch module. unwrap() calls `local_tensor`, and
  // part_of() calls `part_of`.
  // The library only makes this faster; without `use_library` it is left alone.
  void attach(const py::object& torch, const py::object& local_tensor, const py::object& part_of,
              bool use_library);

  // Whether it is of class Tensor or Parameter itself, so that its memory is its own.
  bool is_plain(PyObject* object) const;
  // The plain tensor that holds the memory of `tensor`, which is the gradient or a state of
  // `param`, or param itself or a step count, with None for a param. Raises if there is none.
  PyObject* unwrap(PyObject* tensor, PyObject* param, bool is_grad, KeepAlive& keep) const;
  // How many elements a parameter has on all processes, and which of them is the first of this one.
  Part part_of(PyObject* param) const;

  // Metadata of a plain tensor, valid while it is alive and unchanged. `what` names it in errors.
  // Throws Refusal if its elements are not in memory as those of a tensor are.
  DLTensor describe(PyObject* tensor, const char* what) const;
  // The same, or false instead of a refusal.
  bool describe_memory(PyObject* tensor, DLTensor& result) const;
  // A copy that has memory of a tensor that stands for zeros without having any
  // (torch._efficientzerotensor); null for any other tensor.
  PyObject* copy_of_zeros(PyObject* tensor, KeepAlive& keep) const;

  bool is_tensor(PyObject* object) const;
  // Throws Refusal, which calls the object `what`, if it is none.
  void require_tensor(PyObject* object, const char* what) const;
  // Whether its values are those in memory with the sign flipped. May run Python code.
  bool is_negated_view(PyObject* tensor) const;
  // Throws Refusal if the library says so; where it cannot tell, is_negated_view() has.
  void refuse_negated_view(PyObject* tensor, const char* what) const;

  const TorchLibrary& functions() const { return library_; }

  // Where a tensor of one element keeps it; nothing if the tensor is no such, of another type than
  // those of NumberType, or a negated view.
  std::optional<NumberPlace> find_number(PyObject* tensor) const;

  // The address of the one element of a plain tensor that find_number() has found.
  const void* address_of(PyObject* tensor) const;

  // Copies: one in float64, one on another device.
  py::object in_double(PyObject* tensor) const;
  py::object to_device(PyObject* tensor, PyObject* like) const;

  void fill(PyObject* tensor, double value) const;

  int num_threads() const;
  void* current_stream(const Device& device) const;
  // Tells autograd that these have been changed. Those made in inference mode have no version.
  void increment_versions(std::span<PyObject* const> tensors) const;

 private:
  bool try_describe(PyObject* tensor, DLTensor& result) const;
  // Says why it cannot be described.
  [[noreturn]] void refuse(PyObject* tensor, const char* what) const;

  const DLPackExchangeAPI* api_ = nullptr;
  TorchLibrary library_;
  py::handle tensor_type_, parameter_type_, local_tensor_, part_of_;
  py::handle get_num_threads_, increment_version_, is_neg_;
};

// Throws Refusal if its storage has none.
void require_memory(const DLTensor& tensor, const char* what);

// Where the one element of a tensor is; nothing if it is of another type than those of NumberType.
std::optional<NumberPlace> to_number_place(const DLTensor& tensor);

// Throws Refusal if its elements are of no type that the engines compute in.
TensorView to_view(const DLTensor& tensor, const char* what);

// The same for a state, which may be codes of 8 bits (kUnsigned8, whether signed or not) or the
// remainder of a master.
TensorView to_view_of_state(const DLTensor& tensor, const char* what);

}  // namespace fusedopt
