// Two results beside each other: what changed, and whether by more than chance.
#pragma once

#include <string>
#include <vector>

#include "kvd-bench/figures.h"
#include "kvd-bench/thresholds.h"

namespace kvd::tools {

enum class Verdict {
  kNone,       // not judged
  kNoise,      // no more than chance can do
  kBetter,     // beyond that
  kWorse,      // beyond that, by less than the share that is allowed
  kRegressed,  // by so much or more
};
const char* to_string(Verdict verdict);  // "", "within noise", "better", "worse", "regressed"

struct FigurePair {
  Figure a, b;
  double change = 0;  // (b - a) / a; not a number where a is 0 and b is not
  double noise = 0;   // half of the 95 % interval of the change; 0: not known
  Verdict verdict = Verdict::kNone;
};

struct CasePair {
  ResultCase a, b;
  std::vector<FigurePair> figures;  // those that both have
  std::vector<std::string> warnings;
};

struct CheckedThreshold {
  std::string text;
  std::string label;  // of the case
  Threshold::Finding finding;
};

struct Comparison {
  std::string a, b;  // files; `b` empty: thresholds only
  double max_regression = 0.1;
  std::vector<CasePair> cases;
  std::vector<std::string> unmatched;  // "only in A: LABEL"
  std::vector<CheckedThreshold> thresholds;

  bool passed() const;  // no regression, no missed threshold
  std::size_t count(Verdict verdict) const;
  std::size_t unclear() const;  // worse by `max_regression` or more, but within noise
};

CasePair compare_cases(const ResultCase& a, const ResultCase& b, double max_regression);

// Cases are matched by what was measured; equal ones in their order. kInvalidArgument: none match,
// with what differs.
Result<Comparison> compare_results(const std::vector<ResultCase>& a,
                                   const std::vector<ResultCase>& b, double max_regression);

// "-12.3 %", or "from 0" where there is no share.
std::string change_text(const FigurePair& pair);
// `all`: every figure, and not only those that were judged.
std::string comparison_text(const Comparison& comparison, bool all);
std::string comparison_json(const Comparison& comparison);  // without newline

}  // namespace kvd::tools
