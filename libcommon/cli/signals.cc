#include "cli/signals.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdint>

namespace kvd::cli {
namespace {

std::atomic<int> signal_count{0};
std::atomic<int> wake_fd{-1};
static_assert(std::atomic<int>::is_always_lock_free,
              "the handler may only touch lock-free atomics");

extern "C" void count_signal(int signal) {
  const int saved_errno = errno;
  if (signal_count.fetch_add(1) + 1 >= 2) std::signal(signal, SIG_DFL);
  const std::uint64_t one = 1;
  (void)!::write(wake_fd.load(), &one, sizeof(one));
  errno = saved_errno;
}

}  // namespace

const std::atomic<int>& count_signals() {
  if (wake_fd.load() < 0) wake_fd.store(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  struct sigaction action {};
  action.sa_handler = count_signal;
  sigemptyset(&action.sa_mask);
  // No SA_RESTART: a blocking read must return so that its caller sees the count.
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  std::signal(SIGPIPE, SIG_IGN);
  return signal_count;
}

int signal_fd() { return wake_fd.load(); }

}  // namespace kvd::cli
