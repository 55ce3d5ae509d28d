// Address space that is set aside, to be there when something that must not fail asks for memory.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <utility>

namespace fusedopt {

class AddressSpace {
 public:
  AddressSpace() = default;
  // Maps no memory, but counts against the process's limit (RLIMIT_AS).
  explicit AddressSpace(size_t size)
      : begin_(mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)),
        size_(size) {}
  AddressSpace(AddressSpace&& other) noexcept : AddressSpace() { *this = std::move(other); }
  AddressSpace& operator=(AddressSpace&& other) noexcept {
    std::swap(begin_, other.begin_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~AddressSpace() { release(); }

  bool is_there() const { return begin_ != MAP_FAILED; }

  void release() {
    if (is_there()) munmap(begin_, size_);
    begin_ = MAP_FAILED;
  }

 private:
  void* begin_ = MAP_FAILED;
  size_t size_ = 0;
};

}  // namespace fusedopt
