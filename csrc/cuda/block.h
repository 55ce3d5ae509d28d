// The work of one block: find the tensor, derive the scalars if the host could not, then load,
// rule, store. It compiles for the host as well, where the tests run it over all blocks and
// threads.
#pragma once

#include <bit>
#include <utility>

#include "core/element.h"
#include "core/scalars.h"
#include "cuda/table.h"

namespace fusedopt::cuda {

// Counts a block in and returns how many were in before it. What the block has read before, it has
// read before any block that is counted in later can write.
FUSEDOPT_FN uint32_t arrive(uint32_t* arrivals) {
#if defined(__CUDA_ARCH__)
  __threadfence();
  return atomicAdd(arrivals, 1u);
#else
  return (*arrivals)++;
#endif
}

// What thread 0 tells the other threads of its block.
template <class Rule>
struct Shared {
  KernelScalars<Rule, float> in_float;
  KernelScalars<Rule, double> in_double;
  bool counts_steps;  // this block is the last that needed the old step counts

  FUSEDOPT_FN void get(KernelScalars<Rule, float>& scalars) const { scalars = in_float; }
  FUSEDOPT_FN void get(KernelScalars<Rule, double>& scalars) const { scalars = in_double; }
};

template <class Element, unsigned lanes>
struct alignas(sizeof(Element) * lanes) Pack {
  Element elements[lanes];
};

// Updates one or several elements that lie side by side in every operand. `variant` is the rule's
// own; what all rules share is decided as the kernel runs, which costs less than compiling it
// twice.
template <class Rule, unsigned variant, class Element>
class ElementUpdate {
 public:
  using T = Number<Element>;
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
  template <unsigned lanes, unsigned packs>
  FUSEDOPT_FN void update(Element* const (&at)[packs][kMaxOperands]) const {
    Pack<Element, lanes> loaded[packs][kMaxOperands];
    for (unsigned p = 0; p < packs; ++p) {
      for (int k = 0; k < kMaxOperands; ++k) {
        if (is_used(k)) loaded[p][k] = *pack_at<lanes>(at[p][k]);
      }
    }
    for (unsigned p = 0; p < packs; ++p) {
      compute<lanes>(loaded[p], std::make_index_sequence<Rule::kStates.size()>{});
      for (int k = 0; k < kMaxOperands; ++k) {
        const bool is_written = is_used(k) && (k != kGrad || is_scaled_);
        if (is_written) *pack_at<lanes>(at[p][k]) = loaded[p][k];
      }
    }
  }

 private:
  template <unsigned lanes>
  FUSEDOPT_FN static Pack<Element, lanes>* pack_at(Element* first) {
    return in_global_memory(reinterpret_cast<Pack<Element, lanes>*>(first));
  }

  template <unsigned lanes, size_t... state>
  FUSEDOPT_FN void compute(Pack<Element, lanes> (&packs)[kMaxOperands],
                           std::index_sequence<state...>) const {
    for (unsigned lane = 0; lane < lanes; ++lane) {
      const auto element = [&](size_t k) -> Element& { return packs[k].elements[lane]; };
      T param = widen(element(kParam));
      T grad = widen(element(kGrad));
      T states[sizeof...(state) + 1] = {
          (is_used(kFirstState + state) ? widen(element(kFirstState + state)) : T(0))...};
      if (is_scaled_) {
        grad = unscale(grad, grad_scale_);
        element(kGrad) = narrow<Element>(grad);
      }
      if (has_l2_penalty_) {
        apply_shared<true>(param, grad, scalars_.shared);
      } else {
        apply_shared<false>(param, grad, scalars_.shared);
      }
      Rule::template update<variant>(param, grad, states[state]..., scalars_.rule);
      element(kParam) = narrow<Element>(param);
      ((element(kFirstState + state) = narrow<Element>(states[state])), ...);
    }
  }

  FUSEDOPT_FN static constexpr bool is_used(int operand) {
    return operand < kFirstState || (kUsedStates >> (operand - kFirstState) & 1);
  }

  Scalars scalars_;
  bool has_l2_penalty_;
  T grad_scale_;
  bool is_scaled_;
};

template <class Rule, unsigned size>
class Block {
 public:
  // There are as many blocks as chunks.
  FUSEDOPT_FN Block(const Table<size>& table, uint32_t index)
      : table_(table),
        entry_(find_entry(index)),
        chunk_(index - field<uint32_t>(offsetof(Entry, first_chunk))),
        kind_(field<Kind>(offsetof(Entry, kind))) {}

  FUSEDOPT_FN static bool is_skipped(const Table<size>& table) {
    return table.header.found_inf != nullptr && *table.header.found_inf != 0;
  }

  FUSEDOPT_FN bool derives() const { return kind_.derives; }

  // The part of thread 0, if the block derives its scalars; the others wait for it.
  FUSEDOPT_FN void derive(Shared<Rule>& shared) const {
    const void* const count = field<void*>(offsetof(Entry, step));
    const int64_t step = count == nullptr ? 0 : load_count(count, kind_.step_type) + 1;
    const uint32_t first = field<uint32_t>(offsetof(Entry, scalars));
    const auto load = [&](uint32_t n) {
      return read<OptionValue>(table_, first + n * static_cast<uint32_t>(sizeof(OptionValue)));
    };
    ReplayedOptions options(load);
    const auto hyper = Rule::read(options);
    if (computes_in_double(kind_.dtype)) {
      shared.in_double = derive_scalars<double, Rule>(hyper, step);
    } else {
      shared.in_float = derive_scalars<float, Rule>(hyper, step);
    }
    shared.counts_steps =
        count != nullptr && arrive(table_.header.arrivals) + 1 == table_.header.counting_blocks;
  }

  // The part of every thread.
  FUSEDOPT_FN void run(unsigned thread, const Shared<Rule>& shared) const {
    if (kind_.derives && shared.counts_steps) count_steps(thread);
    switch (kind_.dtype) {
      case DType::kFloat32: return select_variant<float>(thread, shared);
      case DType::kFloat64: return select_variant<double>(thread, shared);
      case DType::kBFloat16: return select_variant<BFloat16>(thread, shared);
      case DType::kFloat16: return select_variant<Float16>(thread, shared);
    }
  }

 private:
  template <class Field>
  FUSEDOPT_FN Field field(size_t offset) const {
    return read<Field>(table_, entry_ + static_cast<uint32_t>(offset));
  }

  // Offset of the last entry that begins at or before the chunk.
  FUSEDOPT_FN uint32_t find_entry(uint32_t chunk) const {
    uint32_t first = 0;
    for (uint32_t count = table_.header.entry_count; count > 1;) {
      const uint32_t middle = first + count / 2;
      const auto begin = read<uint32_t>(
          table_, static_cast<uint32_t>(middle * sizeof(Entry) + offsetof(Entry, first_chunk)));
      first = begin <= chunk ? middle : first;
      count -= count / 2;
    }
    return first * static_cast<uint32_t>(sizeof(Entry));
  }

  FUSEDOPT_FN void count_steps(unsigned thread) const {
    for (uint32_t e = thread; e < table_.header.entry_count; e += kThreads) {
      const auto entry = read<Entry>(table_, static_cast<uint32_t>(e * sizeof(Entry)));
      if (entry.step == nullptr) continue;
      count_on(entry.step, entry.kind.step_type);
    }
    if (thread == 0) *table_.header.arrivals = 0;
  }

  // One of them is it: the host has looked.
  template <class Element>
  FUSEDOPT_FN void select_variant(unsigned thread, const Shared<Rule>& shared) const {
    static_assert(rule_variant(kVariantCount<Rule> - 1) == Rule::kVariants - 1);
    select_variant<Element>(thread, shared, std::make_index_sequence<Rule::kVariants>{});
  }

  template <class Element, size_t... variant>
  FUSEDOPT_FN void select_variant(unsigned thread, const Shared<Rule>& shared,
                                  std::index_sequence<variant...>) const {
    (void)((rule_variant(kind_.variant) == variant &&
            (update_chunk<Element>(thread, element_update<variant, Element>(shared)), true)) ||
           ...);
  }

  template <unsigned variant, class Element>
  FUSEDOPT_FN ElementUpdate<Rule, variant, Element> element_update(
      const Shared<Rule>& shared) const {
    KernelScalars<Rule, Number<Element>> scalars;
    if (kind_.derives) {
      shared.get(scalars);
    } else {
      scalars = read<decltype(scalars)>(table_, field<uint32_t>(offsetof(Entry, scalars)));
    }
    return {scalars, (kind_.variant & kL2Penalty) != 0, table_.header.grad_scale};
  }

  template <class Element, class Update>
  FUSEDOPT_FN void update_chunk(unsigned thread, const Update& update) const {
    constexpr unsigned lanes = kPackBytes / sizeof(Element);
    constexpr unsigned chunk_size = kChunkBytes / sizeof(Element);
    // Chunks begin at packs; the first has the elements ahead of its packs as well.
    const bool has_packs = kind_.head != kNoAlignedPacks;
    const unsigned head = has_packs ? kind_.head : 0;
    const int64_t begin = chunk_ == 0 ? 0 : chunk_ * int64_t{chunk_size} + head;
    const unsigned longest = chunk_ == 0 ? chunk_size + head : chunk_size;
    const int64_t left = field<int64_t>(offsetof(Entry, numel)) - begin;
    // Counted from the chunk's first element.
    const unsigned end = left < longest ? static_cast<unsigned>(left) : longest;
    if (kind_.dim_count > 0) return update_strided<Element>(thread, update, begin, end);

    Element* first[kMaxOperands];
    for (int k = 0; k < kMaxOperands; ++k) first[k] = data<Element>(k) + begin;
    const auto update_at = [&](auto width, auto... i) {
      const unsigned positions[] = {i...};
      Element* at[sizeof...(i)][kMaxOperands];
      for (unsigned p = 0; p < sizeof...(i); ++p) {
        for (int k = 0; k < kMaxOperands; ++k) at[p][k] = first[k] + positions[p];
      }
      update.template update<decltype(width)::value>(at);
    };
    using Lanes = std::integral_constant<unsigned, lanes>;
    constexpr unsigned all_threads = kThreads * lanes;
    const unsigned ahead = chunk_ == 0 ? head : 0;
    const unsigned packs_begin = has_packs && ahead < end ? ahead : end;
    const unsigned packs_end = end - (end - packs_begin) % lanes;
    unsigned i = packs_begin + thread * lanes;
    if constexpr (packs_at_once(Update::kOperands) == 2) {
#pragma unroll 1
      for (; i + all_threads < packs_end; i += 2 * all_threads) {
        update_at(Lanes{}, i, i + all_threads);
      }
    }
#pragma unroll 1
    for (; i < packs_end; i += all_threads) update_at(Lanes{}, i);
    const unsigned single = packs_begin + (end - packs_end);
#pragma unroll 1
    for (unsigned s = thread; s < single; s += kThreads) {
      update_at(std::integral_constant<unsigned, 1>{},
                s < packs_begin ? s : packs_end + (s - packs_begin));
    }
  }

  template <class Element>
  FUSEDOPT_FN Element* data(int operand) const {
    return field<Element*>(offsetof(Entry, data) + operand * sizeof(void*));
  }

  FUSEDOPT_FN static constexpr uint32_t stride_offset(int operand) {
    return static_cast<uint32_t>(offsetof(StridedDim, strides) + operand * sizeof(int64_t));
  }

  // The elements [begin, begin + count) of a walk over all operands.
  template <class Element, class Update>
  FUSEDOPT_FN void update_strided(unsigned thread, const Update& update, int64_t begin,
                                  unsigned count) const {
    const uint32_t dims = field<uint32_t>(offsetof(Entry, dims));
#pragma unroll 1
    for (unsigned e = thread; e < count; e += kThreads) {
      Element* at[1][kMaxOperands];
      for (int k = 0; k < kMaxOperands; ++k) at[0][k] = data<Element>(k);
      int64_t i = begin + e;
#pragma unroll 1
      for (unsigned d = kind_.dim_count; d-- > 0;) {
        const uint32_t dim = dims + d * static_cast<uint32_t>(sizeof(StridedDim));
        const int64_t size_of_dim = read<int64_t>(table_, dim);
        const int64_t index = i % size_of_dim;
        i /= size_of_dim;
        for (int k = 0; k < kMaxOperands; ++k) {
          at[0][k] += index * read<int64_t>(table_, dim + stride_offset(k));
        }
      }
      update.template update<1>(at);
    }
  }

  const Table<size>& table_;
  uint32_t entry_;  // its offset
  uint32_t chunk_;  // of the entry
  Kind kind_;
};

}  // namespace fusedopt::cuda
