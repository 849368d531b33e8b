#include "device/host_buffer.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "base/units.h"

namespace kvd::device {
namespace {
constexpr std::size_t kHugePageBytes = 2u << 20;
}  // namespace

HostBuffer::HostBuffer(HostBuffer&& other) noexcept { *this = std::move(other); }

HostBuffer& HostBuffer::operator=(HostBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(huge_pages_, other.huge_pages_);
  return *this;
}

HostBuffer::~HostBuffer() {
  if (data_ != nullptr) munmap(data_, size_);
}

Result<HostBuffer> HostBuffer::allocate(std::size_t bytes) {
  const std::string wanted = format_bytes(bytes);
  if (bytes == 0 || bytes > SIZE_MAX / 2) return invalid_argument("cannot allocate " + wanted);
  const std::size_t size = (bytes + kHugePageBytes - 1) / kHugePageBytes * kHugePageBytes;
  // One huge page more than asked for, so that the part that is kept can start on a huge page.
  const std::size_t mapped = size + kHugePageBytes;
  void* raw = mmap(nullptr, mapped, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (raw == MAP_FAILED) {
    return Status(StatusCode::kResourceExhausted,
                  "cannot map " + wanted + " of memory: " + std::strerror(errno));
  }
  auto address = reinterpret_cast<std::uintptr_t>(raw);
  const std::uintptr_t aligned = (address + kHugePageBytes - 1) / kHugePageBytes * kHugePageBytes;
  if (aligned > address) munmap(raw, aligned - address);
  if (address + mapped > aligned + size) {
    munmap(reinterpret_cast<void*>(aligned + size), address + mapped - (aligned + size));
  }
  HostBuffer out;
  out.data_ = reinterpret_cast<std::byte*>(aligned);
  out.size_ = size;
  if (madvise(out.data_, size, MADV_HUGEPAGE) == 0) out.huge_pages_ = HugePages::kTransparent;
  // A child that shares the pool copy-on-write would slow the first touch of each page and may keep
  // memory alive that a peer still has a key to.
  madvise(out.data_, size, MADV_DONTFORK);
  return out;
}

}  // namespace kvd::device
