// Host memory for pools and weights: page-aligned, zeroed, on huge pages where they can be had.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "base/status.h"

namespace kvd::device {

enum class HugePages { kNone, kTransparent };

// Owns one anonymous mapping. Movable, not copyable; the address never changes while it lives.
// A peer may hold a key to it: destroy the registrations (fabric::MemoryRegion) first.
// Calling thread: any, one at a time.
class HostBuffer {
 public:
  HostBuffer() = default;
  HostBuffer(HostBuffer&& other) noexcept;
  HostBuffer& operator=(HostBuffer&& other) noexcept;
  ~HostBuffer();

  // `bytes` are rounded up to 2 MiB. Asks for transparent huge pages (MADV_HUGEPAGE) and keeps the
  // mapping out of children (MADV_DONTFORK). Errors: kResourceExhausted with the size asked for.
  static Result<HostBuffer> allocate(std::size_t bytes);

  std::byte* data() const { return data_; }
  std::size_t size() const { return size_; }
  // What the kernel was asked for, and granted a policy for (not proof that each page is huge).
  HugePages huge_pages() const { return huge_pages_; }

 private:
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
  HugePages huge_pages_ = HugePages::kNone;
};

}  // namespace kvd::device
