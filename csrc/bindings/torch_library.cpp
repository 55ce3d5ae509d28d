#include "bindings/torch_library.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <iterator>

namespace fusedopt {
namespace {

// Sizes, strides, offsets and dtypes of many kinds, of Tensor and Parameter.
py::list make_samples(const py::object& torch) {
  const auto empty = [&](const auto&... arguments) {
    return torch.attr("empty")(arguments..., py::arg("device") = "cpu");
  };
  const py::object matrix = empty(4, 6);
  py::list samples;
  samples.append(matrix);
  samples.append(matrix.attr("t")());
  samples.append(matrix.attr("narrow")(1, 2, 3));
  samples.append(empty(py::tuple()));
  samples.append(empty(0, 3));
  samples.append(torch.attr("nn").attr("Parameter")(empty(5)));
  for (const char* dtype : {"float64", "bfloat16", "float16", "int32", "int64"}) {
    samples.append(empty(2, 3, 4, py::arg("dtype") = torch.attr(dtype)));
  }
  return samples;
}

bool is_same(const DLTensor& a, const DLTensor& b) {
  const auto data = [](const DLTensor& t) { return static_cast<char*>(t.data) + t.byte_offset; };
  return data(a) == data(b) && a.ndim == b.ndim && std::equal(a.shape, a.shape + a.ndim, b.shape) &&
         std::equal(a.strides, a.strides + a.ndim, b.strides) && a.dtype.code == b.dtype.code &&
         a.dtype.bits == b.dtype.bits && a.dtype.lanes == b.dtype.lanes &&
         a.device.device_type == b.device.device_type && a.device.device_id == b.device.device_id;
}

// torch tells the address of a tensor's implementation, which is all that an at::Tensor holds;
// where in the Python object that is is found by looking for it.
size_t find_handle_offset(const py::list& samples) {
  const auto holds_implementation_at = [](const py::handle& tensor, size_t offset) {
    uintptr_t word;
    std::memcpy(&word, reinterpret_cast<const char*>(tensor.ptr()) + offset, sizeof word);
    return word == tensor.attr("_cdata").cast<uintptr_t>();
  };
  if (!py::hasattr(samples[0], "_cdata")) return 0;
  size_t size = SIZE_MAX;
  for (const py::handle tensor : samples) {
    size = std::min(size, static_cast<size_t>(Py_TYPE(tensor.ptr())->tp_basicsize));
  }
  for (size_t offset = sizeof(PyObject); offset + sizeof(void*) <= size; offset += sizeof(void*)) {
    if (std::all_of(samples.begin(), samples.end(), [&](const py::handle& tensor) {
          return holds_implementation_at(tensor, offset);
        }))
      return offset;
  }
  return 0;
}

template <class Function>
bool find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  return function != nullptr;
}

bool find_constant(void* library, const char* name, int32_t& constant) {
  int32_t (*function)() = nullptr;
  if (!find(library, name, function)) return false;
  constant = function();
  return true;
}

// The releases of torch whose C++ functions were tried. A later one may give another meaning to
// their arguments, and calling such a function is no way to find that out.
struct Release {
  int major, minor;
};
constexpr Release kTriedReleases[] = {{2, 13}};

// Of "2.13.0" and "2.13.1+cu130"; not of "2.13.0a0+git1234567" and "2.13.0rc1", which come ahead of
// the release, nor of what reads in no such way.
std::optional<Release> read_release(const std::string& version) {
  Release release;
  int patch = 0, length = 0;
  const int read = std::sscanf(version.c_str(), "%4d.%4d.%4d%n", &release.major, &release.minor,
                               &patch, &length);
  const char behind = version.c_str()[length];
  const bool is_whole = read == 3 && (behind == '\0' || behind == '+');
  return is_whole ? std::optional(release) : std::nullopt;
}

bool is_tried(const py::object& torch) {
  const std::string version = py::str(py::getattr(torch, "__version__", py::none()));
  const std::optional<Release> release = read_release(version);
  if (!release) return false;
  return std::any_of(std::begin(kTriedReleases), std::end(kTriedReleases), [&](Release tried) {
    return tried.major == release->major && tried.minor == release->minor;
  });
}

}  // namespace

void TorchLibrary::attach(const py::object& torch, const DLPackExchangeAPI& table) {
  try {
    find_functions(torch, table);
  } catch (const py::error_already_set& error) {  // the mode that torch is in makes other tensors
    if (!error.matches(PyExc_Exception)) throw;
    *this = {};
  } catch (const ForcedUnwind&) {
    throw;
  } catch (...) {  // whatever torch's own functions, or the conversions of what it says, throw
    *this = {};
  }
}

void TorchLibrary::find_functions(const py::object& torch, const DLPackExchangeAPI& table) {
  // torch has loaded it, and never unloads it.
  void* const library = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD);
  if (library == nullptr) return;
  const py::list samples = make_samples(torch);
  handle_offset_ = find_handle_offset(samples);
  if (handle_offset_ == 0) return;
  find_description(library, samples, table);
  if (!is_tried(torch)) return;
  find_negation(library, samples);
  find_version(library, samples[0]);
}

std::vector<std::string> TorchLibrary::answers() const {
  std::vector<std::string> names;
  if (get_data_ptr_ != nullptr) names.emplace_back("description");
  if (is_neg_ != nullptr) names.emplace_back("negation");
  if (bump_version_ != nullptr) names.emplace_back("version");
  return names;
}

void TorchLibrary::find_description(void* library, const py::list& samples,
                                    const DLPackExchangeAPI& table) {
  const auto find_dtype = [&](size_t i, const char* name, DLDataType dtype) {
    dtypes_[i].dtype = dtype;
    return find_constant(library, name, dtypes_[i].code);
  };
  Get get_data_ptr = nullptr;
  const bool is_found = find(library, "aoti_torch_get_data_ptr", get_data_ptr) &&
                        find(library, "aoti_torch_get_dim", get_dim_) &&
                        find(library, "aoti_torch_get_sizes", get_sizes_) &&
                        find(library, "aoti_torch_get_strides", get_strides_) &&
                        find(library, "aoti_torch_get_dtype", get_dtype_) &&
                        find(library, "aoti_torch_get_layout", get_layout_) &&
                        find(library, "aoti_torch_get_device_type", get_device_type_) &&
                        find(library, "aoti_torch_get_device_index", get_device_index_) &&
                        find_constant(library, "aoti_torch_layout_strided", strided_) &&
                        find_constant(library, "aoti_torch_device_type_cpu", cpu_) &&
                        find_constant(library, "aoti_torch_device_type_cuda", cuda_) &&
                        find_dtype(0, "aoti_torch_dtype_float32", {kDLFloat, 32, 1}) &&
                        find_dtype(1, "aoti_torch_dtype_bfloat16", {kDLBfloat, 16, 1}) &&
                        find_dtype(2, "aoti_torch_dtype_float16", {kDLFloat, 16, 1}) &&
                        find_dtype(3, "aoti_torch_dtype_float64", {kDLFloat, 64, 1}) &&
                        find_dtype(4, "aoti_torch_dtype_int64", {kDLInt, 64, 1}) &&
                        find_dtype(5, "aoti_torch_dtype_int32", {kDLInt, 32, 1});
  if (!is_found) return;
  get_data_ptr_ = get_data_ptr;
  for (const py::handle sample : samples) {
    DLTensor expected, found;
    if (table.dltensor_from_py_object_no_sync(sample.ptr(), &expected) != 0) {
      throw py::error_already_set();
    }
    // One without memory, as some modes of torch make them, proves nothing.
    const bool shows_memory = expected.data != nullptr || sample.attr("numel")().equal(py::int_(0));
    if (describe(sample.ptr(), found) && is_same(expected, found) && shows_memory) continue;
    get_data_ptr_ = nullptr;
    return;
  }
}

void TorchLibrary::find_negation(void* library, const py::list& samples) {
  if (!find(library, "_ZN2at6native6is_negERKNS_6TensorE", is_neg_)) return;
  for (const py::handle sample : samples) {
    const py::object negated = sample.attr("_neg_view")();
    if (!is_neg_(handle_of(sample.ptr())) && is_neg_(handle_of(negated.ptr()))) continue;
    is_neg_ = nullptr;
    return;
  }
}

void TorchLibrary::find_version(void* library, const py::object& sample) {
  if (!find(library, "_ZN5torch8autograd4impl12bump_versionERKN2at6TensorE", bump_version_)) return;
  const auto version = [&] { return sample.attr("_version").cast<int64_t>(); };
  const int64_t before = version();
  bump_version_(handle_of(sample.ptr()));
  if (version() != before + 1) bump_version_ = nullptr;
}

TorchLibrary::Handle TorchLibrary::handle_of(PyObject* tensor) const {
  return reinterpret_cast<char*>(tensor) + handle_offset_;
}

bool TorchLibrary::describe(PyObject* tensor, DLTensor& result) const {
  if (get_data_ptr_ == nullptr) return false;
  const Handle handle = handle_of(tensor);
  int32_t layout;
  int64_t dim;
  if (get_layout_(handle, &layout) != 0 || layout != strided_ ||
      !describe_dtype(handle, result.dtype) || !describe_device(handle, result.device) ||
      get_dim_(handle, &dim) != 0 || get_sizes_(handle, &result.shape) != 0 ||
      get_strides_(handle, &result.strides) != 0 || get_data_ptr_(handle, &result.data) != 0) {
    return false;
  }
  result.ndim = static_cast<int32_t>(dim);
  result.byte_offset = 0;
  return true;
}

bool TorchLibrary::describe_dtype(Handle handle, DLDataType& result) const {
  int32_t code;
  if (get_dtype_(handle, &code) != 0) return false;
  for (const DType& known : dtypes_) {
    if (known.code != code) continue;
    result = known.dtype;
    return true;
  }
  return false;
}

bool TorchLibrary::describe_device(Handle handle, DLDevice& result) const {
  int32_t type;
  if (get_device_type_(handle, &type) != 0) return false;
  if (type == cpu_) {
    result = {kDLCPU, 0};
    return true;
  }
  result.device_type = kDLCUDA;
  return type == cuda_ && get_device_index_(handle, &result.device_id) == 0;
}

std::optional<bool> TorchLibrary::is_negated_view(PyObject* tensor) const {
  if (is_neg_ == nullptr) return std::nullopt;
  return is_neg_(handle_of(tensor));
}

bool TorchLibrary::increment_version(PyObject* tensor) const {
  if (bump_version_ == nullptr) return false;
  try {
    bump_version_(handle_of(tensor));
  } catch (const std::exception&) {  // an inference tensor, which has no version
    return false;
  }
  return true;
}

const char* TorchLibrary::impl_of(PyObject* tensor) const {
  if (handle_offset_ == 0) return nullptr;
  const char* impl;
  std::memcpy(&impl, reinterpret_cast<const char*>(tensor) + handle_offset_, sizeof impl);
  return impl;
}

void TorchLibrary::prefetch_metadata(PyObject* tensor) const {
  const char* impl = impl_of(tensor);
  if (impl == nullptr) return;
  for (size_t line = 0; line < 3; ++line) __builtin_prefetch(impl + 64 * line);
}

void TorchLibrary::prefetch_storage(PyObject* tensor) const {
  const char* impl = impl_of(tensor);
  if (impl == nullptr) return;
  // The storage is the first member after two words of reference counting. If another version of
  // torch has something else there, the prefetch is one without effect.
  const void* storage;
  std::memcpy(&storage, impl + 2 * sizeof(void*), sizeof storage);
  __builtin_prefetch(storage);
}

}  // namespace fusedopt
