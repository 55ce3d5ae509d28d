// The work of one block: find the tensor, derive the scalars if the host could not, then load,
// rule, store. It compiles for the host as well, where the tests run it over all blocks and
// threads.
#pragma once

#include <bit>
#include <type_traits>
#include <utility>

#include "core/option.h"
#include "core/scalars.h"
#include "core/walk.h"
#include "cuda/atomics.h"
#include "cuda/groups.h"
#include "cuda/packs.h"

namespace fusedopt::cuda {

// What thread 0 tells the other threads of its block.
template <class Rule>
struct Shared {
  KernelScalars<Rule, float> in_float;
  KernelScalars<Rule, double> in_double;
  bool counts;  // this block is the last that needed the old counts

  FUSEDOPT_FN void get(KernelScalars<Rule, float>& scalars) const { scalars = in_float; }
  FUSEDOPT_FN void get(KernelScalars<Rule, double>& scalars) const { scalars = in_double; }
};

// The same where warps update groups.
template <class Rule>
struct SharedOfGroups : Shared<Rule> {
  // Copies of what the table has.
  Entry entry;
  uint64_t places[ExtraPlaces(kOperandsOf<Rule>).count];
  int64_t step;  // its count, where the device has it
  Epilogue epilogue;
  // Of each warp, for a group of the widest format.
  alignas(kPackBytes) std::byte stages[kThreads / kWarpSize][kGroup * sizeof(double)];

  FUSEDOPT_FN const KernelScalars<Rule, float>& scalars_in(float) const { return this->in_float; }
  FUSEDOPT_FN const KernelScalars<Rule, double>& scalars_in(double) const {
    return this->in_double;
  }
};

// Updates one or several elements that lie side by side in every operand. `variant` is the rule's
// own; what all rules share is decided as the kernel runs, which costs less than compiling it
// twice.
template <class Rule, unsigned variant, class T>
class ElementUpdate {
 public:
  using Scalars = KernelScalars<Rule, T>;

  FUSEDOPT_FN ElementUpdate(const Scalars& scalars, bool has_l2_penalty, const float* grad_scale)
      : scalars_(scalars),
        has_l2_penalty_(has_l2_penalty),
        grad_scale_(grad_scale != nullptr ? static_cast<T>(*grad_scale) : T(1)),
        is_scaled_(grad_scale != nullptr) {}

  static constexpr unsigned kUsedStates = used_states<Rule>(variant);
  static constexpr unsigned kOperands = kFirstState + std::popcount(kUsedStates);

  // at[p][k]: where pack p of `lanes` elements lies in operand k. All are loaded before any is
  // stored, so that their reads are under way together.
  template <unsigned packs, class Formats>
  FUSEDOPT_FN void update(const Formats& formats, std::byte* const (&at)[packs][kOperands]) const {
    typename Formats::Pack loaded[packs][kOperands];
    for (unsigned p = 0; p < packs; ++p) {
      for (unsigned k = 0; k < kOperands; ++k) loaded[p][k] = formats.load(at[p][k], k);
    }
    for (unsigned p = 0; p < packs; ++p) {
      for (unsigned lane = 0; lane < Formats::kLanes; ++lane) {
        compute(formats, loaded[p], lane, std::make_index_sequence<Rule::kStates.size()>{});
      }
      for (unsigned k = 0; k < kOperands; ++k) {
        const bool is_written = k != kGrad || is_scaled_;
        if (is_written) formats.store(loaded[p][k], at[p][k], k);
      }
    }
  }

 private:
  template <class Formats, size_t... state>
  FUSEDOPT_FN void compute(const Formats& formats, typename Formats::Pack (&packs)[kOperands],
                           unsigned lane, std::index_sequence<state...>) const {
    const auto get = [&](unsigned k) { return formats.get(packs[k], lane); };
    const auto set = [&](unsigned k, T number) { formats.set(packs[k], lane, number); };
    T param = get(kParam);
    T grad = get(kGrad);
    T states[sizeof...(state) + 1] = {(is_used(state) ? get(operand_of(state)) : T(0))...};
    if (is_scaled_) {
      grad = unscale(grad, grad_scale_);
      set(kGrad, grad);
    }
    update_element<Rule, variant>(param, grad, has_l2_penalty_, scalars_, states[state]...);
    set(kParam, param);
    (set_if<is_used(state)>(set, operand_of(state), states[state]), ...);
  }

  template <bool is_used, class Set>
  FUSEDOPT_FN static void set_if(Set set, unsigned operand, T number) {
    if constexpr (is_used) set(operand, number);
  }

  FUSEDOPT_FN static constexpr bool is_used(size_t state) { return kUsedStates >> state & 1; }
  // Among those of the update; for a state that is not used, of no meaning but in bounds.
  FUSEDOPT_FN static constexpr unsigned operand_of(size_t state) {
    return is_used(state) ? kFirstState + std::popcount(kUsedStates & ((1u << state) - 1)) : kParam;
  }

  Scalars scalars_;
  bool has_l2_penalty_;
  T grad_scale_;
  bool is_scaled_;
};

template <class Rule, KernelKind kind>
class Block {
 public:
  static constexpr bool has_any_formats = takes_any_formats(kind);
  using TableOf = Table<table_size(kind)>;
  using Shared = std::conditional_t<has_any_formats, SharedOfGroups<Rule>, cuda::Shared<Rule>>;

  // There are as many blocks as chunks.
  FUSEDOPT_FN Block(const TableOf& table, uint32_t index)
      : table_(table),
        entry_(find_entry(table, kEntrySize, offsetof(Entry, first_chunk), index)),
        chunk_(index - field<uint32_t>(offsetof(Entry, first_chunk))),
        kind_(field<Kind>(offsetof(Entry, kind))) {}

  FUSEDOPT_FN static bool is_skipped(const TableOf& table) {
    const TableHeader& header = table.header;
    return (header.found_inf != nullptr && *header.found_inf != 0) ||
           (header.decision != nullptr && header.decision->is_skipped != 0);
  }

  // Whether threads tell each other something, for which all wait.
  FUSEDOPT_FN bool prepares() const { return has_any_formats || kind_.derives; }

  // The part of every thread in that.
  FUSEDOPT_FN void prepare(unsigned thread, Shared& shared) const {
    if constexpr (has_any_formats) copy_entry(thread, shared);
    if (thread != 0) return;
    if (kind_.derives) {
      derive(shared);
    } else if constexpr (has_any_formats) {
      copy_scalars(shared);
      shared.epilogue = derive_epilogue(1);
    }
  }

  // The part of every thread.
  FUSEDOPT_FN void run(unsigned thread, Shared& shared) const {
    if (kind_.derives && shared.counts) count(thread);
    if constexpr (has_any_formats) {
      if constexpr (kind == KernelKind::kAnyFormatsInDouble) {
        if (kind_.in_double) return update_groups<double>(thread, shared);
      }
      return update_groups<float>(thread, shared);
    } else {
      switch (static_cast<Format>(kind_.format)) {
        case Format::kFloat32: return select_variant<OneFormat<Format::kFloat32>>(thread, shared);
        case Format::kFloat64: return select_variant<OneFormat<Format::kFloat64>>(thread, shared);
        case Format::kBFloat16: return select_variant<OneFormat<Format::kBFloat16>>(thread, shared);
        case Format::kFloat16: return select_variant<OneFormat<Format::kFloat16>>(thread, shared);
        default: return;  // in a launch for any formats alone
      }
    }
  }

 private:
  FUSEDOPT_FN void derive(Shared& shared) const {
    const void* const steps = field<void*>(offsetof(Entry, step));
    const int64_t step = steps == nullptr ? 0 : load_count(steps, kind_.step_type) + 1;
    const uint32_t first = field<uint32_t>(offsetof(Entry, scalars));
    const auto load = [&](uint32_t n) {
      return read<OptionValue>(table_, first + n * static_cast<uint32_t>(sizeof(OptionValue)));
    };
    ReplayedOptions options(load);
    const auto hyper = Rule::read(options);
    bool has_counts = steps != nullptr;
    if constexpr (has_any_formats) {
      shared.step = step;
      shared.epilogue = derive_epilogue(hyper.lr);
      has_counts = has_counts || place(entry_, kExtra.averaged) != 0;
    }
    if (kind_.in_double) {
      shared.in_double = clipped(derive_scalars<double, Rule>(hyper, step));
    } else {
      shared.in_float = clipped(derive_scalars<float, Rule>(hyper, step));
    }
    shared.counts =
        has_counts && arrive(table_.header.arrivals) + 1 == table_.header.counting_blocks;
  }

  // What follows the step, for the learning rate where the host did not know it.
  FUSEDOPT_FN Epilogue derive_epilogue(double lr) const {
    const uint64_t at = place(entry_, kExtra.epilogue);
    if (at == 0) return {};
    auto epilogue = read<Epilogue>(table_, static_cast<uint32_t>(at));
    epilogue.l1_threshold = lr * epilogue.l1_threshold;
    const auto* const averaged = reinterpret_cast<const void*>(place(entry_, kExtra.averaged));
    if (averaged != nullptr) {
      epilogue.average_weight = weight_in_mean(load_count(averaged, kind_.averaged_type));
    }
    return epilogue;
  }

  FUSEDOPT_FN void copy_scalars(Shared& shared) const {
    const auto at = field<uint32_t>(offsetof(Entry, scalars));
    if (kind_.in_double) {
      shared.in_double = clipped(read<KernelScalars<Rule, double>>(table_, at));
    } else {
      shared.in_float = clipped(read<KernelScalars<Rule, float>>(table_, at));
    }
  }

  // With the factor that the gradients are to be multiplied by, if they have been measured.
  template <class T>
  FUSEDOPT_FN KernelScalars<Rule, T> clipped(KernelScalars<Rule, T> scalars) const {
    const Decision* const decision = table_.header.decision;
    if (decision != nullptr) clip(scalars.shared, static_cast<T>(decision->factor));
    return scalars;
  }

  FUSEDOPT_FN void copy_entry(unsigned thread, Shared& shared) const {
    if (thread == 0) shared.entry = read<Entry>(table_, entry_);
    for (unsigned p = thread; p < std::size(shared.places); p += kThreads) {
      shared.places[p] = place(entry_, p);
    }
  }

  // Of an entry, by its offset.
  FUSEDOPT_FN uint64_t place(uint32_t entry, unsigned p) const {
    constexpr auto size = static_cast<uint32_t>(sizeof(uint64_t));
    return read<uint64_t>(table_, entry + static_cast<uint32_t>(sizeof(Entry)) + p * size);
  }

  template <class Field>
  FUSEDOPT_FN Field field(size_t offset) const {
    return read<Field>(table_, entry_ + static_cast<uint32_t>(offset));
  }

  FUSEDOPT_FN void count(unsigned thread) const {
    for (uint32_t e = thread; e < table_.header.entry_count; e += kThreads) {
      const auto entry = read<Entry>(table_, e * kEntrySize);
      if (entry.step != nullptr) count_on(entry.step, entry.kind.step_type);
      if constexpr (has_any_formats) {
        auto* const averaged = reinterpret_cast<void*>(place(e * kEntrySize, kExtra.averaged));
        if (averaged != nullptr) count_on(averaged, entry.kind.averaged_type);
      }
    }
    if (thread == 0) *table_.header.arrivals = 0;
  }

  // One of them is it: the host has looked.
  template <class Formats>
  FUSEDOPT_FN void select_variant(unsigned thread, const Shared& shared) const {
    static_assert(rule_variant(kVariantCount<Rule> - 1) == Rule::kVariants - 1);
    select_variant<Formats>(thread, shared, std::make_index_sequence<Rule::kVariants>{});
  }

  template <class Formats, size_t... variant>
  FUSEDOPT_FN void select_variant(unsigned thread, const Shared& shared,
                                  std::index_sequence<variant...>) const {
    using T = typename Formats::T;
    (void)((rule_variant(kind_.variant) == variant &&
            (update_chunk<Formats>(thread, element_update<variant, T>(shared)), true)) ||
           ...);
  }

  template <unsigned variant, class T>
  FUSEDOPT_FN ElementUpdate<Rule, variant, T> element_update(const Shared& shared) const {
    KernelScalars<Rule, T> scalars;
    if (kind_.derives) {
      shared.get(scalars);
    } else {
      scalars = clipped(read<decltype(scalars)>(table_, field<uint32_t>(offsetof(Entry, scalars))));
    }
    return {scalars, (kind_.variant & kL2Penalty) != 0, table_.header.grad_scale};
  }

  // The part of a warp, which takes every so many groups of the chunk.
  template <class T>
  FUSEDOPT_GROUP_FN void update_groups(unsigned thread, Shared& shared) const {
    if (!works_for_its_warp(thread)) return;
    constexpr unsigned warps = kThreads / kWarpSize;
    const unsigned warp = thread / kWarpSize;
    constexpr int64_t chunk_size = chunk_elements(kLaneElements);
    const int64_t begin = chunk_ * chunk_size;
    const int64_t numel = shared.entry.numel;
    const int64_t end = numel < begin + chunk_size ? numel : begin + chunk_size;
    const GroupContext<TableOf> context{table_,          shared.entry,        shared.places,
                                        shared.epilogue, shared.stages[warp], shared.step};
#pragma unroll 1
    for (int64_t first = begin + warp * kGroup; first < end; first += warps * kGroup) {
      Group<Rule, T, TableOf>(context, thread, first).update(shared.scalars_in(T{}));
    }
  }

  template <class Formats, class Update>
  FUSEDOPT_FN void update_chunk(unsigned thread, const Update& update) const {
    constexpr unsigned lanes = Formats::kLanes, operands = Update::kOperands;
    const unsigned chunk_size = chunk_elements(lanes);
    // Chunks begin at packs; the first has the elements ahead of its packs as well.
    const bool has_packs = kind_.head != kNoAlignedPacks;
    const unsigned head = has_packs ? kind_.head : 0;
    const int64_t begin = chunk_ == 0 ? 0 : chunk_ * int64_t{chunk_size} + head;
    const unsigned longest = chunk_ == 0 ? chunk_size + head : chunk_size;
    const int64_t left = field<int64_t>(offsetof(Entry, numel)) - begin;
    // Counted from the chunk's first element.
    const unsigned end = left < longest ? static_cast<unsigned>(left) : longest;
    const Formats formats{};
    const typename Formats::Single singles{};
    if (kind_.dim_count > 0) return update_strided(thread, update, singles, begin, end);

    std::byte* first[operands];
    for (unsigned k = 0; k < operands; ++k) first[k] = formats.at(data(k), begin, k);
    const auto update_at = [&](const auto& packs_of, auto... i) {
      const unsigned positions[] = {i...};
      std::byte* at[sizeof...(i)][operands];
      for (unsigned p = 0; p < sizeof...(i); ++p) {
        for (unsigned k = 0; k < operands; ++k) at[p][k] = packs_of.at(first[k], positions[p], k);
      }
      update.update(packs_of, at);
    };
    const unsigned ahead = chunk_ == 0 ? head : 0;
    const unsigned packs_begin = lanes > 1 && has_packs && ahead < end ? ahead : end;
    const unsigned packs_end = end - (end - packs_begin) % lanes;
    if constexpr (lanes > 1) {
      constexpr unsigned all_threads = kThreads * lanes;
      unsigned i = packs_begin + thread * lanes;
      if constexpr (packs_at_once(operands) == 2) {
#pragma unroll 1
        for (; i + all_threads < packs_end; i += 2 * all_threads) {
          update_at(formats, i, i + all_threads);
        }
      }
#pragma unroll 1
      for (; i < packs_end; i += all_threads) update_at(formats, i);
    }
    const unsigned single = packs_begin + (end - packs_end);
#pragma unroll 1
    for (unsigned s = thread; s < single; s += kThreads) {
      update_at(singles, s < packs_begin ? s : packs_end + (s - packs_begin));
    }
  }

  // The elements [begin, begin + count) of a walk over all operands.
  template <class Formats, class Update>
  FUSEDOPT_FN void update_strided(unsigned thread, const Update& update, const Formats& formats,
                                  int64_t begin, unsigned count) const {
    constexpr unsigned operands = Update::kOperands;
    constexpr auto number = static_cast<uint32_t>(sizeof(int64_t));
    constexpr uint32_t dim_size = number * static_cast<uint32_t>(Walk::numbers_per_dim(operands));
    const uint32_t walk = field<uint32_t>(offsetof(Entry, walk));
#pragma unroll 1
    for (unsigned e = thread; e < count; e += kThreads) {
      std::byte* at[1][operands];
      for (unsigned k = 0; k < operands; ++k) at[0][k] = data(k);
      int64_t i = begin + e;
#pragma unroll 1
      for (unsigned d = kind_.dim_count; d-- > 0;) {
        const uint32_t dim = walk + d * dim_size;
        const int64_t size_of_dim = read<int64_t>(table_, dim);
        const int64_t index = i % size_of_dim;
        i /= size_of_dim;
        for (unsigned k = 0; k < operands; ++k) {
          const int64_t offset = index * read<int64_t>(table_, dim + number * (1 + k));
          at[0][k] = formats.at(at[0][k], offset, k);
        }
      }
      update.update(formats, at);
    }
  }

  FUSEDOPT_FN std::byte* data(unsigned operand) const {
    return field<std::byte*>(sizeof(Entry) + operand * sizeof(void*));
  }

  static constexpr uint32_t kEntrySize = entry_size(kOperandsOf<Rule>, has_any_formats);
  static constexpr ExtraPlaces kExtra{kOperandsOf<Rule>};

  const TableOf& table_;
  uint32_t entry_;  // its offset
  uint32_t chunk_;  // of the entry
  Kind kind_;
};

}  // namespace fusedopt::cuda
