#include "device_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <string>

#include "runtime.h"
#include "streams.h"

namespace fusedopt::stand_in {
namespace {

constexpr size_t kArenaSize = size_t{64} << 20;
constexpr size_t kPage = 4096;
constexpr int kFresh = 0xA5;

size_t in_pages(size_t size) { return (size + kPage - 1) / kPage * kPage; }

std::byte* map(int file, int protection) {
  const int flags = file < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
  void* const memory = mmap(nullptr, kArenaSize, protection, flags | MAP_NORESERVE, file, 0);
  return memory == MAP_FAILED ? nullptr : static_cast<std::byte*>(memory);
}

// Memory from which allocations are cut, each followed by a page that belongs to none. It is never
// used twice. That of a device is one file that is mapped twice.
class Arena {
 public:
  explicit Arena(bool is_pinned) {
    if (is_pinned) {
      address_ = host_ = map(-1, PROT_READ | PROT_WRITE);
      return;
    }
    const int file = memfd_create("device", 0);
    if (file < 0 || ftruncate(file, kArenaSize) != 0) return;
    address_ = map(file, PROT_NONE);
    host_ = map(file, PROT_READ | PROT_WRITE);
    close(file);
  }

  // Offset of the allocation; or of the end, if there is no room.
  size_t cut(size_t size) {
    const bool has_room = address_ != nullptr && host_ != nullptr && size < kArenaSize &&
                          used_ + in_pages(size) + kPage <= kArenaSize;
    if (!has_room) return kArenaSize;
    const size_t offset = used_;
    used_ += in_pages(size) + kPage;
    return offset;
  }

  std::byte* address() const { return address_; }
  std::byte* host() const { return host_; }

 private:
  std::byte* address_ = nullptr;
  std::byte* host_ = nullptr;
  size_t used_ = 0;
};

Arena& arena_of(int device, bool is_pinned) {
  static std::map<std::pair<int, bool>, std::unique_ptr<Arena>> arenas;
  auto& arena = arenas[{device, is_pinned}];
  if (arena == nullptr) arena = std::make_unique<Arena>(is_pinned);
  return *arena;
}

// By address.
std::map<const std::byte*, Allocation>& allocations() {
  static std::map<const std::byte*, Allocation> allocations;
  return allocations;
}

cudaError_t allocate(void** to, size_t size, bool is_pinned) {
  if (const cudaError_t error = refuse_unsafe_call()) return error;
  if (size == 0) return cudaErrorInvalidValue;
  const int device = this_thread().device;
  Arena& arena = arena_of(device, is_pinned);
  const size_t offset = arena.cut(size);
  if (offset == kArenaSize) return cudaErrorMemoryAllocation;
  std::byte* const address = arena.address() + offset;
  std::byte* const host = arena.host() + offset;
  std::memset(host, kFresh, size);
  allocations()[address] = {device, is_pinned, address,
                            host,   size,      std::vector<uint8_t>(is_pinned ? 0 : size)};
  *to = address;
  return cudaSuccess;
}

// Waits for the whole device, as CUDA does.
cudaError_t release(void* address, bool is_pinned) {
  if (const cudaError_t error = refuse_unsafe_call()) return error;
  if (address == nullptr) return cudaSuccess;
  const auto at = allocations().find(static_cast<std::byte*>(address));
  if (at == allocations().end() || at->second.is_pinned != is_pinned) {
    return violation("memory is freed that is not allocated");
  }
  const Allocation& allocation = at->second;
  synchronize_device(allocation.device);
  if (is_pinned) mprotect(allocation.host, in_pages(allocation.size), PROT_NONE);
  allocations().erase(at);
  return cudaSuccess;
}

// Memory that a copy may use, in the device's memory or pinned; or null.
Allocation* find_for_copy(const void* address, size_t size, bool is_pinned, int device) {
  Allocation* const allocation = find_allocation(address, size);
  if (allocation == nullptr || allocation->is_pinned != is_pinned) return nullptr;
  return is_pinned || allocation->device == device ? allocation : nullptr;
}

struct Copy {
  void* to;
  const void* from;
  size_t size;
  bool to_pinned, from_pinned;
  int device;
  std::vector<std::byte> source;  // as it was at the call; empty if that is of no matter

  Allocation* target_memory() const { return find_for_copy(to, size, to_pinned, device); }
  Allocation* source_memory() const { return find_for_copy(from, size, from_pinned, device); }
};

// The bytes are read when the copy is done, not when it is queued.
void carry_out(const Copy& copy) {
  Allocation* const target = copy.target_memory();
  Allocation* const source = copy.source_memory();
  if (target == nullptr || source == nullptr) {
    (void)violation("a copy has lost its memory before it was done");
    return;
  }
  const std::byte* const from = source->host_of(copy.from);
  if (!std::equal(copy.source.begin(), copy.source.end(), from)) {
    (void)violation("pinned memory was changed while a copy of it was queued");
  }
  std::memcpy(target->host_of(copy.to), from, copy.size);
  target->mark_written(static_cast<std::byte*>(copy.to), copy.size);
}

void fill(void* at, int value, size_t size, int device) {
  Allocation* const target = find_for_copy(at, size, false, device);
  if (target == nullptr) {
    (void)violation("memory to fill was freed before that was done");
    return;
  }
  std::memset(target->host_of(at), value, size);
  target->mark_written(static_cast<std::byte*>(at), size);
}

}  // namespace

bool Allocation::holds_only_written(const std::byte* from, size_t count) const {
  const auto first = written.begin() + (from - address);
  return is_pinned || std::all_of(first, first + static_cast<std::ptrdiff_t>(count),
                                  [](uint8_t is_written) { return is_written != 0; });
}

void Allocation::mark_written(const std::byte* from, size_t count) {
  if (!is_pinned) std::fill_n(written.begin() + (from - address), count, uint8_t{1});
}

Allocation* find_allocation(const void* address, size_t size) {
  const auto* const begin = static_cast<const std::byte*>(address);
  const auto after = allocations().upper_bound(begin);
  if (after == allocations().begin()) return nullptr;
  Allocation& allocation = std::prev(after)->second;
  return begin + size <= allocation.end() ? &allocation : nullptr;
}

std::vector<Allocation*> live_allocations(int device) {
  std::vector<Allocation*> found;
  for (auto& [address, allocation] : allocations()) {
    if (allocation.device == device) found.push_back(&allocation);
  }
  return found;
}

std::byte* on_host(const void* address) {
  const Allocation* const allocation = find_allocation(address, 1);
  if (allocation != nullptr) return allocation->host_of(address);
  return const_cast<std::byte*>(static_cast<const std::byte*>(address));
}

void OpenDevice::protect(bool is_open) const {
  const int protection = is_open ? PROT_READ | PROT_WRITE : PROT_NONE;
  for (const Allocation* allocation : allocations_) {
    if (!allocation->is_pinned) {
      mprotect(allocation->address, in_pages(allocation->size), protection);
    }
  }
}

}  // namespace fusedopt::stand_in

using namespace fusedopt::stand_in;

cudaError_t cudaMalloc(void** to, size_t size) {
  return call("cudaMalloc", [&] { return allocate(to, size, false); });
}

cudaError_t cudaHostAlloc(void** to, size_t size, unsigned int) {
  return call("cudaHostAlloc", [&] { return allocate(to, size, true); });
}

cudaError_t cudaFree(void* address) {
  return call("cudaFree", [&] { return release(address, false); });
}

cudaError_t cudaFreeHost(void* address) {
  return call("cudaFreeHost", [&] { return release(address, true); });
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size, cudaMemcpyKind kind,
                            cudaStream_t handle) {
  return call("cudaMemcpyAsync", [&]() -> cudaError_t {
    CUstream_st* const stream = find_stream(handle);
    if (stream == nullptr) return cudaErrorInvalidResourceHandle;
    Copy copy{to,
              from,
              size,
              kind == cudaMemcpyDeviceToHost,
              kind == cudaMemcpyHostToDevice,
              stream->device,
              {}};
    if (copy.target_memory() == nullptr || copy.source_memory() == nullptr) {
      return violation("a copy between memory that is not the device's, or not pinned");
    }
    const auto* const bytes = static_cast<const std::byte*>(from);
    const bool is_captured = stream->point.capture != nullptr;
    if (copy.from_pinned && !is_captured) copy.source.assign(bytes, bytes + size);
    return submit(*stream, [copy = std::move(copy)] { carry_out(copy); });
  });
}

cudaError_t cudaMemsetAsync(void* at, int value, size_t size, cudaStream_t handle) {
  return call("cudaMemsetAsync", [&]() -> cudaError_t {
    CUstream_st* const stream = find_stream(handle);
    if (stream == nullptr) return cudaErrorInvalidResourceHandle;
    const int device = stream->device;
    if (find_for_copy(at, size, false, device) == nullptr) {
      return violation("memory to fill that is not the device's");
    }
    return submit(*stream, [=] { fill(at, value, size, device); });
  });
}
