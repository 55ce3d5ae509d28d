// The updates of one optimizer step on one device, in one list whatever the number of parameter
// groups.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>
#include <vector>

#include "core/layout.h"
#include "core/scalars.h"

namespace fusedopt {

// One parameter and what its update needs.
struct Update {
  std::array<void*, kMaxOperands> data{};  // null where the variant does not use the operand
  std::array<DType, kMaxOperands> dtypes{};
  bool in_double = false;  // the type of the arithmetic
  bool direct = true;      // one run of that type in every operand: no staging
  bool derives = false;    // the engine derives the scalars, and counts the step
  uint16_t variant = 0;    // options resolved outside the element loop
  uint32_t scalars = 0;    // position of the scalars or, where it derives them, of the options
  uint32_t first_dim = 0;  // position in UpdateList::dims
  uint32_t dim_count = 0;  // 0: one run
  int64_t numel = 0;
  int64_t first = 0;     // position of its first element in the list of all elements
  void* step = nullptr;  // where it derives: the count in the device's memory, if the rule has one
  NumberType step_type = NumberType::kFloat32;
};

// What a gradient scaler asks for, as numbers in the device's memory.
struct AmpScaling {
  const float* grad_scale = nullptr;  // divides the gradients, or null
  const float* found_inf = nullptr;   // not 0: nothing may be changed; or null
};

// A place in the list of all elements.
struct Cut {
  size_t update = 0;
  int64_t element = 0;
};

class UpdateList {
 public:
  void clear(unsigned rule) {
    rule_ = rule;
    updates_.clear();
    scalars_.clear();
    dims_.clear();
    amp_ = {};
    numel_ = 0;
  }

  // Keeps a copy of scalars or options, to be named by any number of updates.
  template <class Record>
  uint32_t add(const Record& record) {
    return add(std::span(&record, 1));
  }
  template <class Record>
  uint32_t add(std::span<const Record> records) {
    static_assert(std::is_trivially_copyable_v<Record>);
    const size_t position = scalars_.size();
    scalars_.resize(position + (records.size_bytes() + sizeof(double) - 1) / sizeof(double));
    std::memcpy(scalars_.data() + position, records.data(), records.size_bytes());
    return static_cast<uint32_t>(position);
  }

  // Adds an update of operands of the same sizes; everything but layout and position is set.
  void add(Update update, const Operands& operands);

  void set_amp(const AmpScaling& amp) { amp_ = amp; }

  // Whether parameters of different updates may share memory. Keeps the order of addresses that it
  // finds, which rarely changes from step to step, so that it need not sort again.
  bool may_overlap();

  // Where part `part` of `parts` equal parts begins. A cut inside a tensor falls on a multiple of
  // kCutAlignment elements of it, so that two threads never write to one cache line of a tensor.
  Cut cut(int64_t part, int64_t parts) const;

  unsigned rule() const { return rule_; }
  int64_t numel() const { return numel_; }
  const std::vector<Update>& updates() const { return updates_; }
  const AmpScaling& amp() const { return amp_; }
  const void* scalars(const Update& update) const { return &scalars_[update.scalars]; }
  std::span<const double> all_scalars() const { return scalars_; }
  std::span<const StridedDim> all_dims() const { return dims_; }
  std::span<const StridedDim> dims(const Update& update) const {
    return {dims_.data() + update.first_dim, update.dim_count};
  }

  static constexpr int64_t kCutAlignment = 64;

 private:
  unsigned rule_ = 0;
  AmpScaling amp_;
  int64_t numel_ = 0;
  std::vector<Update> updates_;
  std::vector<double> scalars_;  // double for its alignment
  std::vector<StridedDim> dims_;
  std::vector<uint32_t> by_address_;  // positions of updates
};

}  // namespace fusedopt
