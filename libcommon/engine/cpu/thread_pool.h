// Threads of one engine, run in lockstep (SPMD): one dispatch a step, barriers inside it.
//
// A waiting thread spins for some microseconds, then sleeps on a futex: barriers of a decode step
// are a few microseconds apart, but two workers that share cores must not burn each other's time (a
// spinning OpenMP runtime made a step 15 times slower beside one busy thread).
//
// Calling thread: run() from one thread at a time, which becomes thread 0; barrier() only inside
// run(), by all threads alike. Owns its threads.
#pragma once

#include <atomic>
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
  void barrier();

 private:
  void worker(std::uint32_t index);

  std::uint32_t size_;
  std::vector<int> pin_cpus_;
  const std::function<void(std::uint32_t)>* work_ = nullptr;
  // Apart from each other: one is written at dispatch, the others at each barrier.
  alignas(64) std::atomic<std::uint32_t> dispatch_{0};
  alignas(64) std::atomic<std::uint32_t> arrived_{0};
  alignas(64) std::atomic<std::uint32_t> phase_{0};
  std::atomic<bool> ending_{false};
  std::vector<std::thread> threads_;
};

// Processors in the process's affinity mask, at least 1.
std::uint32_t usable_cpus();

}  // namespace kvd::engine::cpu
