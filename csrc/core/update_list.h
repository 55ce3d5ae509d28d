// The updates of one optimizer step on one device, in one list whatever the number of parameter
// groups.
#pragma once

#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <type_traits>
#include <vector>

#include "core/epilogue.h"
#include "core/layout.h"
#include "core/memory_range.h"
#include "core/number.h"
#include "core/operand.h"
#include "core/prologue.h"
#include "core/random.h"

namespace fusedopt {

// One parameter and what its update needs.
struct Update {
  static constexpr uint32_t kNone = UINT32_MAX;

  uint32_t first_operand = 0;  // position in the list's operands
  uint8_t operand_count = 0;
  uint8_t dim_count = 0;   // of the walk; 0: one run
  bool in_double = false;  // the type of the arithmetic
  bool derives = false;    // the engine derives the scalars, and counts
  // One run, all states in one format, all operands hold something, nothing follows the step.
  bool is_plain = true;
  NumberType step_type = NumberType::kFloat32, averaged_type = NumberType::kFloat64;
  uint16_t variant = 0;       // options resolved outside the element loop
  FormatMix formats;          // if it is plain
  uint32_t scalars = 0;       // position of the scalars or, where it derives them, of the options
  uint32_t draws = kNone;     // position of what it draws random bits with
  uint32_t epilogue = kNone;  // position of what follows the step
  uint32_t walk = 0;          // position of the walk's numbers in the list
  int64_t numel = 0;
  int64_t first = 0;    // position of its first element among those of its round
  uint32_t source = 0;  // position in the order in which the updates were added
  // Where it derives: the counts in the device's memory, if there are any, of steps and of what has
  // been averaged.
  void* step = nullptr;
  void* averaged = nullptr;

  bool counts() const { return step != nullptr || averaged != nullptr; }
};

// Updates of which none touches memory that another one writes.
struct Round {
  size_t first = 0, count = 0;  // updates
  int64_t numel = 0;            // elements of all of them
};

// A place in the list of all elements of a round.
struct Cut {
  size_t update = 0;
  int64_t element = 0;
};

// Two operands, of one update or of two, that share memory although no order of updates is right.
struct Conflict {
  uint32_t source, other_source;  // as Update has it; the same if it is one update
  int role, other_role;           // of the operands
};

class UpdateList {
 public:
  void clear(unsigned rule) {
    rule_ = rule;
    updates_.clear();
    operands_.clear();
    scalars_.clear();
    walks_.clear();
    rounds_.clear();
    written_.clear();
    grads_.clear();
    prologue_ = {};
    writes_grads_ = false;
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

  // Adds an update of validated tensors. Of its operands role, access and initial value are set;
  // of the update everything but layout and position.
  void add(Update update, TensorViews tensors, std::span<const Operand> operands);

  void set_prologue(const Prologue& prologue) { prologue_ = prologue; }

  // Has the gradients of all updates, whose scalars the host has derived, multiplied by a factor.
  void clip(double factor);

  // When all have been added: puts them into rounds. Nearly always that is one. Updates that share
  // memory with others (a parameter that is a view of another, a gradient that is a view of a
  // parameter) give what they would give one after the other, in the order of the list.
  std::optional<Conflict> arrange();

  std::span<const Round> rounds() const { return rounds_; }
  // The sources of those updates that share memory with another one, or may: gaps count.
  std::span<const uint32_t> sharing() const { return sharing_; }

  // Where part `part` of `parts` equal parts of a round begins. A cut inside a tensor falls on a
  // multiple of kCutAlignment elements of it, so that two threads never write to one cache line of
  // a tensor, nor to one block of codes.
  Cut cut(const Round& round, int64_t part, int64_t parts) const;

  unsigned rule() const { return rule_; }
  const std::vector<Update>& updates() const { return updates_; }
  std::span<const Update> updates_of(const Round& round) const {
    return std::span(updates_).subspan(round.first, round.count);
  }
  const Prologue& prologue() const { return prologue_; }
  const void* scalars(const Update& update) const { return &scalars_[update.scalars]; }
  // Null where it rounds nothing stochastically.
  const Draws* draws(const Update& update) const {
    if (update.draws == Update::kNone) return nullptr;
    return reinterpret_cast<const Draws*>(&scalars_[update.draws]);
  }
  // Null where nothing follows the step.
  const Epilogue* epilogue(const Update& update) const {
    if (update.epilogue == Update::kNone) return nullptr;
    return reinterpret_cast<const Epilogue*>(&scalars_[update.epilogue]);
  }
  std::span<const double> all_scalars() const { return scalars_; }
  std::span<const int64_t> all_walks() const { return walks_; }
  std::span<const Operand> operands(const Update& update) const {
    return {operands_.data() + update.first_operand, update.operand_count};
  }
  Walk walk(const Update& update) const {
    const size_t numbers = update.dim_count * Walk::numbers_per_dim(update.operand_count);
    return {std::span(walks_).subspan(update.walk, numbers), update.operand_count};
  }

  static constexpr int64_t kCutAlignment = kScaledBlock;

 private:
  // The memory of one operand of one update.
  struct Touch {
    MemoryRange range;
    uint32_t update;
    uint32_t operand;
    bool writes;
    bool is_scales = false;  // of the operand

    bool operator==(const Touch&) const = default;
  };

  MemoryRange range_of(const Update& update, size_t operand) const;
  bool shares_memory();
  MemoryRange range_of_scales(const Update& update, size_t operand) const;
  void append_touches(uint32_t update, std::vector<Touch>& touches) const;
  std::vector<Touch> touches_by_address() const;
  void find_sharing();
  void assign_rounds();
  std::optional<Conflict> find_conflict() const;
  bool is_dense(const Touch& touch) const;
  bool share_elements(const Touch& a, const Touch& b) const;
  void sort_into_rounds();
  void begin_round(size_t first, size_t count);

  unsigned rule_ = 0;
  Prologue prologue_;
  std::vector<Update> updates_;
  std::vector<Operand> operands_;
  std::vector<double> scalars_;  // double for its alignment
  std::vector<int64_t> walks_;
  std::vector<Round> rounds_;
  RangeSet written_, grads_;  // parameters and states; gradients
  bool writes_grads_ = false;
  std::vector<uint32_t> grad_hints_;

  // Where memory is shared: kept from step to step, because it rarely moves.
  std::vector<Touch> touches_;
  std::vector<uint32_t> sharing_;
  std::vector<uint32_t> round_of_;  // by source
};

}  // namespace fusedopt
