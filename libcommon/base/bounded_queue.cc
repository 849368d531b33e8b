#include "base/bounded_queue.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cstdint>

#include "base/check.h"

namespace kvd {

Waker::Waker() : fd_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) { KVD_CHECK(fd_ >= 0); }

Waker::~Waker() { close(fd_); }

void Waker::wake() const {
  const std::uint64_t one = 1;
  // A full counter (EAGAIN) already means that the sleeper will wake.
  [[maybe_unused]] const ssize_t written = write(fd_, &one, sizeof one);
}

void Waker::clear() const {
  std::uint64_t count = 0;
  [[maybe_unused]] const ssize_t got = read(fd_, &count, sizeof count);
}

}  // namespace kvd
