// Figures from repeated measurements on a host that is not ours alone: percentiles, and samples
// that other processes disturbed.
//
// One thread. Linux: /proc/stat and getrusage().
#pragma once

#include <cstddef>
#include <functional>
#include <vector>

#include "base/clock.h"

namespace kvd::tools {

// Between the two nearest values, in proportion. `fraction` 0 to 1; 0 of no values.
double percentile(std::vector<double> values, double fraction);

struct Spread {
  double median = 0, p10 = 0, p90 = 0;
  std::size_t n = 0;
};
Spread spread_of(const std::vector<double>& values);

// 95 % confidence interval of the median by order statistics, which assumes nothing about the
// values; the smallest and the largest below six values, where there is none.
struct Interval {
  double low = 0, high = 0;
};
Interval median_interval(std::vector<double> values);

// How many cores other processes kept busy between start() and cores(). The kernel counts in ticks
// of 10 ms: meaningful from about 0.3 s on.
class OthersWatch {
 public:
  OthersWatch() { start(); }
  void start();
  // Seconds of processor time that were not this process's, and the seconds since start().
  double busy_s() const;
  double elapsed_s() const;
  double cores() const { return busy_s() / elapsed_s(); }
  // More than 4 % of a core, above what the ticks' grain can pretend.
  bool disturbed() const { return busy_s() > 0.04 * elapsed_s() + 0.02; }

 private:
  SteadyClock clock_;
  TimePoint begin_{0};
  double all_ = 0, own_ = 0;
};

struct SampleLimits {
  std::size_t wanted = 5;                     // clean samples
  std::size_t tries_each = 4;                 // samples in all: wanted times this
  Duration sample{300'000'000};               // a sample repeats the work for so long at least
  Duration most{15'000'000'000};              // no further sample after that
  std::function<bool()> stop;                 // true ends it now; null: never
  std::function<void(std::size_t)> progress;  // clean samples so far; null: nobody asks
};

// Seconds of one call of the work.
struct Samples {
  std::vector<double> seconds;  // the clean ones; all of them when `disturbed`
  std::size_t rejected = 0;     // samples that other processes disturbed, and that were repeated
  bool disturbed = false;       // fewer than three were clean within the limits
  bool stopped = false;
  Spread spread() const { return spread_of(seconds); }
};
// Calls `prepare`, which is not timed (null: nothing), and `work`, once to warm up and then as the
// limits say.
Samples sample(const SampleLimits& limits, const std::function<void()>& prepare,
               const std::function<void()>& work);

}  // namespace kvd::tools
