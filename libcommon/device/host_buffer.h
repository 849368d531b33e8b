// Host memory for pools and weights: page-aligned, zeroed, on huge pages where they can be had.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/status.h"

namespace kvd::device {

enum class HugePages {
  kNone,
  kTransparent,  // the kernel was asked for them, and its policy allows it
  kReserved,     // each page is huge (vm.nr_hugepages)
};
std::string_view to_string(HugePages huge_pages);

// kShared: a memfd, so that another process of this user can be given a read-only view. It is
// sealed: its size is fixed, and no writable mapping but ours will ever exist. kSharedSmall: the
// same for what needs no huge page, so that the reserved ones are left to what does.
enum class Backing { kPrivate, kShared, kSharedSmall };

// Owns one mapping. Movable, not copyable; the address never changes while it lives.
// A peer may hold a key to it: destroy the registrations (fabric::MemoryRegion) first.
// Calling thread: any, one at a time.
class HostBuffer {
 public:
  HostBuffer() = default;
  HostBuffer(HostBuffer&& other) noexcept;
  HostBuffer& operator=(HostBuffer&& other) noexcept;
  ~HostBuffer();

  // `bytes` are rounded up to 2 MiB. Asks for huge pages and keeps the mapping out of children
  // (MADV_DONTFORK). kShared takes reserved huge pages first (MFD_HUGETLB), then transparent
  // ones where /sys/kernel/mm/transparent_hugepage/shmem_enabled allows them to whoever asks.
  // Errors: kResourceExhausted with the size asked for; kNoProvider when this kernel or sandbox
  // gives no sealed memfd.
  static Result<HostBuffer> allocate(std::size_t bytes, Backing backing = Backing::kPrivate);

  std::byte* data() const { return data_; }
  std::size_t size() const { return size_; }
  // Transparent ones are a policy that was granted, not proof that each page is huge.
  HugePages huge_pages() const { return huge_pages_; }
  bool shared() const { return fd_ >= 0; }

 private:
  Status map_shared(std::size_t bytes, bool reserved);

  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
  HugePages huge_pages_ = HugePages::kNone;
  int fd_ = -1;
};

// One live shared HostBuffer; the descriptor stays the buffer's.
struct SharedMemory {
  std::byte* data = nullptr;
  std::size_t bytes = 0;
  int fd = -1;
};
// The shared buffer that holds all of [data, data + bytes), if one does. Any thread.
std::optional<SharedMemory> shared_memory_at(const std::byte* data, std::size_t bytes);

// How shared memory may get huge pages on this host, one line.
std::string shared_huge_pages_hint();

}  // namespace kvd::device
