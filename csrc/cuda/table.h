// What a launch needs to know, as a kernel's parameter: for every tensor where it is, how large,
// and with which scalars it is updated.
#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <type_traits>

#include "core/number.h"
#include "core/operand.h"
#include "cuda/tuning.h"

namespace fusedopt::cuda {

// Not all operands are equally far from a multiple of kPackBytes: no pack is aligned in all of
// them.
constexpr uint8_t kNoAlignedPacks = 0xff;

// Where all operands of an entry have one format, its number; or else this.
constexpr uint8_t kMixedFormats = 0xff;

// What of an entry selects the code that updates it.
struct alignas(8) Kind {
  uint8_t format;  // that of all operands, or kMixedFormats
  bool in_double;  // the type of the arithmetic
  uint8_t variant;
  uint8_t head;       // elements ahead of the first aligned pack, or kNoAlignedPacks
  uint8_t dim_count;  // of the dimensions to walk; 0: one run
  NumberType step_type;
  bool derives;
};

// Elements of a pack: as many as fill kPackBytes in the one format, or in that of the arithmetic.
FUSEDOPT_FN constexpr unsigned lanes_of(const Kind& kind) {
  const bool is_mixed = kind.format == kMixedFormats;
  const unsigned size =
      is_mixed ? (kind.in_double ? 8u : 4u)
               : static_cast<unsigned>(size_of_dtype(static_cast<Format>(kind.format)));
  return kPackBytes / size;
}

// Behind it follow the addresses of its operands, in as many places as the rule has operands.
struct Entry {
  void* step;  // null where the host counts, or nobody does
  int64_t numel;
  uint32_t first_chunk;  // the chunks of all entries are numbered through, one per block
  uint32_t scalars;      // offset of the scalars or, where the kernel derives them, of the options
  uint32_t walk;         // offset of the numbers of a Walk
  uint32_t formats;      // of the operands, kFormatBits each
  Kind kind;
};

constexpr unsigned kFormatBits = 4;
FUSEDOPT_FN constexpr Format format_of(uint32_t formats, unsigned operand) {
  return static_cast<Format>(formats >> (kFormatBits * operand) & ((1u << kFormatBits) - 1));
}

// The most operands that an update of a rule has, and what an entry takes in its tables.
template <class Rule>
constexpr unsigned kOperandsOf = kFirstState + Rule::kStates.size();
constexpr uint32_t entry_size(unsigned operands) {
  return static_cast<uint32_t>(sizeof(Entry) + operands * sizeof(void*));
}

struct TableHeader {
  const std::byte* overflow;  // where the sections are in the device's memory, if not in the table
  const float* grad_scale;
  const float* found_inf;
  uint32_t* arrivals;        // blocks that have read their step count; 0 before and after a launch
  uint32_t counting_blocks;  // how many have one to read
  uint32_t entry_count;
  uint32_t chunk_count;
};

// The sections are the entries, at offset 0, then scalars and options, then walks.
template <unsigned size>
struct Table {
  static constexpr unsigned kCapacity = size - sizeof(TableHeader);
  static constexpr bool kMayOverflow = size == kSmallTable;

  TableHeader header;
  alignas(8) std::byte sections[kCapacity];
};

// Tells the compiler what it cannot see: a pointer from a table is one to the GPU's own memory.
template <class T>
FUSEDOPT_FN T* in_global_memory(T* pointer) {
#if defined(__CUDA_ARCH__)
  __builtin_assume(__isGlobal(pointer));
#endif
  return pointer;
}

// A record from memory that nobody writes while the kernel runs.
template <class Record>
FUSEDOPT_FN Record read_constant(const std::byte* from) {
#if defined(__CUDA_ARCH__)
  // Through the read-only path. This is also a kind of read that the compiler does not merge with
  // one of a kernel's parameters into a slower one that could be either.
  using Word = std::conditional_t<alignof(Record) == 8, unsigned long long, unsigned>;
  static_assert(sizeof(Record) % sizeof(Word) == 0 && alignof(Record) >= sizeof(Word));
  Word words[sizeof(Record) / sizeof(Word)];
  for (size_t w = 0; w < std::size(words); ++w) {
    words[w] = __ldg(reinterpret_cast<const Word*>(from) + w);
  }
  Record record;
  memcpy(&record, words, sizeof record);
  return record;
#else
  return *reinterpret_cast<const Record*>(from);
#endif
}

template <class Record, unsigned size>
FUSEDOPT_FN Record read(const Table<size>& table, uint32_t offset) {
  if constexpr (Table<size>::kMayOverflow) {
    if (table.header.overflow != nullptr) {
      return read_constant<Record>(table.header.overflow + offset);
    }
  }
  return *reinterpret_cast<const Record*>(table.sections + offset);
}

}  // namespace fusedopt::cuda
