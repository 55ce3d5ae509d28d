#include "bindings/storage_options.h"

#include <optional>
#include <string>

#include "bindings/group_options.h"
#include "core/refusal.h"

namespace fusedopt {
namespace {

PyObject* const kStateBits = intern("state_bits");
PyObject* const kStochasticRounding = intern("stochastic_rounding");
PyObject* const kMasterWeights = intern("master_weights");
PyObject* const kSeed = intern("seed");

// Shorter states save nothing, and their few blocks lose most.
constexpr int64_t kFewestCodes = 4096;

// Nothing if it is no integer of 64 bits, or negative.
std::optional<uint64_t> to_integer(PyObject* option) {
  if (!PyIndex_Check(option)) return std::nullopt;
  const py::object number = take(PyNumber_Index(option));
  const unsigned long long value = PyLong_AsUnsignedLongLong(number.ptr());
  if (!PyErr_Occurred()) return value;
  PyErr_Clear();
  return std::nullopt;
}

int to_state_bits(PyObject* option) {
  if (option == nullptr || option == Py_None) return 0;
  const auto bits = to_integer(option);
  if (bits != 32u && bits != 16u && bits != 8u)
    refuse_option("state_bits", option, "None, 32, 16 or 8");
  return static_cast<int>(*bits);
}

uint64_t to_seed(PyObject* option) {
  if (option == nullptr) return 0;
  const auto seed = to_integer(option);
  if (!seed) refuse_option("seed", option, "an integer of at most 64 bits, at least 0");
  return *seed;
}

// Of a state, in torch.
const char* dtype_of(Format format) {
  return format == Format::kUnsigned8   ? "uint8"
         : format == Format::kRemainder ? "int16"
                                        : name_of(format);
}

}  // namespace

StorageOptions read_storage_options(PyObject* group, KeepAlive& keep) {
  StorageOptions options;
  options.state_bits = to_state_bits(find_item(group, kStateBits, keep));
  options.stochastic_rounding = is_true(find_item(group, kStochasticRounding, keep));
  options.master_weights = is_true(find_item(group, kMasterWeights, keep));
  options.seed = to_seed(find_item(group, kSeed, keep));
  if (options.stochastic_rounding && options.master_weights) {
    throw Refusal(Refusal::kValue,
                  "stochastic_rounding and master_weights exclude each other: a parameter with a "
                  "master loses nothing to rounding");
  }
  return options;
}

Format StorageOptions::of_param(Format format) const {
  const auto need_bfloat16 = [&](const char* option) {
    throw Refusal(Refusal::kValue, std::string(option) +
                                       " needs a bfloat16 parameter, this one is " +
                                       name_of(format) + ": put it into a group without " + option);
  };
  if (master_weights) {
    if (format != Format::kBFloat16) need_bfloat16("master_weights");
    return Format::kMasterBFloat16;
  }
  if (stochastic_rounding && format == Format::kFloat16) need_bfloat16("stochastic_rounding");
  const bool is_rounded = stochastic_rounding && format == Format::kBFloat16;
  return is_rounded ? Format::kStochasticBFloat16 : format;
}

Format StorageOptions::of_state(const StateInfo& state, Format format, bool has_scales,
                                int64_t elements) const {
  const bool are_codes = format == Format::kUnsigned8 && has_scales;
  const bool fits = state_bits == 0    ? plain_format(format) == format
                    : state_bits == 32 ? format == Format::kFloat32
                    : state_bits == 16
                        ? format == Format::kBFloat16
                        : are_codes || (format == Format::kFloat32 && elements < kFewestCodes);
  if (state_bits == 8 && format == Format::kUnsigned8 && !has_scales) {
    throw Refusal(Refusal::kKey, "state '" + std::string(state.name) +
                                     "' holds codes, but there is no '" + state.name + "_scale'");
  }
  if (!fits) {
    const std::string bits = state_bits == 0 ? "None" : std::to_string(state_bits);
    throw Refusal(Refusal::kValue, "state '" + std::string(state.name) + "' is stored as " +
                                       dtype_of(format) + ", which is not what state_bits=" + bits +
                                       " stores; fusedopt.convert_states(optimizer) converts it");
  }
  if (are_codes) return state.is_signed ? Format::kSigned8 : Format::kUnsigned8;
  return state_bits == 16 ? Format::kStochasticBFloat16 : format;
}

}  // namespace fusedopt
