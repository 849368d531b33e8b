#include "engine/cpu/thread_pool.h"

#include <pthread.h>
#include <sched.h>

#include <tuple>
#include <utility>

#include "base/check.h"
#include "base/log.h"

namespace kvd::engine::cpu {
namespace {

// 10 to 30 us, by how long the processor's pause takes: longer than a barrier's usual wait, shorter
// than what a sleeping thread costs to wake twice.
constexpr int kSpins = 600;
// Before another's items are looked at: about a microsecond, a cache line's way there and back.
constexpr int kSpinsSoon = 30;

void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

bool changes(const std::atomic<std::uint32_t>& word, std::uint32_t old, int spins) {
  for (int i = 0; i < spins; ++i) {
    if (word.load(std::memory_order_acquire) != old) return true;
    pause_cpu();
  }
  return false;
}

void pin(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (cpu < 0 || cpu >= CPU_SETSIZE) return;
  CPU_SET(static_cast<unsigned>(cpu), &set);
  if (pthread_setaffinity_np(pthread_self(), sizeof set, &set) != 0) {
    log_warn("cannot pin an engine thread", {{"cpu", cpu}});
  }
}

}  // namespace

bool ThreadPool::changes_soon(const std::atomic<std::uint32_t>& word, std::uint32_t old) {
  return changes(word, old, kSpinsSoon);
}

void ThreadPool::wait_for_change(const std::atomic<std::uint32_t>& word, std::uint32_t old) {
  if (changes(word, old, kSpins)) return;
  while (word.load(std::memory_order_acquire) == old) word.wait(old, std::memory_order_acquire);
}

std::uint32_t usable_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
  const int count = CPU_COUNT(&set);
  return count > 0 ? static_cast<std::uint32_t>(count) : 1;
}

ThreadPool::ThreadPool(std::uint32_t threads, std::vector<int> pin_cpus)
    : size_(threads == 0 ? usable_cpus() : threads),
      pin_cpus_(std::move(pin_cpus)),
      parts_(size_),
      arrivals_(size_) {
  KVD_CHECK(size_ <= 1U << std::tuple_size_v<decltype(Arrivals::round)>);
  threads_.reserve(size_ - 1);
  for (std::uint32_t i = 1; i < size_; ++i) threads_.emplace_back([this, i] { worker(i); });
}

ThreadPool::~ThreadPool() {
  ending_.store(true, std::memory_order_relaxed);
  dispatch_.fetch_add(1, std::memory_order_release);
  dispatch_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::pin_caller() const {
  if (!pin_cpus_.empty()) pin(pin_cpus_[0]);
}

void ThreadPool::run(const std::function<void(std::uint32_t)>& work) {
  work_ = &work;
  dispatch_.fetch_add(1, std::memory_order_release);
  dispatch_.notify_all();
  work(0);
  barrier(0);
}

void ThreadPool::barrier(std::uint32_t thread) {
  meet(thread, [] {});
}

void ThreadPool::arrive(std::uint32_t thread, std::size_t round, std::uint32_t barriers) {
  std::atomic<std::uint32_t>& mine = arrivals_[thread].round[round];
  // An exchange, not a store: notify_all() looks whether anybody waits, which on x86 may overtake
  // a plain store, and then neither side would see the other.
  mine.exchange(barriers, std::memory_order_acq_rel);
  mine.notify_all();
}

void ThreadPool::wait_for_helpers(std::uint32_t thread, std::size_t lost) {
  Part& part = parts_[thread];
  part.lost += static_cast<std::uint32_t>(lost);
  while (true) {
    const std::uint32_t now = part.helped.load(std::memory_order_acquire);
    if (now == part.lost) return;
    wait_for_change(part.helped, now);
  }
}

std::size_t ThreadPool::take(std::uint32_t owner, std::uint32_t call, std::size_t pieces, bool half,
                             std::size_t* piece) {
  std::atomic<std::uint64_t>& part = parts_[owner].taken;
  std::uint64_t was = part.load(std::memory_order_relaxed);
  const std::uint64_t none = std::uint64_t{call} << 32;
  while (true) {
    const auto of = static_cast<std::uint32_t>(was >> 32);
    // A helper may come when all is done, but not a second barrier later.
    if (of == call + 1) return 0;
    const std::uint64_t taken = of == call ? was - none : 0;
    if (taken >= pieces) return 0;
    const std::size_t count = half ? (pieces - taken + 1) / 2 : 1;
    if (part.compare_exchange_weak(was, none + taken + count, std::memory_order_relaxed)) {
      *piece = taken;
      return count;
    }
  }
}

void ThreadPool::worker(std::uint32_t index) {
  if (!pin_cpus_.empty()) pin(pin_cpus_[index % pin_cpus_.size()]);
  // The first dispatch may come before this thread has begun: it counts from zero, not from now.
  std::uint32_t seen = 0;
  while (true) {
    wait_for_change(dispatch_, seen);
    ++seen;
    if (ending_.load(std::memory_order_relaxed)) return;
    (*work_)(index);
    barrier(index);
  }
}

}  // namespace kvd::engine::cpu
