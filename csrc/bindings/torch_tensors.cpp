#include "bindings/torch_tensors.h"

#include <algorithm>

#include "core/refusal.h"

namespace fusedopt {
namespace {

Device to_device(DLDevice device) {
  const DeviceType type = device.device_type == kDLCPU    ? DeviceType::kCpu
                          : device.device_type == kDLCUDA ? DeviceType::kCuda
                                                          : DeviceType::kOther;
  return {type, device.device_id};
}

std::optional<NumberType> to_number_type(DLDataType dtype) {
  if (dtype.lanes != 1) return std::nullopt;
  if (dtype.code == kDLFloat && dtype.bits == 32) return NumberType::kFloat32;
  if (dtype.code == kDLFloat && dtype.bits == 64) return NumberType::kFloat64;
  if (dtype.code == kDLInt && dtype.bits == 32) return NumberType::kInt32;
  if (dtype.code == kDLInt && dtype.bits == 64) return NumberType::kInt64;
  return std::nullopt;
}

constexpr uint32_t kOldestMinorVersion = 2;  // the first with an exchange table

std::string to_string(DLPackVersion version) {
  return std::to_string(version.major) + "." + std::to_string(version.minor);
}

// Torch's exchange table, or, if torch has gone on to another major version, the one of ours that
// it keeps for those who know no other.
const DLPackExchangeAPI* find_exchange_table(const py::object& tensor_type) {
  if (!py::hasattr(tensor_type, "__dlpack_c_exchange_api__")) {
    throw py::import_error(
        "fusedopt needs torch 2.10 or later: this one has no __dlpack_c_exchange_api__");
  }
  const py::object capsule = tensor_type.attr("__dlpack_c_exchange_api__");
  constexpr const char* kCapsule = "dlpack_exchange_api";
  if (!PyCapsule_IsValid(capsule.ptr(), kCapsule)) {
    throw py::import_error("torch's __dlpack_c_exchange_api__ holds no exchange table: " +
                           py::repr(capsule).cast<std::string>());
  }
  const auto* const newest =
      static_cast<const DLPackExchangeAPIHeader*>(PyCapsule_GetPointer(capsule.ptr(), kCapsule));
  const auto* header = newest;
  while (header != nullptr && header->version.major != DLPACK_MAJOR_VERSION) {
    header = header->prev_api;
  }
  if (header == nullptr || header->version.minor < kOldestMinorVersion) {
    throw py::import_error("fusedopt needs an exchange table of DLPack " +
                           to_string({DLPACK_MAJOR_VERSION, kOldestMinorVersion}) +
                           " or a later minor version; that of this torch is of version " +
                           to_string((header == nullptr ? newest : header)->version));
  }
  const auto* const api = reinterpret_cast<const DLPackExchangeAPI*>(header);
  if (api->dltensor_from_py_object_no_sync == nullptr || api->current_work_stream == nullptr) {
    throw py::import_error(
        "the exchange table of this torch lacks dltensor_from_py_object_no_sync or "
        "current_work_stream");
  }
  return api;
}

bool lacks_memory(const DLTensor& tensor) {
  return tensor.data == nullptr &&
         std::find(tensor.shape, tensor.shape + tensor.ndim, 0) == tensor.shape + tensor.ndim;
}

// Whether torch answers yes to one of its private questions, which another torch may not have.
bool says(const py::object& module, const char* question, const py::handle& tensor) {
  if (!py::hasattr(module, question)) return false;
  return module.attr(question)(tensor).ptr() == Py_True;
}

// What kind of tensor it is, if of one whose elements are not where a tensor's are; or nothing.
std::string unusual_kind(const py::handle& tensor) {
  const py::module_ torch = py::module_::import("torch");
  const py::object functorch = py::getattr(torch.attr("_C"), "_functorch", py::none());
  if (says(functorch, "is_functorch_wrapped_tensor", tensor)) {
    return "a tensor inside of a transform of torch.func (vmap, grad); step outside of it";
  }
  if (says(torch, "_is_functional_tensor", tensor)) {
    return "a functionalized tensor, which records operations and has no memory";
  }
  if (says(torch, "_is_zerotensor", tensor)) {
    return "a zero tensor (torch._efficientzerotensor), which has no memory; clone() gives it some";
  }
  if (tensor.attr("is_nested").ptr() == Py_True) {
    return "a nested tensor; nested tensors are not supported";
  }
  const py::object layout = tensor.attr("layout");
  if (layout.equal(torch.attr("strided"))) return "";
  const auto name = py::str(layout).cast<std::string>();
  if (name.find("sparse") == std::string::npos) {
    return "of layout " + name + ", which is not supported; to_dense() makes a strided tensor";
  }
  return "sparse (" + name + "); sparse tensors are not supported";
}

}  // namespace

void TorchTensors::attach(const py::object& torch, const py::object& local_tensor,
                          const py::object& part_of, bool use_library) {
  const py::object tensor_type = torch.attr("Tensor");
  const DLPackExchangeAPI* const api = find_exchange_table(tensor_type);
  TorchLibrary library;
  if (use_library) library.attach(torch, *api);
  // These live as long as torch does, which is as long as the process.
  const auto keep = [](py::object object) { return object.release(); };
  api_ = api;
  library_ = library;
  tensor_type_ = keep(tensor_type);
  parameter_type_ = keep(torch.attr("nn").attr("Parameter"));
  local_tensor_ = keep(local_tensor);
  part_of_ = keep(part_of);
  get_num_threads_ = keep(torch.attr("get_num_threads"));
  increment_version_ = keep(torch.attr("autograd").attr("graph").attr("increment_version"));
  is_neg_ = keep(tensor_type.attr("is_neg"));
}

DLTensor TorchTensors::describe(PyObject* tensor, const char* what) const {
  DLTensor result;
  if (!describe_memory(tensor, result)) refuse(tensor, what);
  return result;
}

bool TorchTensors::describe_memory(PyObject* tensor, DLTensor& result) const {
  return try_describe(tensor, result) && !lacks_memory(result);
}

PyObject* TorchTensors::copy_of_zeros(PyObject* tensor, KeepAlive& keep) const {
  if (!says(py::module_::import("torch"), "_is_zerotensor", tensor)) return nullptr;
  return keep.steal(take(PyObject_CallMethod(tensor, "clone", nullptr)).release().ptr());
}

bool TorchTensors::try_describe(PyObject* tensor, DLTensor& result) const {
  if (library_.describe(tensor, result)) return true;
  if (api_->dltensor_from_py_object_no_sync(tensor, &result) == 0) return true;
  PyErr_Clear();
  return false;
}

bool TorchTensors::is_plain(PyObject* object) const {
  const auto* type = reinterpret_cast<PyObject*>(Py_TYPE(object));
  return type == tensor_type_.ptr() || type == parameter_type_.ptr();
}

bool TorchTensors::is_tensor(PyObject* object) const {
  return is_plain(object) ||
         PyObject_TypeCheck(object, reinterpret_cast<PyTypeObject*>(tensor_type_.ptr()));
}

void TorchTensors::require_tensor(PyObject* object, const char* what) const {
  if (is_tensor(object)) return;
  throw Refusal(Refusal::kType,
                std::string(what) + " is not a tensor but of class " + Py_TYPE(object)->tp_name);
}

PyObject* TorchTensors::unwrap(PyObject* tensor, PyObject* param, bool is_grad,
                               KeepAlive& keep) const {
  return keep.steal(take(PyObject_CallFunctionObjArgs(local_tensor_.ptr(), tensor, param,
                                                      is_grad ? Py_True : Py_False, nullptr))
                        .release()
                        .ptr());
}

Part TorchTensors::part_of(PyObject* param) const {
  const auto [of, first] =
      take(PyObject_CallOneArg(part_of_.ptr(), param)).cast<std::pair<int64_t, int64_t>>();
  return {of, first};
}

bool TorchTensors::is_negated_view(PyObject* tensor) const {
  if (is_plain(tensor)) {
    if (const std::optional<bool> answer = library_.is_negated_view(tensor)) return *answer;
  }
  return take(PyObject_CallOneArg(is_neg_.ptr(), tensor)).ptr() == Py_True;
}

void TorchTensors::refuse_negated_view(PyObject* tensor, const char* what) const {
  if (!library_.is_negated_view(tensor).value_or(false)) return;
  throw Refusal(Refusal::kValue, std::string(what) + " is a negated view of its memory");
}

std::optional<NumberPlace> TorchTensors::find_number(PyObject* tensor) const {
  DLTensor described;
  if (!is_plain(tensor) || is_negated_view(tensor)) return std::nullopt;
  if (!try_describe(tensor, described)) return std::nullopt;
  for (int d = 0; d < described.ndim; ++d) {
    if (described.shape[d] != 1) return std::nullopt;
  }
  if (described.device.device_type == kDLCPU) require_memory(described, "a number in a tensor");
  return to_number_place(described);
}

const void* TorchTensors::address_of(PyObject* tensor) const {
  const DLTensor described = describe(tensor, "a number in a tensor");
  require_memory(described, "a number in a tensor");
  return static_cast<const char*>(described.data) + described.byte_offset;
}

py::object TorchTensors::in_double(PyObject* tensor) const {
  return take(PyObject_CallMethod(tensor, "double", nullptr));
}

py::object TorchTensors::to_device(PyObject* tensor, PyObject* like) const {
  return py::handle(tensor).attr("to")(py::handle(like).attr("device"));
}

void TorchTensors::fill(PyObject* tensor, double value) const {
  take(PyObject_CallMethod(tensor, "fill_", "d", value));
}

void* TorchTensors::current_stream(const Device& device) const {
  void* stream = nullptr;
  if (device.type != DeviceType::kCuda) return stream;
  if (api_->current_work_stream(kDLCUDA, device.index, &stream) != 0) {
    throw py::error_already_set();
  }
  return stream;
}

int TorchTensors::num_threads() const {
  return take(PyObject_CallNoArgs(get_num_threads_.ptr())).cast<int>();
}

void TorchTensors::increment_versions(std::span<PyObject* const> tensors) const {
  py::object left;
  for (PyObject* tensor : tensors) {
    if (library_.increment_version(tensor)) continue;
    if (!left) left = py::list();
    if (PyList_Append(left.ptr(), tensor) != 0) throw py::error_already_set();
  }
  if (left) take(PyObject_CallOneArg(increment_version_.ptr(), left.ptr()));
}

void TorchTensors::refuse(PyObject* tensor, const char* what) const {
  const std::string name(what);
  if (const std::string kind = unusual_kind(tensor); !kind.empty()) {
    throw Refusal(Refusal::kRuntime, name + " is " + kind);
  }
  DLTensor described;
  if (try_describe(tensor, described)) require_memory(described, what);
  const py::handle object(tensor);
  throw Refusal(Refusal::kNotImplemented,
                name + " of type " + py::str(object.attr("dtype")).cast<std::string>() +
                    " on device " + py::str(object.attr("device")).cast<std::string>() +
                    " cannot be accessed: there is no engine for it");
}

namespace {

Format to_format(DLDataType dtype, const char* what) {
  if (dtype.lanes == 1) {
    if (dtype.code == kDLFloat && dtype.bits == 32) return Format::kFloat32;
    if (dtype.code == kDLFloat && dtype.bits == 64) return Format::kFloat64;
    if (dtype.code == kDLBfloat && dtype.bits == 16) return Format::kBFloat16;
    if (dtype.code == kDLFloat && dtype.bits == 16) return Format::kFloat16;
  }
  const char* kind = dtype.code == kDLComplex                        ? "complex"
                     : dtype.code == kDLInt || dtype.code == kDLUInt ? "integer"
                     : dtype.code == kDLBool                         ? "bool"
                                                                     : "unknown";
  throw Refusal(Refusal::kRuntime,
                std::string(what) + " has an unsupported dtype (" + kind + ", " +
                    std::to_string(dtype.bits) +
                    " bits); supported are float32, float64, bfloat16 and float16");
}

}  // namespace

void require_memory(const DLTensor& tensor, const char* what) {
  if (tensor.data != nullptr) return;
  throw Refusal(Refusal::kRuntime,
                std::string(what) + " has no memory: its storage was freed, or never made");
}

std::optional<NumberPlace> to_number_place(const DLTensor& tensor) {
  const std::optional<NumberType> type = to_number_type(tensor.dtype);
  if (!type || tensor.data == nullptr) return std::nullopt;
  return NumberPlace{static_cast<char*>(tensor.data) + tensor.byte_offset, *type,
                     to_device(tensor.device)};
}

namespace {

TensorView to_view(const DLTensor& tensor, const char* what, Format format) {
  TensorView view;
  view.data = static_cast<char*>(tensor.data) + tensor.byte_offset;
  view.numel = 1;
  for (int d = 0; d < tensor.ndim; ++d) view.numel *= tensor.shape[d];
  if (view.numel > 0) require_memory(tensor, what);
  view.sizes = tensor.shape;
  view.strides = tensor.strides;
  view.ndim = tensor.ndim;
  view.format = format;
  view.device = to_device(tensor.device);
  return view;
}

bool is_of(DLDataType dtype, DLDataTypeCode code, int bits) {
  return dtype.lanes == 1 && dtype.code == code && dtype.bits == bits;
}

}  // namespace

TensorView to_view(const DLTensor& tensor, const char* what) {
  return to_view(tensor, what, to_format(tensor.dtype, what));
}

TensorView to_view_of_state(const DLTensor& tensor, const char* what) {
  if (is_of(tensor.dtype, kDLUInt, 8)) return to_view(tensor, what, Format::kUnsigned8);
  if (is_of(tensor.dtype, kDLInt, 16)) return to_view(tensor, what, Format::kRemainder);
  return to_view(tensor, what);
}

}  // namespace fusedopt
