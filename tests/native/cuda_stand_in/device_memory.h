// The memory of devices, which the host cannot touch, and pinned memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace fusedopt::stand_in {

struct Allocation {
  int device;
  bool is_pinned;
  std::byte* address;  // as the API gives it
  std::byte* host;     // the same bytes, for the stand-in; the same address if pinned
  size_t size;
  std::vector<uint8_t> written;  // by byte: whether anybody has written it; empty if pinned

  const std::byte* end() const { return address + size; }
  bool holds_only_written(const std::byte* from, size_t count) const;
  void mark_written(const std::byte* from, size_t count);
  std::byte* host_of(const void* at) const {
    return host + (static_cast<const std::byte*>(at) - address);
  }
};

// The allocation that has all of these bytes, or null.
Allocation* find_allocation(const void* address, size_t size);
std::vector<Allocation*> live_allocations(int device);

// Where the host finds a byte: in memory of a device through its second address.
std::byte* on_host(const void* address);

// Opens the memory of one device, and of no other, as long as it lives: for a kernel that runs as
// a function of the host.
class OpenDevice {
 public:
  explicit OpenDevice(int device) : allocations_(live_allocations(device)) { protect(true); }
  ~OpenDevice() { protect(false); }
  OpenDevice(const OpenDevice&) = delete;
  OpenDevice& operator=(const OpenDevice&) = delete;

 private:
  void protect(bool is_open) const;

  std::vector<Allocation*> allocations_;
};

}  // namespace fusedopt::stand_in
