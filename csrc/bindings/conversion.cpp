#include "bindings/conversion.h"

#include <algorithm>

#include "bindings/exceptions.h"
#include "core/ieee_environment.h"
#include "cpu/isa.h"

namespace fusedopt {
namespace {

Format format_named(const std::string& name) {
  if (name == "signed codes") return Format::kSigned8;
  if (name == "unsigned codes") return Format::kUnsigned8;
  if (name == "master") return Format::kMasterBFloat16;
  throw Refusal(Refusal::kValue, "there is no conversion of '" + name + "'");
}

// The memory of a tensor on the CPU without gaps, whose elements have a size and a number.
void* memory_of(const TorchTensors& torch, const py::object& tensor, const char* what, size_t size,
                int64_t elements) {
  const DLTensor described = torch.describe(tensor.ptr(), what);
  int64_t numel = 1;
  for (int d = 0; d < described.ndim; ++d) numel *= described.shape[d];
  const bool fits = described.device.device_type == kDLCPU && numel == elements &&
                    described.ndim == 1 && (numel < 2 || described.strides[0] == 1) &&
                    described.dtype.bits == 8 * size;
  if (!fits) {
    throw Refusal(Refusal::kValue, std::string(what) + " must be " + std::to_string(elements) +
                                       " elements of " + std::to_string(8 * size) +
                                       " bits on the CPU, in one dimension without gaps");
  }
  return static_cast<char*>(described.data) + described.byte_offset;
}

// A tensor as it is stored, beside its numbers.
class Conversion {
 public:
  // `beside`: the scales of codes, or the remainders of a master.
  Conversion(const TorchTensors& torch, const std::string& format, const py::object& stored,
             const py::object& beside, const py::object& numbers)
      : format_(format_named(format)), size_(py::len(numbers)) {
    stored_ =
        static_cast<char*>(memory_of(torch, stored, "what is stored", size_of(format_), size_));
    numbers_ = static_cast<float*>(memory_of(torch, numbers, "the numbers", sizeof(float), size_));
    if (is_scaled(format_)) {
      scales_ =
          static_cast<float*>(memory_of(torch, beside, "scales", sizeof(float), scales_of(size_)));
    } else {
      remainders_ =
          static_cast<int16_t*>(memory_of(torch, beside, "remainders", sizeof(int16_t), size_));
    }
  }

  void decode() const {
    const cpu::Decode decode = cpu::selected_isa().decode[false][static_cast<size_t>(format_)];
    for_each_block([&](const cpu::StoredBlock& block, float* numbers, int64_t n) {
      decode(block, numbers, n);
    });
  }
  void encode() const {
    const cpu::KernelTable& isa = cpu::selected_isa();
    for_each_block([&](cpu::StoredBlock block, const float* numbers, int64_t n) {
      cpu::PartRange range;
      if (is_scaled(format_)) isa.find_ranges[false](numbers, n, &range);
      block.ranges = &range;
      isa.encode[false][static_cast<size_t>(format_)](numbers, block, n);
    });
  }

 private:
  template <class Convert>
  void for_each_block(Convert convert) const {
    const ReleasedGil release;
    const IeeeEnvironment environment;
    alignas(64) float copies[kScaledBlock];
    for (int64_t i = 0; i < size_; i += kScaledBlock) {
      const int64_t n = std::min(kScaledBlock, size_ - i);
      const cpu::StoredBlock block = {
          .elements = stored_ + i * static_cast<int64_t>(size_of(format_)),
          .remainders = remainders_ == nullptr ? nullptr : remainders_ + i,
          .scales = scales_ == nullptr ? nullptr : scales_ + i / kScaledBlock};
      // A pass works on the room of a whole block.
      std::copy_n(numbers_ + i, n, copies);
      convert(block, copies, n);
      std::copy_n(copies, n, numbers_ + i);
    }
  }

  Format format_;
  int64_t size_;
  char* stored_;
  float* numbers_;
  float* scales_ = nullptr;
  int16_t* remainders_ = nullptr;
};

}  // namespace

void define_conversion(py::module_& m, const TorchTensors& torch) {
  m.def(
      "decode",
      [&torch](const std::string& format, const py::object& stored, const py::object& beside,
               const py::object& numbers) {
        with_exceptions([&] { Conversion(torch, format, stored, beside, numbers).decode(); });
      },
      py::arg("stored_as"), py::arg("stored"), py::arg("beside"), py::arg("numbers"),
      "Writes the float32 numbers of codes and their scales, or of a master and its remainders.");
  m.def(
      "encode",
      [&torch](const std::string& format, const py::object& stored, const py::object& beside,
               const py::object& numbers) {
        with_exceptions([&] { Conversion(torch, format, stored, beside, numbers).encode(); });
      },
      py::arg("stored_as"), py::arg("stored"), py::arg("beside"), py::arg("numbers"),
      "Writes what is stored of float32 numbers.");
}

}  // namespace fusedopt
