// What torch's shared library answers about a tensor when asked without Python in between. A step
// asks about every tensor of every parameter, so this is where a step on small tensors spends its
// time.
#pragma once

#include <dlpack/dlpack.h>

#include <array>
#include <optional>
#include <string>
#include <vector>

#include "bindings/python.h"

namespace fusedopt {

class TorchLibrary {
 public:
  // Finds the library's functions and compares what they say of sample tensors with the exchange
  // table and with Python. A function that is missing or says something else is never called again,
  // and none is where the trial itself goes wrong. Passes on what is no error, such as Ctrl-C.
  void attach(const py::object& torch, const DLPackExchangeAPI& table);

  // What it can be asked, in words.
  std::vector<std::string> answers() const;

  // Each answers false or nothing where the library cannot tell; then torch has to be asked in
  // another way. `tensor` is a torch.Tensor of any class, and for the first two one whose memory is
  // its own.
  bool describe(PyObject* tensor, DLTensor& result) const;
  std::optional<bool> is_negated_view(PyObject* tensor) const;
  bool tells_negation() const { return is_neg_ != nullptr; }
  bool increment_version(PyObject* tensor) const;

  // Hints that these will be read soon. Only `prefetch_storage` reads memory itself: that which
  // `prefetch_metadata` of the same tensor has asked for.
  static void prefetch_object(PyObject* tensor) { __builtin_prefetch(tensor); }
  void prefetch_metadata(PyObject* tensor) const;
  void prefetch_storage(PyObject* tensor) const;

 private:
  // The functions of torch's stable C interface (torch/csrc/inductor/aoti_torch/c/shim.h), which
  // return 0 if all went well. A handle is a pointer to an at::Tensor.
  using Handle = void*;
  using Get = int32_t (*)(Handle, void*);

  struct DType {
    int32_t code;
    DLDataType dtype;
  };

  void find_functions(const py::object& torch, const DLPackExchangeAPI& table);
  void find_description(void* library, const py::list& samples, const DLPackExchangeAPI& table);
  void find_negation(void* library, const py::list& samples);
  void find_version(void* library, const py::object& sample);
  bool describe_dtype(Handle handle, DLDataType& result) const;
  bool describe_device(Handle handle, DLDevice& result) const;
  Handle handle_of(PyObject* tensor) const;
  const char* impl_of(PyObject* tensor) const;

  size_t handle_offset_ = 0;  // of the at::Tensor in the Python object; 0: not found
  Get get_data_ptr_ = nullptr, get_dim_ = nullptr, get_sizes_ = nullptr, get_strides_ = nullptr,
      get_dtype_ = nullptr, get_layout_ = nullptr, get_device_type_ = nullptr,
      get_device_index_ = nullptr;
  std::array<DType, 6> dtypes_{};
  int32_t strided_ = 0, cpu_ = 0, cuda_ = 0;

  // Functions of torch's C++ interface, which promises nothing: called with the versions of torch
  // that they were tried with, and with no other.
  bool (*is_neg_)(Handle) = nullptr;
  void (*bump_version_)(Handle) = nullptr;
};

}  // namespace fusedopt
