#include "engine/cpu/thread_pool.h"

#include <atomic>
#include <catch2/catch.hpp>
#include <chrono>
#include <thread>
#include <utility>
#include <vector>

namespace kvd::engine::cpu {
namespace {

TEST_CASE("thread pool: every thread sees before a barrier's end what the others wrote before it") {
  const std::uint32_t threads = GENERATE(1U, 2U, 3U, 5U);
  ThreadPool pool(threads, {});
  REQUIRE(pool.size() == threads);
  // Plain memory on purpose: a missing barrier shows as a wrong sum here and as a race under tsan.
  std::vector<std::uint64_t> cells(threads, 0);
  std::vector<std::uint64_t> wrong(threads, 0);
  constexpr std::uint64_t kSteps = 60, kPhases = 25;
  for (std::uint64_t step = 0; step < kSteps; ++step) {
    pool.run([&](std::uint32_t self) {
      for (std::uint64_t phase = 1; phase <= kPhases; ++phase) {
        cells[self] = step * kPhases + phase;
        pool.barrier(self);
        for (std::uint64_t cell : cells) wrong[self] += cell == step * kPhases + phase ? 0 : 1;
        pool.barrier(self);
      }
    });
    for (std::uint64_t cell : cells) REQUIRE(cell == (step + 1) * kPhases);
  }
  CHECK(wrong == std::vector<std::uint64_t>(threads, 0));
}

TEST_CASE("thread pool: share gives each item to one thread, and to others when one is held up") {
  const std::uint32_t threads = GENERATE(1U, 2U, 3U, 5U);
  const std::size_t items = GENERATE(0U, 1U, 2U, 7U, 64U), grain = GENERATE(1U, 2U, 5U);
  using Parts = ThreadPool::Parts;
  const auto parts = GENERATE(Parts::kRuns, Parts::kHalves, Parts::kTurns);
  ThreadPool pool(threads, {});
  std::vector<std::atomic<int>> done(items);
  std::atomic<int> wrong{0};
  constexpr int kShares = 40;
  pool.run([&](std::uint32_t self) {
    for (int n = 1; n <= kShares; ++n) {
      const auto work = [&](std::size_t begin, std::size_t end) {
        const bool one = begin % grain == 0 && (end == items || end - begin == grain);
        wrong += begin < end && (one || parts == Parts::kHalves) ? 0 : 1;
        for (std::size_t i = begin; i < end; ++i) ++done[i];
      };
      pool.share(self, items, grain, work, parts);
      for (const std::atomic<int>& count : done) wrong += count == n ? 0 : 1;
      pool.barrier(self);
    }
  });
  CHECK(wrong == 0);
}

TEST_CASE("thread pool: of halves each is half of what is left, in order, and parts are even") {
  using Calls = std::vector<std::pair<std::size_t, std::size_t>>;
  ThreadPool pool(2, {});
  Calls calls[2];
  std::atomic<int> at_last{0};
  pool.run([&](std::uint32_t self) {
    const auto work = [&](std::size_t begin, std::size_t end) {
      calls[self].emplace_back(begin, end);
      // Nobody helps: each is at its last until the other is.
      if (end % 15 == 0) ++at_last;
      const auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(5);
      while (end % 15 == 0 && at_last < 2 && std::chrono::steady_clock::now() < limit) {
        std::this_thread::yield();
      }
    };
    pool.share(self, 30, 2, work, ThreadPool::Parts::kHalves);
  });
  CHECK(calls[0] == Calls{{0, 8}, {8, 12}, {12, 14}, {14, 15}});
  CHECK(calls[1] == Calls{{15, 23}, {23, 27}, {27, 29}, {29, 30}});
}

TEST_CASE("thread pool: a part that its thread has not come to is taken by the others") {
  ThreadPool pool(2, {});
  std::atomic<int> done{0};
  std::vector<int> by(2, 0);
  pool.run([&](std::uint32_t self) {
    pool.share(self, 10, 1, [&](std::size_t, std::size_t) {
      ++by[self];
      ++done;
      // Thread 1 stays at its first piece until thread 0 has done all the others.
      const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(5);
      while (self == 1 && done != 10 && std::chrono::steady_clock::now() < end) {
        std::this_thread::yield();
      }
    });
  });
  CHECK(done == 10);
  CHECK(by[1] <= 1);
}

TEST_CASE("thread pool: a part is done only when its helpers are, too") {
  using Clock = std::chrono::steady_clock;
  ThreadPool pool(2, {});
  std::atomic<bool> helping{false};
  std::atomic<int> done{0};
  std::vector<int> seen(2, 0);
  pool.run([&](std::uint32_t self) {
    pool.share(self, 4, 1, [&](std::size_t item, std::size_t) {
      const bool helper = self == 1 && item == 1;
      if (helper) helping = true;
      // Thread 0 stays at its first piece until thread 1 is at its second, which takes longer.
      const auto end =
          Clock::now() + (helper ? std::chrono::milliseconds(50) : std::chrono::seconds(5));
      while ((helper || (self == 0 && item == 0 && !helping)) && Clock::now() < end) {
        std::this_thread::yield();
      }
      ++done;
    });
    seen[self] = done;
  });
  CHECK(helping);
  CHECK(seen == std::vector<int>{4, 4});
}

TEST_CASE("thread pool: a helper that comes when all is done takes nothing of what comes after") {
  const std::uint32_t threads = GENERATE(2U, 3U, 5U);
  const auto parts = GENERATE(ThreadPool::Parts::kRuns, ThreadPool::Parts::kHalves);
  constexpr std::size_t kItems = 11;
  constexpr int kShares = 3000;
  ThreadPool pool(threads, {});
  std::vector<std::atomic<int>> done(kItems);
  std::atomic<int> wrong{0};
  pool.run([&](std::uint32_t self) {
    std::uint32_t random = 77 + self;
    for (int n = 1; n <= kShares; ++n) {
      const auto work = [&](std::size_t item, std::size_t end) {
        for (; item < end; ++item) {
          random = random * 1664525 + 1013904223;
          // About as long as a thread waits before it helps.
          for (std::uint32_t i = random >> 24; i != 0; --i) done[item].load();
          ++done[item];
        }
      };
      pool.share(self, kItems, 1, work, parts);
      for (const std::atomic<int>& count : done) {
        const int seen = count;  // another may be in the next call
        wrong += seen == n || seen == n + 1 ? 0 : 1;
      }
    }
  });
  for (const std::atomic<int>& count : done) CHECK(count == kShares);
  CHECK(wrong == 0);
}

TEST_CASE("thread pool: zero threads means one for each usable processor") {
  CHECK(ThreadPool(0, {}).size() == usable_cpus());
  CHECK(usable_cpus() >= 1);
}

TEST_CASE("thread pool: threads sleep between steps and wake for the next") {
  ThreadPool pool(2, {});
  for (int i = 0; i < 3; ++i) {
    std::vector<int> ran(2, 0);
    pool.run([&](std::uint32_t self) { ran[self] = 1; });
    CHECK(ran == std::vector<int>{1, 1});
    // Far beyond the spin, so that the worker is on its futex.
    const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(5);
    while (std::chrono::steady_clock::now() < end) continue;
  }
}

}  // namespace
}  // namespace kvd::engine::cpu
