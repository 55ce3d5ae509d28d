#include "cpu/pipeline.h"

#include <algorithm>
#include <cstddef>
#include <cstring>

#include "core/codec.h"
#include "cpu/gather.h"

namespace fusedopt::cpu {
namespace {

// What an operand begins as: its initial value, as torch would have stored it.
double initial_number(const Operand& operand) {
  return with_codec(plain_format(operand.format), [&]<class Codec>() -> double {
    // To float first, unless there is room for a double.
    using Number =
        std::conditional_t<std::is_same_v<typename Codec::Stored, double>, double, float>;
    return Codec::template decode<Number>(Codec::encode(static_cast<Number>(operand.initial)));
  });
}

void fill(bool in_double, void* numbers, double value, int64_t n) {
  if (in_double) {
    std::fill_n(static_cast<double*>(numbers), n, value);
  } else {
    std::fill_n(static_cast<float*>(numbers), n, static_cast<float>(value));
  }
}

// How many of an update's operands are those of the rule: its parameter, gradient and states.
size_t operands_of_rule(std::span<const Operand> operands, const Epilogue* epilogue) {
  const bool has_remainder = operands.back().format == Format::kRemainder;
  const bool has_average = epilogue != nullptr && epilogue->average != kParam;
  return operands.size() - has_remainder - has_average;
}

// The formats in which a kernel may find an update's operands as they are stored. Numbers of the
// arithmetic are what a pass computes with or begins.
FormatMix formats_as_stored(const UpdateList& list, const Update& update) {
  const auto operands = list.operands(update);
  const Epilogue* const epilogue = list.epilogue(update);
  const Format number = arithmetic_format(update.in_double);
  FormatMix formats = update.formats;
  if (list.prologue().grad_scale != nullptr) formats.grad = number;
  if (epilogue != nullptr) formats.param = number;
  if (operands.back().format == Format::kRemainder && !operands.back().is_read()) {
    formats.param = number;
  }
  for (const Operand& state : operands.first(operands_of_rule(operands, epilogue))) {
    if (state.role < kFirstState) continue;
    if (state.format != formats.states || !state.is_read()) formats.states = number;
  }
  return formats;
}

// A kernel, and the formats in which it takes the operands.
struct Choice {
  FormatMix formats;
  Kernel kernel = nullptr;
};

// How many operands of an update a kernel takes as they are stored; -1: it takes others neither so
// nor as numbers of the arithmetic.
int taken_as_stored(const FormatMix& by_kernel, const FormatMix& stored, Format number,
                    int states) {
  const int counts[] = {1, 1, states};
  int taken = 0;
  for (const size_t k : {kParam, kGrad, kFirstState}) {
    if (by_kernel.of(k) == stored.of(k)) {
      taken += counts[k];
    } else if (by_kernel.of(k) != number) {
      return -1;
    }
  }
  return taken;
}

// The kernel that takes the most operands as they are stored, and the others as numbers.
Choice choose_kernel(const KernelTable& isa, const UpdateList& list, const Update& update) {
  const Format number = arithmetic_format(update.in_double);
  const FormatMix stored = formats_as_stored(list, update);
  const size_t of_rule = operands_of_rule(list.operands(update), list.epilogue(update));
  const int states = static_cast<int>(of_rule) - kFirstState;
  Choice choice;
  int most = -1;
  for (size_t usual = 0; usual < kUsualFormats.size(); ++usual) {
    const int taken = taken_as_stored(kUsualFormats[usual], stored, number, states);
    if (taken <= most) continue;
    const Kernel kernel = isa.kernel(list.rule(), update.variant, usual);
    if (kernel == nullptr) continue;
    choice = {kUsualFormats[usual], kernel};
    most = taken;
  }
  return choice;
}

// One block: where the elements of each operand are as stored, and where the kernel finds them.
class Block {
 public:
  Block(const KernelTable& isa, const UpdateList& list, const Update& update, BlockBuffer* buffers)
      : isa_(isa),
        operands_(list.operands(update)),
        buffers_(buffers),
        in_double_(update.in_double),
        choice_(choose_kernel(isa, list, update)),
        scalars_(list.scalars(update)),
        draws_(list.draws(update)),
        epilogue_(list.epilogue(update)),
        grad_scale_(list.prologue().grad_scale),
        of_rule_(operands_of_rule(operands_, epilogue_)) {
    bool has_codes = false;
    for (const Operand& operand : operands_) has_codes = has_codes || is_scaled(operand.format);
    kernel_finds_ranges_ = has_codes && choice_.formats.states == Format::kFloat32;
    pieces_ = count_pieces();
  }

  size_t operands() const { return operands_.size(); }
  const Operand& operand(size_t k) const { return operands_[k]; }
  size_t element_size(size_t k) const { return size_of(operands_[k].format); }

  std::byte* in_memory(size_t k, int64_t offset) const {
    return static_cast<std::byte*>(operands_[k].data) +
           offset * static_cast<int64_t>(element_size(k));
  }
  std::byte* in_buffer(size_t k) const { return buffers_[k].stored; }

  void place(size_t k, void* stored) { stored_[k] = stored; }

  // To the next block, from an element on: its memory is asked for while this one is converted.
  void look_ahead(int64_t begin, int64_t end) {
    if (pieces_ == 0) return;
    const int64_t n = std::min(kBlock, end - begin);
    ahead_ = MemoryAhead(pieces_);
    for (size_t k = 0; k < operands(); ++k) {
      ahead_.add(in_memory(k, begin), static_cast<size_t>(n) * element_size(k));
    }
  }

  // The elements [first, first + n) of the update.
  void update(int64_t first, int64_t n) {
    for (size_t k = 0; k < operands(); ++k) decode(k, first, n);
    if (grad_scale_ != nullptr) isa_.unscale[in_double_](numbers_[kGrad], *grad_scale_, n);
    run_kernel(first, n);
    if (epilogue_ != nullptr && epilogue_->l1_threshold != 0) {
      isa_.shrink[in_double_](numbers_[kParam], epilogue_->l1_threshold, n);
    }
    find_ranges(n);
    for (size_t k = 0; k < of_rule_; ++k) encode(k, first, n);
    if (epilogue_ != nullptr && epilogue_->average != kParam) {
      average(epilogue_->average, first, n);
    }
  }

 private:
  // One for each part that is decoded or encoded; none if that is too few.
  size_t count_pieces() const {
    size_t pieces = 0, size = 0;
    for (size_t k = 0; k < operands(); ++k) {
      const Operand& operand = operands_[k];
      if (is_converted(k)) pieces += kBlockParts * (operand.is_read() + operand.is_written());
      size += kBlock * element_size(k);
    }
    return size <= pieces * MemoryAhead::kMostAtOnce ? pieces : 0;
  }

  // Of the parameter as it is stored by now, which takes decoding it once more where that rounds.
  void average(size_t k, int64_t first, int64_t n) {
    const Format format = operands_[kParam].format;
    if (format != arithmetic_format(in_double_)) {
      isa_.decode[in_double_][static_cast<size_t>(format)](stored_block(kParam, first),
                                                           numbers_[kParam], n);
    }
    if (epilogue_->average_weight != 1) {
      isa_.average[in_double_](numbers_[k], numbers_[kParam], epilogue_->average_weight, n);
    } else {
      const size_t size = size_of(arithmetic_format(in_double_));
      std::memcpy(numbers_[k], numbers_[kParam], static_cast<size_t>(n) * size);
    }
    encode(k, first, n);
  }

  StoredBlock stored_block(size_t k, int64_t first) {
    StoredBlock block{.elements = stored_[k], .ahead = &ahead_};
    if (operands_[k].format == Format::kMasterBFloat16) {
      block.remainders = static_cast<int16_t*>(stored_[operands() - 1]);
    }
    if (is_scaled(operands_[k].format)) {
      block.scales = operands_[k].scales + first / kScaledBlock;
      block.ranges = ranges_[k];
    }
    return block;
  }

  void decode(size_t k, int64_t first, int64_t n) {
    const Format format = operands_[k].format;
    numbers_[k] = is_converted(k) ? buffers_[k].numbers : stored_[k];
    if (format == Format::kRemainder) return;
    if (!operands_[k].is_read()) {
      fill(in_double_, numbers_[k], initial_number(operands_[k]), n);
    } else if (is_converted(k)) {
      // A remainder that holds nothing yet is zero: what there is is the bfloat16.
      const bool is_whole = format == Format::kMasterBFloat16 && !operands_.back().is_read();
      const auto f = static_cast<size_t>(is_whole ? plain_format(format) : format);
      isa_.decode[in_double_][f](stored_block(k, first), numbers_[k], n);
    }
  }

  void encode(size_t k, int64_t first, int64_t n) {
    if (!is_converted(k) || !operands_[k].is_written()) return;
    const Format format = operands_[k].format;
    StoredBlock block = stored_block(k, first);
    if (draws_random_bits(format)) {
      const uint32_t role = operands_[k].role;
      block.random_bits = isa_.draw(draws_->from(first), role, n, random_bits_);
    }
    isa_.encode[in_double_][static_cast<size_t>(format)](numbers_[k], block, n);
  }

  // Whether passes of their own make an operand numbers and store it again: the kernel does not
  // take it as it is stored.
  bool is_converted(size_t k) const {
    const Format format = operands_[k].format;
    if (format == Format::kRemainder || format == arithmetic_format(in_double_)) return false;
    return k >= of_rule_ || format != choice_.formats.of(k);
  }

  void run_kernel(int64_t first, int64_t n) {
    void* addresses[kMostOperands + 1];
    void** const behind = std::copy_n(numbers_, of_rule_, addresses);
    if (choice_.formats.param == Format::kMasterBFloat16) *behind = stored_[operands() - 1];
    Draws draws;
    if (draws_ != nullptr) draws = draws_->from(first);
    auto* const of_states = ranges_ + kFirstState;
    choice_.kernel(addresses, scalars_, &draws, n, kernel_finds_ranges_ ? of_states : nullptr);
  }

  // Of what is to be encoded to codes, as far as the kernel has not found them.
  void find_ranges(int64_t n) {
    const int64_t found = kernel_finds_ranges_ ? n - n % kScaledBlock : 0;
    if (found == n) return;
    const size_t offset = static_cast<size_t>(found) * size_of(arithmetic_format(in_double_));
    for (size_t k = 0; k < operands(); ++k) {
      if (!is_scaled(operands_[k].format)) continue;
      isa_.find_ranges[in_double_](static_cast<std::byte*>(numbers_[k]) + offset, n - found,
                                   ranges_[k] + found / kScaledBlock);
    }
  }

  const KernelTable& isa_;
  std::span<const Operand> operands_;
  BlockBuffer* buffers_;
  bool in_double_;
  Choice choice_;
  const void* scalars_;
  const Draws* draws_;        // null: nothing is rounded stochastically
  const Epilogue* epilogue_;  // null: nothing follows the step
  const float* grad_scale_;   // null: the gradients are not scaled
  size_t of_rule_;            // operands
  size_t pieces_;             // in which memory ahead is asked for
  bool kernel_finds_ranges_;
  MemoryAhead ahead_;
  void* stored_[kMostOperands];
  void* numbers_[kMostOperands];
  PartRange ranges_[kMostOperands][kBlockParts];
  alignas(64) uint16_t random_bits_[kBlock + kDrawGroup];
};

void update_run(Block& block, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; i += kBlock) {
    for (size_t k = 0; k < block.operands(); ++k) {
      block.place(k, block.in_memory(k, i));
    }
    block.look_ahead(std::min(i + kBlock, end), end);
    block.update(i, std::min(kBlock, end - i));
  }
}

void update_strided(Block& block, const Walk& walk, int64_t begin, int64_t end) {
  ElementWalk reader(walk, begin);
  ElementWalk writer(walk, begin);
  for (size_t k = 0; k < block.operands(); ++k) block.place(k, block.in_buffer(k));
  // Copies between the operands and the block's buffers, which hold them without gaps.
  const auto copy = [&](ElementWalk& elements, int64_t n, bool to_buffer) {
    elements.next(n, [&](const int64_t* offsets, int64_t position, int64_t run) {
      for (size_t k = 0; k < block.operands(); ++k) {
        const Operand& operand = block.operand(k);
        if (!(to_buffer ? operand.is_read() : operand.is_written())) continue;
        const size_t size = block.element_size(k);
        std::byte* const element = block.in_memory(k, offsets[k]);
        std::byte* const slot = block.in_buffer(k) + position * static_cast<int64_t>(size);
        const int64_t stride = elements.inner_stride(k);
        if (to_buffer) {
          copy_run(size, element, stride, slot, 1, run);
        } else {
          copy_run(size, slot, 1, element, stride, run);
        }
      }
    });
  };
  for (int64_t i = begin; i < end; i += kBlock) {
    const int64_t n = std::min(kBlock, end - i);
    copy(reader, n, true);
    block.update(i, n);
    copy(writer, n, false);
  }
}

}  // namespace

void update_in_blocks(const KernelTable& isa, const UpdateList& list, const Update& update,
                      int64_t begin, int64_t end, BlockBuffer* buffers) {
  Block block(isa, list, update, buffers);
  if (update.dim_count == 0) {
    update_run(block, begin, end);
  } else {
    update_strided(block, list.walk(update), begin, end);
  }
}

}  // namespace fusedopt::cpu
