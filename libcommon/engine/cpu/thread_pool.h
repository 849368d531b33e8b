// Threads of one engine, run in lockstep (SPMD): one dispatch a step, barriers inside it.
//
// A waiting thread spins for some microseconds, then sleeps on a futex: barriers of a decode step
// are a few microseconds apart, but two workers that share cores must not burn each other's time (a
// spinning OpenMP runtime made a step 15 times slower beside one busy thread).
//
// What one thread writes and another reads costs a cache line's way between them, up to a
// microsecond where two CPUs share no cache: a barrier is one such way for each doubling of the
// threads (a dissemination barrier: D. Hensgen, R. Finkel and U. Manber, "Two algorithms for
// barrier synchronization", 1988), and a thread looks at the others' items only when its own are
// done and one of them has kept it waiting.
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
  // Calls work(begin, end) so that each of `items` is in one call; returns when all are done, as
  // barrier(). Items go by pieces of `grain` (the last of what is left). Each thread does a part of
  // its own, and helps whoever is held up. A part is a run of pieces, so that memory is read in
  // order; or every size()-th piece, where the first pieces are the longest. With kHalves it is a
  // run as long as the others' in items, and half of what is left of it is taken at a time, not one
  // piece: for pieces of about a microsecond, as every taking ends a processor's reading ahead.
  enum class Parts : std::uint8_t { kRuns, kHalves, kTurns };
  template <typename Work>
  void share(std::uint32_t thread, std::size_t items, std::size_t grain, const Work& work,
             Parts parts = Parts::kRuns);

 private:
  struct alignas(64) Part {
    // Pieces taken, with the number of the call of share() that they are of in the upper half:
    // whoever comes first to a part of a new call begins it.
    std::atomic<std::uint64_t> taken{0};
    // Pieces that others have done, of all calls, and the owner's own count of what they took: it
    // comes to a barrier when both are the same.
    std::atomic<std::uint32_t> helped{0};
    std::uint32_t lost = 0;
  };
  // Barriers that a thread has come to, by round: partners of different rounds wait for it.
  struct alignas(64) Arrivals {
    std::array<std::atomic<std::uint32_t>, 16> round{};
  };

  void worker(std::uint32_t index);
  // Takes the next piece of another's or the own part, or half of those that are left: how many, 0
  // if all of `pieces` are taken or the part has begun with a later call.
  std::size_t take(std::uint32_t owner, std::uint32_t call, std::size_t pieces, bool half,
                   std::size_t* piece);
  // Waits until others have done the `lost` pieces that they took of the own part.
  void wait_for_helpers(std::uint32_t thread, std::size_t lost);
  // barrier(), with `meanwhile` called once if it takes long.
  template <typename Meanwhile>
  void meet(std::uint32_t thread, const Meanwhile& meanwhile);
  void arrive(std::uint32_t thread, std::size_t round, std::uint32_t barriers);
  // Returns when `word` is no longer `old`: spins, then sleeps. The first only spins, for a shorter
  // time; false if it is still `old`.
  static bool changes_soon(const std::atomic<std::uint32_t>& word, std::uint32_t old);
  static void wait_for_change(const std::atomic<std::uint32_t>& word, std::uint32_t old);

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

// In round r a thread tells the one 2^r after it that it has come, and everyone it has heard of
// with it; after the last round it has heard of all.
template <typename Meanwhile>
void ThreadPool::meet(std::uint32_t thread, const Meanwhile& meanwhile) {
  const std::uint32_t before = arrivals_[thread].round[0].load(std::memory_order_relaxed);
  if (size_ == 1) return arrive(thread, 0, before + 1);
  bool waited = false;
  std::size_t round = 0;
  for (std::uint32_t step = 1; step < size_; step *= 2, ++round) {
    arrive(thread, round, before + 1);
    // It may be a barrier ahead already.
    const auto& other = arrivals_[(thread + size_ - step) % size_].round[round];
    if (!waited && !changes_soon(other, before)) {
      meanwhile();
      waited = true;
    }
    wait_for_change(other, before);
  }
}

template <typename Work>
void ThreadPool::share(std::uint32_t thread, std::size_t items, std::size_t grain, const Work& work,
                       Parts parts) {
  // All threads are past the same barriers, so that these number the calls alike.
  const std::uint32_t call = arrivals_[thread].round[0].load(std::memory_order_relaxed) + 1;
  const std::size_t pieces = (items + grain - 1) / grain;
  const bool runs = parts != Parts::kTurns, halves = parts == Parts::kHalves;
  // Where a run begins.
  const auto first = [&](std::size_t owner) {
    if (halves) return items * owner / size_;
    return std::min((pieces * owner + size_ - 1) / size_ * grain, items);
  };
  // What is left of a part, and how many pieces of it others have.
  const auto work_off = [&](std::uint32_t owner) {
    const std::size_t begin = std::min(runs ? first(owner) : owner * grain, items);
    const std::size_t end = runs ? first(owner + 1) : items, step = runs ? grain : size_ * grain;
    const std::size_t all = (end - begin + step - 1) / step;
    std::size_t done = 0;
    std::size_t piece, count;
    for (; all != 0 && (count = take(owner, call, all, halves, &piece)) != 0; done += count) {
      const std::size_t from = begin + piece * step;
      work(from, std::min(from + count * grain, end));
      if (owner != thread) {
        parts_[owner].helped.fetch_add(static_cast<std::uint32_t>(count),
                                       std::memory_order_acq_rel);
        parts_[owner].helped.notify_one();
      }
    }
    return all - done;
  };
  if (const std::size_t lost = work_off(thread); lost != 0) wait_for_helpers(thread, lost);
  meet(thread, [&] {
    for (std::uint32_t i = 1; i < size_; ++i) work_off((thread + i) % size_);
  });
}

}  // namespace kvd::engine::cpu
