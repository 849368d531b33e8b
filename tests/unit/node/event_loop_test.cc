// The loop of a node: when it sleeps, and what ends that.
#include "node/event_loop.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <thread>

namespace kvd::node {
namespace {

// Has nothing to do until `end`, and counts how often the loop would sleep.
class Idle final : public LoopTask {
 public:
  Idle(const Clock* clock, TimePoint end, int fd) : clock_(clock), end_(end), fd_(fd) {}
  bool step() override { return false; }
  void wait_fds(std::vector<int>* out) const override { out->push_back(fd_); }
  bool may_wait() override {
    ++waits;
    return true;
  }
  TimePoint next_deadline() const override { return end_; }
  bool finished() const override { return clock_->now() >= end_; }

  int waits = 0;

 private:
  const Clock* clock_;
  TimePoint end_;
  int fd_;
};

constexpr Duration kRun{50'000'000};

TEST_CASE("event loop: a readable descriptor is looked at for a moment before it sleeps again") {
  const SteadyClock clock;
  const int fd = eventfd(1, EFD_CLOEXEC);  // readable for ever
  REQUIRE(fd >= 0);
  Idle task(&clock, clock.now() + kRun, fd);
  EventLoop(&clock, {Duration(0), false, kRun}).run(task);
  CHECK(task.waits >= 2);
  CHECK(task.waits <= kRun / Duration(5'000) + 1);
  close(fd);
}

TEST_CASE("event loop: it sleeps until it is woken, or until what is due") {
  const SteadyClock clock;
  const int fd = eventfd(0, EFD_CLOEXEC);
  REQUIRE(fd >= 0);
  Idle task(&clock, clock.now() + kRun, fd);
  EventLoop loop(&clock, {Duration(0), false, Duration(60'000'000'000)});
  SECTION("nothing comes") {
    loop.run(task);
    CHECK(task.waits <= 3);
  }
  SECTION("a waker from another thread") {
    std::thread waker([&] {
      for (int i = 0; i < 3; ++i) loop.waker().wake();
    });
    loop.waker().wake();  // the thread may come late
    loop.run(task);
    waker.join();
    CHECK(task.waits >= 2);
    CHECK(task.waits <= 3 + 4);
  }
  close(fd);
}

}  // namespace
}  // namespace kvd::node
