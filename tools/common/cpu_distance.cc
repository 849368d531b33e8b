#include "common/cpu_distance.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <thread>

#include "base/clock.h"

namespace kvd::tools {
namespace {

constexpr int kRounds = 10, kTripsARound = 500;
constexpr auto kPatience = std::chrono::milliseconds(100);  // the other thread may have no CPU

bool stay_on(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(static_cast<unsigned>(cpu), &set);
  return pthread_setaffinity_np(pthread_self(), sizeof set, &set) == 0;
}

std::vector<int> allowed() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<int> out;
  if (sched_getaffinity(0, sizeof set, &set) != 0) return out;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(static_cast<unsigned>(cpu), &set)) out.push_back(cpu);
  }
  return out;
}

struct alignas(128) Ball {
  std::atomic<int> at{0};
};

}  // namespace

std::optional<double> cpu_round_trip_ns(const std::vector<int>& pin) {
  const std::vector<int> cpus = pin.size() >= 2 ? pin : allowed();
  if (cpus.size() != 2 || cpus[0] == cpus[1]) return std::nullopt;
  Ball there, back;
  std::atomic<bool> stop{false};
  std::thread far([&] {
    if (!stay_on(cpus[1])) stop = true;
    for (int trip = 1; trip <= kRounds * kTripsARound; ++trip) {
      while (there.at.load() < trip && !stop) {
      }
      back.at.store(trip);
    }
  });
  double best = 0;
  std::thread near([&] {
    const SteadyClock clock;
    const TimePoint patience = clock.now() + kPatience;
    if (!stay_on(cpus[0])) stop = true;
    for (int round = 0, trip = 0; round < kRounds && !stop; ++round) {
      const TimePoint begin = clock.now();
      for (int i = 0; i < kTripsARound && !stop; ++i) {
        there.at.store(++trip);
        for (int looks = 1; back.at.load() < trip && !stop; ++looks) {
          if (looks % 4096 == 0 && clock.now() > patience) stop = true;
        }
      }
      const double each = static_cast<double>((clock.now() - begin).count()) / kTripsARound;
      if (!stop) best = best == 0 ? each : std::min(best, each);
    }
    stop = true;
  });
  near.join();
  far.join();
  if (best == 0) return std::nullopt;
  return best;
}

}  // namespace kvd::tools
