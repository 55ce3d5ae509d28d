// Which memory a step touches, and whether two parts of it share any.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <utility>
#include <vector>

namespace fusedopt {

// From the first byte to the one behind the last, gaps between strided elements included.
struct MemoryRange {
  const char* begin = nullptr;
  const char* end = nullptr;

  bool operator==(const MemoryRange&) const = default;
  bool is_empty() const { return begin == end; }
  bool intersects(const MemoryRange& other) const { return begin < other.end && other.begin < end; }
};

// Ranges that are named anew at every step and have rarely moved since the last: then nothing is
// sorted again.
class RangeSet {
 public:
  void clear() { count_ = 0; }

  // Ranges are known by their position in the order in which they are added.
  void add(const MemoryRange& range) {
    if (count_ == ranges_.size()) {
      ranges_.push_back(range);
      is_sorted_ = false;
    } else if (ranges_[count_] != range) {
      ranges_[count_] = range;
      is_sorted_ = false;
    }
    ++count_;
  }

  // The next three, when all have been added.

  // Two that share memory, if any do, in the order in which they were added.
  std::optional<std::pair<uint32_t, uint32_t>> find_overlap();

  // Whether a range shares memory with one of these, which are disjoint. `hint` is where it lay
  // among them when it was asked last.
  bool intersects(const MemoryRange& range, uint32_t& hint);

  const MemoryRange& operator[](uint32_t position) const { return ranges_[position]; }
  uint32_t size() const { return count_; }

 private:
  void sort();

  uint32_t count_ = 0;
  bool is_sorted_ = true;
  std::vector<MemoryRange> ranges_;
  std::vector<uint32_t> by_address_;  // those that are not empty
  std::optional<std::pair<uint32_t, uint32_t>> overlap_;
};

// Puts accesses into rounds, so that no two in one round touch the same byte, one of them writing,
// and rounds one after the other do what the accesses in their order would.
class RoundPlan {
 public:
  struct Access {
    MemoryRange range;
    bool writes;
  };

  // The earliest round for all of these accesses together.
  uint32_t earliest(const Access* accesses, size_t count);
  // What comes later has to respect them.
  void record(const Access* accesses, size_t count, uint32_t round);

 private:
  // The first rounds in which the bytes from a key to the next one may be read, and written.
  struct Free {
    uint32_t to_read = 0, to_write = 0;
  };
  using Segments = std::map<const char*, Free>;

  Segments::iterator split(const char* at);

  Segments segments_ = {{nullptr, Free{}}};
};

}  // namespace fusedopt
