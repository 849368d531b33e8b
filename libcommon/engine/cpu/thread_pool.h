// Threads of one engine, run in lockstep (SPMD): one dispatch a step, barriers inside it.
//
// A waiting thread spins for some microseconds, then sleeps on a futex: barriers of a decode step
// are a few microseconds apart, but two workers that share cores must not burn each other's time (a
// spinning OpenMP runtime made a step 15 times slower beside one busy thread).
//
// What one thread writes and another reads costs a cache line's way between them, up to a
// microsecond where two CPUs share no cache: a barrier is one such way for each doubling of the
// threads (a dissemination barrier: D. Hensgen, R. Finkel and U. Manber, "Two algorithms for
// barrier synchronization", 1988), and a thread asks others for items only when its own are taken.
//
// Calling thread: run() from one thread at a time, which becomes thread 0; barrier() and share()
// only inside run(), by all threads alike, each with its own number. Owns its threads.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

namespace kvd::engine::cpu {

class ThreadPool {
 public:
  // `threads` 0: one for each processor the process may use. Thread i is pinned to
  // pin_cpus[i % size] when that is not empty (thread 0: by pin_caller()).
  ThreadPool(std::uint32_t threads, std::vector<int> pin_cpus);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  std::uint32_t size() const { return size_; }
  void pin_caller() const;
  // Calls work(0) here and work(i) on the others; returns when all have returned. What they wrote
  // is visible to the caller.
  void run(const std::function<void(std::uint32_t)>& work);
  // Returns when every thread has called it; what any wrote before is visible to all after.
  void barrier(std::uint32_t thread);
  // Calls work(begin, end) once for each piece of [0, items), pieces of `grain` (the last of what
  // is left); returns when all are done, as barrier(). Each thread begins with a part of its own
  // and then helps whoever was held up. A part is a run, so that memory is read in order; or every
  // size()-th piece, where the first pieces are the longest.
  enum class Parts : std::uint8_t { kRuns, kTurns };
  template <typename Work>
  void share(std::uint32_t thread, std::size_t items, std::size_t grain, const Work& work,
             Parts parts = Parts::kRuns);

 private:
  // Pieces taken of a thread's part, with the number of the call of share() that they are of in the
  // upper half: whoever comes first to a part of a new call begins it.
  struct alignas(64) Part {
    std::atomic<std::uint64_t> taken{0};
  };
  // Barriers that a thread has come to, by round: partners of different rounds wait for it.
  struct alignas(64) Arrivals {
    std::array<std::atomic<std::uint32_t>, 16> round{};
  };

  void worker(std::uint32_t index);
  // Takes the next piece of another's or the own part: false if `pieces` are taken.
  bool take(std::uint32_t owner, std::uint32_t call, std::size_t pieces, std::size_t* piece);

  std::uint32_t size_;
  std::vector<int> pin_cpus_;
  const std::function<void(std::uint32_t)>* work_ = nullptr;
  std::vector<Part> parts_;         // by thread
  std::vector<Arrivals> arrivals_;  // by thread
  alignas(64) std::atomic<std::uint32_t> dispatch_{0};
  std::atomic<bool> ending_{false};
  std::vector<std::thread> threads_;
};

// Processors in the process's affinity mask, at least 1.
std::uint32_t usable_cpus();

template <typename Work>
void ThreadPool::share(std::uint32_t thread, std::size_t items, std::size_t grain, const Work& work,
                       Parts parts) {
  // All threads are past the same barriers, so that these number the calls alike.
  const std::uint32_t call = arrivals_[thread].round[0].load(std::memory_order_relaxed) + 1;
  const std::size_t pieces = (items + grain - 1) / grain;
  const bool runs = parts == Parts::kRuns;
  const auto first = [&](std::size_t owner) { return (pieces * owner + size_ - 1) / size_; };
  for (std::uint32_t i = 0; i < size_; ++i) {
    const std::uint32_t owner = (thread + i) % size_;
    const std::size_t begin = runs ? first(owner) : owner, step = runs ? 1 : size_;
    const std::size_t own = runs ? first(owner + 1) - begin : (pieces + size_ - 1 - owner) / size_;
    if (own == 0) continue;
    for (std::size_t piece; take(owner, call, own, &piece);) {
      const std::size_t from = (begin + piece * step) * grain;
      work(from, std::min(from + grain, items));
    }
  }
  barrier(thread);
}

}  // namespace kvd::engine::cpu
