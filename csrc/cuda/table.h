// What a launch needs to know, as a kernel's parameter: for every tensor where it is, how large,
// and with which scalars it is updated.
#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <type_traits>

#include "core/epilogue.h"
#include "core/number.h"
#include "core/operand.h"
#include "core/prologue.h"
#include "cuda/tuning.h"

namespace fusedopt::cuda {

// Not all operands are equally far from a multiple of kPackBytes: no pack is aligned in all of
// them.
constexpr uint8_t kNoAlignedPacks = 0xff;

// What of an entry selects the code that updates it.
struct alignas(8) Kind {
  uint8_t format;  // that of all operands, where they have one that is usual
  bool in_double;  // the type of the arithmetic
  uint8_t variant;
  uint8_t head;       // elements ahead of the first aligned pack, or kNoAlignedPacks
  uint8_t dim_count;  // of the dimensions to walk; 0: one run
  NumberType step_type, averaged_type;
  bool derives;
};

// Behind it follow the addresses of its operands, in as many places as the rule has operands. In a
// table for any formats they are ordered by role, and what ExtraPlaces names comes behind them.
struct Entry {
  void* step;  // null where the host counts, or nobody does
  int64_t numel;
  uint32_t first_chunk;  // the chunks of all entries are numbered through, one per block
  uint32_t scalars;      // offset of the scalars or, where the kernel derives them, of the options
  uint32_t walk;         // offset of the numbers of a Walk
  uint32_t formats;      // by place, kFormatBits each, in a table for any formats
  Kind kind;
};

constexpr unsigned kFormatBits = 4;
// Of an operand that the update does not have.
constexpr auto kNoFormat = static_cast<Format>((1u << kFormatBits) - 1);
FUSEDOPT_FN constexpr Format format_of(uint32_t formats, unsigned place) {
  return static_cast<Format>(formats >> (kFormatBits * place) & ((1u << kFormatBits) - 1));
}

// The most operands that an update of a rule has, without an average and a remainder.
template <class Rule>
constexpr unsigned kOperandsOf = kFirstState + Rule::kStates.size();

// What an entry of a table for any formats has behind the addresses of its operands, counted in
// places of an address: the average, the remainder, the scales of each state, the offsets of its
// Draws and of its Epilogue, or 0, and the count of what the average is of.
struct ExtraPlaces {
  unsigned average, remainder, scales, draws, epilogue, averaged, count;

  FUSEDOPT_FN constexpr explicit ExtraPlaces(unsigned operands)
      : average(operands),
        remainder(average + 1),
        scales(remainder + 1),
        draws(scales + operands - kFirstState),
        epilogue(draws + 1),
        averaged(epilogue + 1),
        count(averaged + 1) {}
};

// What an entry takes in the tables of a rule.
FUSEDOPT_FN constexpr uint32_t entry_size(unsigned operands, bool has_any_formats) {
  const unsigned places = has_any_formats ? ExtraPlaces(operands).count : operands;
  return static_cast<uint32_t>(sizeof(Entry) + places * sizeof(void*));
}

// What the table of any kernel begins with.
struct LaunchHeader {
  const std::byte* overflow;  // where the sections are in the device's memory, if not in the table
  uint32_t* arrivals;         // of blocks at some place; 0 before and after a launch
  uint32_t entry_count;
  uint32_t chunk_count;
};

// Of a step. The arrivals are those of blocks that have read their counts.
struct TableHeader : LaunchHeader {
  const float* grad_scale;
  const float* found_inf;
  const Decision* decision;
  uint32_t counting_blocks;  // how many have a count to read
};

// The sections are the entries, at offset 0, then scalars and options, then walks.
template <unsigned size, class Header = TableHeader>
struct Table {
  static constexpr unsigned kCapacity = size - sizeof(Header);
  static constexpr bool kMayOverflow = size == kSmallTable;

  Header header;
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

template <class Record, unsigned size, class Header>
FUSEDOPT_FN Record read(const Table<size, Header>& table, uint32_t offset) {
  if constexpr (Table<size, Header>::kMayOverflow) {
    if (table.header.overflow != nullptr) {
      return read_constant<Record>(table.header.overflow + offset);
    }
  }
  return *reinterpret_cast<const Record*>(table.sections + offset);
}

// Offset of the last entry that begins at or before a chunk. Entries have that of their first chunk
// at `place`.
template <class TableOf>
FUSEDOPT_FN uint32_t find_entry(const TableOf& table, uint32_t entry_size, size_t place,
                                uint32_t chunk) {
  uint32_t first = 0;
  for (uint32_t count = table.header.entry_count; count > 1;) {
    const uint32_t middle = first + count / 2;
    const auto begin = read<uint32_t>(table, middle * entry_size + static_cast<uint32_t>(place));
    first = begin <= chunk ? middle : first;
    count -= count / 2;
  }
  return first * entry_size;
}

}  // namespace fusedopt::cuda
