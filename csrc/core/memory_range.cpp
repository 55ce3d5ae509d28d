#include "core/memory_range.h"

#include <algorithm>

namespace fusedopt {

std::optional<std::pair<uint32_t, uint32_t>> RangeSet::find_overlap() {
  if (!is_sorted_ || count_ != ranges_.size()) sort();
  return overlap_;
}

bool RangeSet::intersects(const MemoryRange& range, uint32_t& hint) {
  if (!is_sorted_ || count_ != ranges_.size()) sort();
  if (range.is_empty()) return false;
  const auto size = static_cast<uint32_t>(by_address_.size());
  const auto ends_before = [&](uint32_t p) { return ranges_[p].end <= range.begin; };
  const auto begins_behind = [&](uint32_t p) { return range.end <= ranges_[p].begin; };
  const bool is_there = hint <= size && (hint == 0 || ends_before(by_address_[hint - 1])) &&
                        (hint == size || begins_behind(by_address_[hint]));
  if (is_there) return false;
  const auto next = std::partition_point(by_address_.begin(), by_address_.end(), ends_before);
  hint = static_cast<uint32_t>(next - by_address_.begin());
  return next != by_address_.end() && !begins_behind(*next);
}

void RangeSet::sort() {
  ranges_.resize(count_);
  by_address_.clear();
  for (uint32_t p = 0; p < count_; ++p) {
    if (!ranges_[p].is_empty()) by_address_.push_back(p);
  }
  std::sort(by_address_.begin(), by_address_.end(), [&](uint32_t a, uint32_t b) {
    return std::pair(ranges_[a].begin, a) < std::pair(ranges_[b].begin, b);
  });
  // Of those in order of their begins, some two share memory if and only if two neighbours do.
  const auto pair =
      std::adjacent_find(by_address_.begin(), by_address_.end(),
                         [&](uint32_t a, uint32_t b) { return ranges_[a].end > ranges_[b].begin; });
  overlap_.reset();
  if (pair != by_address_.end()) overlap_ = std::minmax(pair[0], pair[1]);
  is_sorted_ = true;
}

uint32_t RoundPlan::earliest(const Access* accesses, size_t count) {
  uint32_t round = 0;
  for (const Access* access = accesses; access != accesses + count; ++access) {
    auto segment = std::prev(segments_.upper_bound(access->range.begin));
    for (; segment != segments_.end() && segment->first < access->range.end; ++segment) {
      const Free& free = segment->second;
      round = std::max(round, access->writes ? free.to_write : free.to_read);
    }
  }
  return round;
}

void RoundPlan::record(const Access* accesses, size_t count, uint32_t round) {
  for (const Access* access = accesses; access != accesses + count; ++access) {
    const auto begin = split(access->range.begin), end = split(access->range.end);
    for (auto segment = begin; segment != end; ++segment) {
      Free& free = segment->second;
      free.to_write = std::max(free.to_write, round + 1);
      if (access->writes) free.to_read = free.to_write;
    }
  }
}

RoundPlan::Segments::iterator RoundPlan::split(const char* at) {
  const auto segment = std::prev(segments_.upper_bound(at));
  if (segment->first == at) return segment;
  return segments_.emplace_hint(std::next(segment), at, segment->second);
}

}  // namespace fusedopt
