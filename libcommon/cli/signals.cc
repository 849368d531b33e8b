#include "cli/signals.h"

#include <csignal>

namespace kvd::cli {
namespace {

std::atomic<int> signal_count{0};
static_assert(std::atomic<int>::is_always_lock_free,
              "the handler may only touch lock-free atomics");

extern "C" void count_signal(int signal) {
  if (signal_count.fetch_add(1) + 1 >= 2) std::signal(signal, SIG_DFL);
}

}  // namespace

const std::atomic<int>& count_signals() {
  struct sigaction action {};
  action.sa_handler = count_signal;
  sigemptyset(&action.sa_mask);
  // No SA_RESTART: a blocking read must return so that its caller sees the count.
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  std::signal(SIGPIPE, SIG_IGN);
  return signal_count;
}

}  // namespace kvd::cli
