// What a launch needs to know, as a kernel's parameter: for every tensor where it is, how large,
// and with which scalars it is updated.
#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <type_traits>

#include "core/layout.h"
#include "core/number.h"
#include "cuda/tuning.h"

namespace fusedopt::cuda {

// Not all operands are equally far from a multiple of kPackBytes: no pack is aligned in all of
// them.
constexpr uint8_t kNoAlignedPacks = 0xff;

// What of an entry selects the code that updates it.
struct alignas(8) Kind {
  DType dtype;
  uint8_t variant;
  uint8_t head;       // elements ahead of the first aligned pack, or kNoAlignedPacks
  uint8_t dim_count;  // of the dimensions to walk; 0: one run
  NumberType step_type;
  bool derives;
};

struct Entry {
  void* data[kMaxOperands];
  void* step;  // null where the host counts, or nobody does
  int64_t numel;
  uint32_t first_chunk;  // the chunks of all entries are numbered through, one a block
  uint32_t scalars;      // offset of the scalars or, where the kernel derives them, of the options
  uint32_t dims;         // offset of the dimensions to walk
  Kind kind;
};

struct TableHeader {
  const std::byte* overflow;  // where the sections are in the device's memory, if not in the table
  const float* grad_scale;
  const float* found_inf;
  uint32_t* arrivals;        // blocks that have read their step count; 0 before and after a launch
  uint32_t counting_blocks;  // how many have one to read
  uint32_t entry_count;
  uint32_t chunk_count;
};

// The sections are the entries, at offset 0, then scalars and options, then dimensions.
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
