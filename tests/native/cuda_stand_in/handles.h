// The objects behind handles of one kind, and which of them are alive.
#pragma once

#include <algorithm>
#include <memory>
#include <set>
#include <vector>

namespace fusedopt::stand_in {

// A dead object keeps its address, so that a stale handle never means another object.
template <class T>
class Handles {
 public:
  T* add(std::unique_ptr<T> object) {
    live_.insert(object.get());
    return all_.emplace_back(std::move(object)).get();
  }
  bool has(T* object) const { return live_.contains(object); }
  void remove(T* object) { live_.erase(object); }

  template <class Predicate>
  size_t count_live(Predicate is_meant) const {
    return static_cast<size_t>(std::count_if(live_.begin(), live_.end(), is_meant));
  }
  const std::vector<std::unique_ptr<T>>& all() const { return all_; }

 private:
  std::set<T*> live_;
  std::vector<std::unique_ptr<T>> all_;
};

}  // namespace fusedopt::stand_in
