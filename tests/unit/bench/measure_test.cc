#include "common/measure.h"

#include <catch2/catch.hpp>
#include <thread>

namespace kvd::tools {
namespace {

TEST_CASE("percentiles: between neighbours in proportion, whatever the order") {
  CHECK(percentile({}, 0.5) == 0);
  CHECK(percentile({7}, 0.9) == 7);
  CHECK(percentile({4, 1, 3, 2}, 0.5) == Approx(2.5));
  CHECK(percentile({0, 10}, 0.1) == Approx(1));
  const Spread spread = spread_of({5, 1, 2, 3, 4});
  CHECK(spread.median == Approx(3));
  CHECK(spread.p10 == Approx(1.4));
  CHECK(spread.p90 == Approx(4.6));
  CHECK(spread.n == 5);
}

TEST_CASE("median interval: order statistics, the extremes below six values") {
  CHECK(median_interval({3, 1, 2}).low == 1);
  CHECK(median_interval({3, 1, 2}).high == 3);
  std::vector<double> hundred;
  for (int i = 100; i > 0; --i) hundred.push_back(i);
  // Ranks 50 -+ 9.8, from 0.
  CHECK(median_interval(hundred).low == 41);
  CHECK(median_interval(hundred).high == 61);
}

TEST_CASE("samples: warmed up once, prepared each time, as many as wanted") {
  int prepared = 0, worked = 0;
  std::vector<std::size_t> seen;
  SampleLimits limits;
  limits.wanted = 2;
  limits.tries_each = 1;
  limits.sample = Duration(1);
  limits.progress = [&seen](std::size_t clean) { seen.push_back(clean); };
  const Samples samples = sample(
      limits, [&] { ++prepared; }, [&] { ++worked; });
  CHECK(prepared == 3);
  CHECK(worked == 3);
  CHECK(samples.seconds.size() + (samples.disturbed ? 0 : samples.rejected) == 2);
  CHECK(seen.size() == 2);
  CHECK_FALSE(samples.stopped);
}

TEST_CASE("samples: a stop and the time limit end them with what there is") {
  SampleLimits limits;
  limits.sample = Duration(1);
  int worked = 0;
  limits.stop = [&worked] { return worked >= 2; };
  const Samples stopped = sample(limits, nullptr, [&worked] { ++worked; });
  CHECK(stopped.stopped);
  CHECK(stopped.seconds.size() == 1);
  limits.stop = nullptr;
  limits.most = Duration(0);
  const Samples late = sample(limits, nullptr, [] {});
  CHECK_FALSE(late.stopped);
  CHECK(late.seconds.size() == 1);
}

TEST_CASE("others: this process's own work does not count as a disturbance") {
  OthersWatch others;
  const SteadyClock clock;
  const TimePoint end = clock.now() + Duration(300'000'000);
  std::thread second([&] {
    while (clock.now() < end) {
    }
  });
  while (clock.now() < end) {
  }
  second.join();
  CHECK(others.elapsed_s() >= 0.3);
  // Other programs may run beside the test: all processors but the two that it used.
  CHECK(others.busy_s() >= 0);
  CHECK(others.cores() < std::thread::hardware_concurrency());
}

}  // namespace
}  // namespace kvd::tools
