#include "device/host_buffer.h"

#include <fcntl.h>
#include <linux/memfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <map>
#include <mutex>
#include <utility>

#include "base/units.h"

namespace kvd::device {
namespace {

constexpr std::size_t kHugePageBytes = 2u << 20;
// Nobody can make the file shorter under a reader (SIGBUS), nor map it writable, nor change this.
constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL;

class SharedBuffers {
 public:
  void add(const SharedMemory& memory) {
    const std::lock_guard lock(mutex_);
    by_start_[memory.data] = memory;
  }
  void remove(const std::byte* data) {
    const std::lock_guard lock(mutex_);
    by_start_.erase(data);
  }
  std::optional<SharedMemory> find(const std::byte* data, std::size_t bytes) {
    const std::lock_guard lock(mutex_);
    auto it = by_start_.upper_bound(data);
    if (it == by_start_.begin()) return std::nullopt;
    const SharedMemory& memory = (--it)->second;
    const auto offset = static_cast<std::size_t>(data - memory.data);
    if (offset > memory.bytes || bytes > memory.bytes - offset) return std::nullopt;
    return memory;
  }

 private:
  std::mutex mutex_;
  std::map<const std::byte*, SharedMemory> by_start_;
};

SharedBuffers& shared_buffers() {
  static SharedBuffers buffers;
  return buffers;
}

// The word in brackets: "always [madvise] never".
std::string chosen(const char* path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  const std::size_t open = line.find('['), close = line.find(']');
  if (open == std::string::npos || close == std::string::npos || close < open) return {};
  return line.substr(open + 1, close - open - 1);
}

bool shared_may_be_huge() {
  const std::string policy = chosen("/sys/kernel/mm/transparent_hugepage/shmem_enabled");
  return policy == "always" || policy == "within_size" || policy == "advise" || policy == "force";
}

// Address space of `bytes` that starts on a huge page; null when there is none.
std::byte* reserve_aligned(std::size_t bytes) {
  // One huge page more than asked for, so that the part that is kept can start on a huge page.
  const std::size_t mapped = bytes + kHugePageBytes;
  void* raw = mmap(nullptr, mapped, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (raw == MAP_FAILED) return nullptr;
  const auto address = reinterpret_cast<std::uintptr_t>(raw);
  const std::uintptr_t aligned = (address + kHugePageBytes - 1) / kHugePageBytes * kHugePageBytes;
  if (aligned > address) munmap(raw, aligned - address);
  const std::uintptr_t tail = address + mapped - (aligned + bytes);
  if (tail > 0) munmap(reinterpret_cast<void*>(aligned + bytes), tail);
  return reinterpret_cast<std::byte*>(aligned);
}

Status exhausted(std::size_t bytes, int error) {
  return {StatusCode::kResourceExhausted,
          "cannot map " + format_bytes(bytes) + " of memory: " + std::strerror(error)};
}

}  // namespace

std::string_view to_string(HugePages huge_pages) {
  switch (huge_pages) {
    case HugePages::kNone:
      return "none";
    case HugePages::kTransparent:
      return "transparent";
    case HugePages::kReserved:
      return "reserved";
  }
  return "none";
}

HostBuffer::HostBuffer(HostBuffer&& other) noexcept { *this = std::move(other); }

HostBuffer& HostBuffer::operator=(HostBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(huge_pages_, other.huge_pages_);
  std::swap(fd_, other.fd_);
  return *this;
}

HostBuffer::~HostBuffer() {
  if (data_ != nullptr) {
    if (fd_ >= 0) shared_buffers().remove(data_);
    munmap(data_, size_);
  }
  if (fd_ >= 0) close(fd_);
}

Result<HostBuffer> HostBuffer::allocate(std::size_t bytes, Backing backing) {
  if (bytes == 0 || bytes > SIZE_MAX / 2) {
    return invalid_argument("cannot allocate " + format_bytes(bytes));
  }
  const std::size_t size = (bytes + kHugePageBytes - 1) / kHugePageBytes * kHugePageBytes;
  if (backing != Backing::kPrivate) {
    HostBuffer reserved;
    if (backing == Backing::kShared && reserved.map_shared(size, true).ok()) return reserved;
    HostBuffer plain;
    KVD_RETURN_IF_ERROR(plain.map_shared(size, false));
    return plain;
  }
  HostBuffer out;
  out.data_ = reserve_aligned(size);
  if (out.data_ == nullptr) return exhausted(bytes, errno);
  out.size_ = size;
  if (madvise(out.data_, size, MADV_HUGEPAGE) == 0) out.huge_pages_ = HugePages::kTransparent;
  // A child that shares the pool copy-on-write would slow the first touch of each page and may keep
  // memory alive that a peer still has a key to.
  madvise(out.data_, size, MADV_DONTFORK);
  return out;
}

Status HostBuffer::map_shared(std::size_t bytes, bool reserved) {
  const unsigned huge = reserved ? MFD_HUGETLB | MFD_HUGE_2MB : 0;
  fd_ = memfd_create("kvd-pages", MFD_CLOEXEC | MFD_ALLOW_SEALING | huge);
  if (fd_ < 0) {
    return {StatusCode::kNoProvider, std::string("memfd_create: ") + std::strerror(errno)};
  }
  // Over this limit the kernel would not refuse but end the process (SIGXFSZ).
  rlimit limit{};
  if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && bytes > limit.rlim_cur) {
    return {StatusCode::kNoProvider, "shared memory of " + format_bytes(bytes) +
                                         " is above the file size limit (ulimit -f)"};
  }
  if (ftruncate(fd_, static_cast<off_t>(bytes)) != 0) return exhausted(bytes, errno);
  // The kernel aligns reserved huge pages itself.
  std::byte* place = reserved ? nullptr : reserve_aligned(bytes);
  if (!reserved && place == nullptr) return exhausted(bytes, errno);
  const int flags = MAP_SHARED | (reserved ? 0 : MAP_FIXED);
  void* mapped = mmap(place, bytes, PROT_READ | PROT_WRITE, flags, fd_, 0);
  if (mapped == MAP_FAILED) {
    const int error = errno;
    if (place != nullptr) munmap(place, bytes);
    return exhausted(bytes, error);
  }
  // All of them now: a control group may allow the reservation and end the process at the touch.
  if (reserved && madvise(mapped, bytes, MADV_POPULATE_WRITE) != 0) {
    const int error = errno;
    munmap(mapped, bytes);
    return exhausted(bytes, error);
  }
  data_ = static_cast<std::byte*>(mapped);
  size_ = bytes;
  if (fcntl(fd_, F_ADD_SEALS, kSeals) != 0) {
    const std::string why = std::strerror(errno);
    munmap(std::exchange(data_, nullptr), bytes);
    return {StatusCode::kNoProvider, "a memfd cannot be sealed here: " + why};
  }
  const bool may_be_huge = !reserved && shared_may_be_huge();
  if (reserved) huge_pages_ = HugePages::kReserved;
  if (may_be_huge && madvise(data_, bytes, MADV_HUGEPAGE) == 0) {
    huge_pages_ = HugePages::kTransparent;
  }
  madvise(data_, bytes, MADV_DONTFORK);
  shared_buffers().add({data_, size_, fd_});
  return {};
}

std::optional<SharedMemory> shared_memory_at(const std::byte* data, std::size_t bytes) {
  return shared_buffers().find(data, bytes);
}

std::string shared_huge_pages_hint() {
  if (shared_may_be_huge()) return {};
  return "set /sys/kernel/mm/transparent_hugepage/shmem_enabled to advise, or reserve huge pages "
         "(vm.nr_hugepages)";
}

}  // namespace kvd::device
