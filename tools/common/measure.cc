#include "common/measure.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <string>

namespace kvd::tools {
namespace {

// Seconds that all processors were busy since boot, stolen time among them.
double busy_seconds() {
  std::ifstream file("/proc/stat");
  std::string name;
  double ticks[8] = {};
  file >> name;
  for (double& tick : ticks) file >> tick;
  if (!file || name != "cpu") return 0;
  constexpr int kIdle = 3, kIoWait = 4;
  double busy = 0;
  for (int i = 0; i < 8; ++i) busy += i == kIdle || i == kIoWait ? 0 : ticks[i];
  return busy / static_cast<double>(::sysconf(_SC_CLK_TCK));
}

double seconds(const timeval& t) {
  return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) * 1e-6;
}

double own_seconds() {
  rusage use{};
  if (getrusage(RUSAGE_SELF, &use) != 0) return 0;
  return seconds(use.ru_utime) + seconds(use.ru_stime);
}

double to_s(Duration d) { return static_cast<double>(d.count()) * 1e-9; }

}  // namespace

double percentile(std::vector<double> values, double fraction) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const double at = fraction * static_cast<double>(values.size() - 1);
  const auto below = static_cast<std::size_t>(at);
  const std::size_t above = std::min(below + 1, values.size() - 1);
  return values[below] + (at - static_cast<double>(below)) * (values[above] - values[below]);
}

Spread spread_of(const std::vector<double>& values) {
  return {percentile(values, 0.5), percentile(values, 0.1), percentile(values, 0.9), values.size()};
}

Interval median_interval(std::vector<double> values) {
  if (values.empty()) return {};
  std::sort(values.begin(), values.end());
  const auto n = static_cast<double>(values.size());
  if (values.size() < 6) return {values.front(), values.back()};
  // Ranks n/2 -+ 1.96 sqrt(n)/2, outward to whole ones.
  const double half = 0.98 * std::sqrt(n);
  const auto low = static_cast<std::size_t>(std::max(0.0, std::floor(n / 2 - half)));
  const auto high = static_cast<std::size_t>(std::min(n - 1, std::ceil(n / 2 + half)));
  return {values[low], values[high]};
}

void OthersWatch::start() {
  all_ = busy_seconds();
  own_ = own_seconds();
  begin_ = clock_.now();
}

double OthersWatch::busy_s() const {
  return std::max(0.0, (busy_seconds() - all_) - (own_seconds() - own_));
}

double OthersWatch::elapsed_s() const { return to_s(clock_.now() - begin_); }

Samples sample(const SampleLimits& limits, const std::function<void()>& prepare,
               const std::function<void()>& work) {
  const SteadyClock clock;
  const TimePoint begin = clock.now();
  std::vector<double> clean, all;
  Samples result;
  const auto once = [&] {
    if (prepare) prepare();
    const TimePoint from = clock.now();
    work();
    return to_s(clock.now() - from);
  };
  once();
  const std::size_t tries = limits.wanted * limits.tries_each;
  while (clean.size() < limits.wanted && all.size() < tries) {
    if ((result.stopped = limits.stop && limits.stop())) break;
    if (!all.empty() && clock.now() - begin >= limits.most) break;
    const OthersWatch others;
    double total = 0;
    std::size_t repeats = 0;
    for (; total < to_s(limits.sample); ++repeats) total += once();
    all.push_back(total / static_cast<double>(repeats));
    if (!others.disturbed()) clean.push_back(all.back());
    if (limits.progress) limits.progress(clean.size());
  }
  result.rejected = all.size() - clean.size();
  result.disturbed = clean.size() < std::min<std::size_t>(3, limits.wanted);
  result.seconds = result.disturbed ? all : clean;
  return result;
}

}  // namespace kvd::tools
