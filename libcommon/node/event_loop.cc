#include "node/event_loop.h"

#include <malloc.h>
#include <poll.h>
#include <sched.h>
#include <sys/prctl.h>

#include <algorithm>
#include <cerrno>
#include <ctime>

namespace kvd::node {
namespace {
constexpr Duration kTrimInterval{1'000'000'000};
constexpr Duration kAfterWake{5'000};  // busy polling after a descriptor's wake-up

// A long prompt's message is some hundred KiB on each side: its memory is not given back and
// faulted in again for every request, but trimmed at most once a second, before a sleep. Set when
// the loop runs, after a model was loaded.
void keep_freed_memory() {
  constexpr int kMessages = 32 << 20;  // the longest message is 8 MiB
  (void)mallopt(M_MMAP_THRESHOLD, kMessages);
  (void)mallopt(M_TRIM_THRESHOLD, kMessages);
}

// Linux lets a sleep last up to 50 us longer: that would double the shortest one
// (Gathering::kAsleep).
void sleep_exactly() { (void)prctl(PR_SET_TIMERSLACK, 1'000UL); }
}  // namespace

void EventLoop::run(LoopTask& task) {
  keep_freed_memory();
  sleep_exactly();
  TimePoint spin_until = clock_->now() + options_.spin;
  while (!task.finished()) {
    if (task.step()) {
      spin_until = clock_->now() + options_.spin;
      continue;
    }
    if (options_.always_spin) {
      // It never sleeps: ZeroMQ's thread may have no other CPU.
      sched_yield();
      continue;
    }
    if (clock_->now() < spin_until) {
      __builtin_ia32_pause();
      continue;
    }
    // What woke it may be the first of much: the bytes of a write come before its completion.
    if (task.may_wait() && wait(task)) spin_until = clock_->now() + kAfterWake;
  }
}

bool EventLoop::wait(LoopTask& task) {
  // Nothing to do: give back what a peak of requests took, so that the resident set shows what is
  // used.
  if (const TimePoint now = clock_->now(); now >= next_trim_) {
    next_trim_ = now + kTrimInterval;
    malloc_trim(0);
  }
  std::vector<int> fds;
  task.wait_fds(&fds);
  std::vector<pollfd> polled{{waker_.fd(), POLLIN, 0}};
  for (const int fd : fds) {
    if (fd >= 0) polled.push_back({fd, POLLIN, 0});
  }
  Duration timeout = std::min(options_.longest_wait, task.next_deadline() - clock_->now());
  // A source without a descriptor is polled by time.
  if (std::find(fds.begin(), fds.end(), -1) != fds.end())
    timeout = std::min(timeout, Duration(50'000));
  if (timeout <= Duration(0)) return false;
  timespec ts{};
  ts.tv_sec = timeout.count() / 1'000'000'000;
  ts.tv_nsec = timeout.count() % 1'000'000'000;
  if (ppoll(polled.data(), polled.size(), &ts, nullptr) <= 0) return false;
  if ((polled[0].revents & POLLIN) != 0) waker_.clear();
  return true;
}

}  // namespace kvd::node
