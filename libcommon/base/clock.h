// Time as kvd sees it: one monotonic clock per process, injected wherever a decision depends on it,
// so that protocol code can be simulated. No clock is ever compared with another host's.
#pragma once

#include <chrono>
#include <cstdint>

namespace kvd {

using Duration = std::chrono::nanoseconds;

// A point on the injected clock. Only differences mean anything.
struct TimePoint {
  std::int64_t ns = 0;
  auto operator<=>(const TimePoint&) const = default;
};
inline TimePoint operator+(TimePoint t, Duration d) { return {t.ns + d.count()}; }
inline TimePoint operator-(TimePoint t, Duration d) { return {t.ns - d.count()}; }
inline Duration operator-(TimePoint a, TimePoint b) { return Duration(a.ns - b.ns); }
constexpr TimePoint kNever{INT64_MAX};

inline double to_ms(Duration d) { return static_cast<double>(d.count()) / 1e6; }

class Clock {
 public:
  virtual ~Clock() = default;
  virtual TimePoint now() const = 0;
};

// CLOCK_MONOTONIC. Thread-safe.
class SteadyClock final : public Clock {
 public:
  TimePoint now() const override;
};

// A clock that moves only when told: tests and simulation. Not thread-safe.
class ManualClock final : public Clock {
 public:
  TimePoint now() const override { return now_; }
  void advance(Duration d) { now_ = now_ + d; }

 private:
  TimePoint now_{1};
};

}  // namespace kvd
