// The one loop of a node: spin for a moment, then sleep on every descriptor until something is due.
//
// Calling thread: run() belongs to the thread that calls it; wake() may be called from any.
#pragma once

#include <atomic>
#include <functional>
#include <vector>

#include "base/bounded_queue.h"
#include "base/clock.h"

namespace kvd::node {

// What the loop drives. All calls come from the loop's thread.
class LoopTask {
 public:
  virtual ~LoopTask() = default;
  // Does what can be done now without blocking; true if anything happened.
  virtual bool step() = 0;
  // Descriptors that become readable when step() has work.
  virtual void wait_fds(std::vector<int>* out) const = 0;
  // False: sleeping now could miss an event; step() again.
  virtual bool may_wait() = 0;
  virtual TimePoint next_deadline() const = 0;
  // True once the loop shall end.
  virtual bool finished() const = 0;
};

struct LoopOptions {
  Duration spin{50'000};     // busy polling after the last event
  bool always_spin = false;  // --spin: for measuring
  Duration longest_wait{100'000'000};
};

class EventLoop {
 public:
  EventLoop(const Clock* clock, LoopOptions options) : clock_(clock), options_(options) {}
  void run(LoopTask& task);
  const Waker& waker() const { return waker_; }

 private:
  bool wait(LoopTask& task);  // true if a descriptor ended it

  const Clock* clock_;
  LoopOptions options_;
  TimePoint next_trim_{0};
  Waker waker_;
};

}  // namespace kvd::node
