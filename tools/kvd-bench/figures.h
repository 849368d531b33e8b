// The figures of a result: each number by its path, which direction is better, and how far it may
// lie from another run's by chance.
//
// The direction is known by the unit in the name: more `_per_s` and `ratio_to_ceiling` are better,
// less `_ns`, `_ms` and whatever is per GiB. Ceilings, parameters and spreads have none.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "kvd-bench/results.h"

namespace kvd::tools {

enum class Better { kNone, kMore, kLess };

// What a comparison does with a figure.
enum class Weight {
  kJudged,   // may be a regression
  kPart,     // a stage of the latency: judged where it is a part of it that matters
  kContext,  // shown only: a ceiling, one sample, a percentile of too few
};

struct Figure {
  std::string name;  // "latency_ns.p99", "decode[batch=8,context=512].tok_per_s"
  std::string unit;  // the member whose name has the unit: "latency_ns", "tok_per_s"
  double value = 0;
  Better better = Better::kNone;
  Weight weight = Weight::kContext;
  double noise = 0;  // half of the 95 % interval, in the figure's unit; 0: not known, or exact
  double low = 0, high = 0;  // p10 and p90 over repetitions; both `value` where there is no spread
};

Better better_of(const std::string& unit);

// In the order of the document.
std::vector<Figure> figures_of(const ResultCase& one);

// Half of the 95 % interval of a median, from the 10th and 90th percentile of n values.
double median_noise(double p10, double p90, double n);

// For people: "3.21 GB/s", "12.3 us", "0.215 s/GiB", "203.5".
std::string figure_text(const std::string& unit, double value);

}  // namespace kvd::tools
