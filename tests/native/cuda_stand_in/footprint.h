// What a launch may touch, apart from the table: read off the list of updates that it carries out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/option.h"
#include "core/square_list.h"
#include "core/update_list.h"

namespace fusedopt::stand_in {

// The elements of a walk over memory.
struct Elements {
  const char* name;
  const std::byte* address;
  unsigned element_size;
  std::vector<std::pair<int64_t, int64_t>> dims;  // size and stride, in elements
  bool is_read, is_written;

  // Calls visit(begin, size in bytes) for all elements; for those that lie side by side, once.
  template <class Visit>
  void for_each_run(Visit visit) const {
    visit_from(0, address, visit);
  }

 private:
  template <class Visit>
  void visit_from(size_t dim, const std::byte* at, Visit& visit) const {
    if (dim == dims.size()) return visit(at, element_size);
    const auto [size, stride] = dims[dim];
    if (dim + 1 == dims.size() && stride == 1) {
      return visit(at, static_cast<size_t>(size) * element_size);
    }
    for (int64_t i = 0; i < size; ++i, at += stride * element_size) visit_from(dim + 1, at, visit);
  }
};

struct Footprint {
  std::vector<Elements> elements;    // of operands; and step counts, options, numbers of a prologue
  std::set<std::string> derives_in;  // the types of scalars that the kernel derives and uses
  const float* found_inf = nullptr;  // of these numbers one that is not 0 says that the launch
  const double* is_skipped = nullptr;  // writes nothing
  size_t table_size = 0;               // without its header
  size_t sums = 0;                     // that a launch which measures adds to: one, if it decides
  bool decides = false;
};

// The options that a kernel derives the scalars of an update from.
std::span<const OptionValue> options_of(const UpdateList& list, const Update& update);

Footprint footprint_of(const UpdateList& list, const Round& round);

// Of a launch that measures, and decides if the prologue has a decision.
Footprint footprint_of(const SquareList& list, const Prologue& prologue, size_t sums);

// Whether a round has anything that a launch is needed for.
bool is_launched(const UpdateList& list, const Round& round);

}  // namespace fusedopt::stand_in
