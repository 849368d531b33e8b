#include "kvd-bench/compare.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace kvd::tools {
namespace {

// A stage whose change is less than this part of the whole latency is nobody's regression.
constexpr double kPartThatMatters = 0.02;
constexpr double kRounding = 1e-9;  // so that 0.9 of a figure is 10 % less

const Figure* find_figure(const std::vector<Figure>& figures, const std::string& name) {
  const auto found = std::find_if(figures.begin(), figures.end(),
                                  [&name](const Figure& figure) { return figure.name == name; });
  return found == figures.end() ? nullptr : &*found;
}

// The latency of which "wire_ns.p50" is a part: "latency_ns.p50".
double whole_of(const std::vector<Figure>& figures, const Figure& part) {
  const Figure* whole = find_figure(figures, "latency_ns" + part.name.substr(part.unit.size()));
  return whole == nullptr ? 0 : whole->value;
}

Verdict judge(const FigurePair& pair, double whole, double max_regression) {
  const Figure &a = pair.a, &b = pair.b;
  if (a.weight == Weight::kContext || b.weight == Weight::kContext) return Verdict::kNone;
  const double change = std::abs(b.value - a.value);
  const double noise = std::hypot(a.noise, b.noise);
  if (change == 0 || change <= noise) return Verdict::kNoise;
  if (a.weight == Weight::kPart && change < kPartThatMatters * whole) return Verdict::kNoise;
  if ((b.value > a.value) == (a.better == Better::kMore)) return Verdict::kBetter;
  const bool much = change >= (max_regression - kRounding) * std::abs(a.value);
  return much ? Verdict::kRegressed : Verdict::kWorse;
}

// "provider tcp, local; page_bytes 4096, 65536"
std::string differences(const ResultCase& a, const ResultCase& b) {
  const auto left = a.identity(), right = b.identity();
  const auto value = [](const auto& list, const std::string& name) {
    for (const auto& [key, text] : list) {
      if (key == name) return text;
    }
    return std::string("none");
  };
  std::string out;
  const auto add = [&](const std::string& name) {
    const std::string x = value(left, name), y = value(right, name);
    if (x != y) out += (out.empty() ? "" : "; ") + name + " " + x + " and " + y;
  };
  for (const auto& [name, text] : left) add(name);
  for (const auto& [name, text] : right) {
    if (value(left, name) == "none") add(name);
  }
  return out;
}

Status incomparable(const std::vector<ResultCase>& a, const std::vector<ResultCase>& b) {
  const std::string files = a.front().file + " and " + b.front().file;
  if (a.size() == 1 && b.size() == 1) {
    return invalid_argument(files +
                            " measured different things: " + differences(a.front(), b.front()));
  }
  return invalid_argument(files + " have no measurement in common; the first of each differ in: " +
                          differences(a.front(), b.front()));
}

}  // namespace

const char* to_string(Verdict verdict) {
  switch (verdict) {
    case Verdict::kNone:
      return "";
    case Verdict::kNoise:
      return "within noise";
    case Verdict::kBetter:
      return "better";
    case Verdict::kWorse:
      return "worse";
    case Verdict::kRegressed:
      return "regressed";
  }
  return "";
}

std::size_t Comparison::count(Verdict verdict) const {
  std::size_t out = 0;
  for (const CasePair& one : cases) {
    out += static_cast<std::size_t>(
        std::count_if(one.figures.begin(), one.figures.end(),
                      [verdict](const FigurePair& f) { return f.verdict == verdict; }));
  }
  return out;
}

std::size_t Comparison::unclear() const {
  std::size_t out = 0;
  for (const CasePair& one : cases) {
    for (const FigurePair& pair : one.figures) {
      const double worse = pair.a.better == Better::kMore ? -pair.change : pair.change;
      const bool whole = pair.a.weight == Weight::kJudged && pair.verdict == Verdict::kNoise;
      if (whole && worse > 0 && worse >= max_regression - kRounding) ++out;
    }
  }
  return out;
}

bool Comparison::passed() const {
  return count(Verdict::kRegressed) == 0 &&
         std::all_of(thresholds.begin(), thresholds.end(),
                     [](const CheckedThreshold& t) { return t.finding.passed; });
}

CasePair compare_cases(const ResultCase& a, const ResultCase& b, double max_regression) {
  CasePair out{a, b, {}, environment_warnings(a, b)};
  const std::vector<Figure> left = figures_of(a), right = figures_of(b);
  for (const Figure& figure : left) {
    const Figure* other = find_figure(right, figure.name);
    if (other == nullptr) continue;
    FigurePair pair{figure, *other, 0, 0, Verdict::kNone};
    const double base = std::abs(figure.value);
    if (base > 0) {
      pair.change = (other->value - figure.value) / base;
      pair.noise = std::hypot(figure.noise, other->noise) / base;
    } else if (other->value != 0) {
      pair.change = std::numeric_limits<double>::quiet_NaN();
    }
    pair.verdict = judge(pair, whole_of(left, figure), max_regression);
    out.figures.push_back(std::move(pair));
  }
  for (const FigurePair& pair : out.figures) {
    if (pair.a.unit != "ceiling_bytes_per_s" || std::abs(pair.change) < max_regression) continue;
    out.warnings.push_back("plain writes went from " + figure_text(pair.a.unit, pair.a.value) +
                           " to " + figure_text(pair.b.unit, pair.b.value) +
                           ": the host changed; ratio_to_ceiling tells more than the rate");
  }
  return out;
}

Result<Comparison> compare_results(const std::vector<ResultCase>& a,
                                   const std::vector<ResultCase>& b, double max_regression) {
  KVD_CHECK(!a.empty() && !b.empty());
  Comparison out;
  out.a = a.front().file;
  out.b = b.front().file;
  out.max_regression = max_regression;
  std::vector<bool> taken(b.size(), false);
  for (const ResultCase& left : a) {
    const auto identity = left.identity();
    std::size_t match = 0;
    while (match < b.size() && (taken[match] || b[match].identity() != identity)) ++match;
    if (match == b.size()) {
      out.unmatched.push_back("only in A: " + left.label());
      continue;
    }
    taken[match] = true;
    out.cases.push_back(compare_cases(left, b[match], max_regression));
  }
  for (std::size_t i = 0; i < b.size(); ++i) {
    if (!taken[i]) out.unmatched.push_back("only in B: " + b[i].label());
  }
  if (out.cases.empty()) return incomparable(a, b);
  const bool none = std::all_of(out.cases.begin(), out.cases.end(), [](const CasePair& one) {
    return std::none_of(one.figures.begin(), one.figures.end(),
                        [](const FigurePair& pair) { return pair.a.weight != Weight::kContext; });
  });
  if (none) {
    return invalid_argument(out.a + " and " + out.b +
                            " have no figure in common that has a better direction");
  }
  return out;
}

}  // namespace kvd::tools
