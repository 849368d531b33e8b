#include "kvd-bench/figures.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <string_view>

namespace kvd::tools {
namespace {

using cli::JsonValue;
using Kind = cli::JsonValue::Kind;

constexpr double kTwoSided95 = 1.96;

// Neither a figure nor part of one: parameters, conditions, and what other figures' noise is
// made of.
constexpr std::array kSkipped = {
    "environment", "schema",        "layers",         "page_size",      "page_bytes",    "tp",
    "concurrency", "fragmentation", "rate",           "pool_bytes",     "threads",       "cost",
    "spread",      "ratio_spread",  "ceiling_spread", "ratio_interval", "ceiling_depth",
};
constexpr std::array kStages = {"control_ns", "post_ns",   "wire_ns",
                                "commit_ns",  "digest_ns", "visible_ns"};
// What tells the elements of a list from each other.
constexpr std::array kKeys = {"tokens", "batch", "context", "name", "bytes", "peer", "concurrency"};
constexpr std::array kSpreadMembers = {"p10", "p90", "n"};

struct Percentile {
  const char* name;
  double share;
};
constexpr std::array kPercentiles = {Percentile{"p50", 0.5}, Percentile{"p90", 0.9},
                                     Percentile{"p95", 0.95}, Percentile{"p99", 0.99},
                                     Percentile{"p999", 0.999}};

template <typename Names>
bool has(const Names& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// The share beside `share` on the scale on which tails are straight: nines.
double nines(double share) { return -std::log10(1 - share); }

// A distribution of which some percentiles are known.
class Quantiles {
 public:
  explicit Quantiles(const JsonValue& object) : n_(object.number_of("n", 0)) {
    for (const Percentile& p : kPercentiles) {
      const JsonValue* value = object.find(p.name);
      if (value != nullptr && value->is(Kind::kNumber))
        points_.push_back({nines(p.share), value->number});
    }
  }
  bool known() const { return points_.size() >= 2 && n_ > 0; }
  // Ten values above it: fewer say nothing of a tail.
  bool enough(double share) const { return n_ * (1 - share) >= 10; }

  // How far the value at a share may lie off, because the rank of it does.
  double noise(double share) const {
    const double rank = kTwoSided95 * std::sqrt(share * (1 - share) / n_);
    const double here = at(share);
    const double above = at(std::min(share + rank, 1 - 0.5 / n_)) - here;
    const bool inside = nines(share - rank) >= points_.front().x;
    return std::max({above, inside ? here - at(share - rank) : 0.0, 0.0});
  }

 private:
  struct Point {
    double x, y;
  };
  double at(double share) const {
    const double x = nines(share);
    std::size_t right = 1;
    while (right + 1 < points_.size() && points_[right].x < x) ++right;
    const Point &a = points_[right - 1], &b = points_[right];
    return a.y + (b.y - a.y) * (x - a.x) / (b.x - a.x);
  }
  double n_;
  std::vector<Point> points_;
};

class Collector {
 public:
  explicit Collector(const ResultCase& one) : root_(one.document) {
    const JsonValue* spread = root_.find("spread");
    const double rate = root_.number_of("bytes_per_s", 0);
    if (spread != nullptr && rate > 0) {
      relative_noise_ = noise_of(*spread) / rate;
      relative_spread_ =
          (spread->number_of("p90", rate) - spread->number_of("p10", rate)) / 2 / rate;
    }
  }

  std::vector<Figure> take() {
    object(root_, "");
    return std::move(out_);
  }

 private:
  static double noise_of(const JsonValue& spread) {
    return median_noise(spread.number_of("p10", 0), spread.number_of("p90", 0),
                        spread.number_of("n", 0));
  }

  void object(const JsonValue& value, const std::string& path) {
    const bool repeated = value.find("p10") != nullptr && value.find("p90") != nullptr;
    for (const auto& [name, member] : value.members) {
      if (has(kSkipped, name) || (repeated && has(kSpreadMembers, name))) continue;
      const std::string here = path.empty() ? name : path + "." + name;
      if (member.is(Kind::kNumber)) {
        number(value, name, here, path);
      } else if (member.is(Kind::kObject) && member.find("p50") != nullptr) {
        percentiles(member, name, here);
      } else if (member.is(Kind::kObject)) {
        object(member, here);
      } else if (member.is(Kind::kArray)) {
        list(member, here);
      }
    }
  }

  void list(const JsonValue& value, const std::string& path) {
    for (std::size_t i = 0; i < value.elements.size(); ++i) {
      const JsonValue& element = value.elements[i];
      if (!element.is(Kind::kObject)) continue;
      std::string keys;
      for (const char* key : kKeys) {
        const JsonValue* member = element.find(key);
        if (member == nullptr || scalar_text(*member).empty()) continue;
        keys += (keys.empty() ? "" : ",") + std::string(key) + "=" + scalar_text(*member);
      }
      object(element, path + "[" + (keys.empty() ? std::to_string(i) : keys) + "]");
    }
  }

  void number(const JsonValue& parent, const std::string& name, const std::string& path,
              const std::string& outer) {
    if (!outer.empty() && has(kKeys, name)) return;
    Figure figure;
    figure.name = path;
    figure.unit = name;
    figure.value = figure.low = figure.high = parent.number_of(name, 0);
    // Once a run, with nothing to tell chance from change; ceilings are the host's, not ours.
    const bool context = outer == "cold" || outer.starts_with("ceiling");
    figure.better = outer.starts_with("ceiling") ? Better::kNone : better_of(name);
    if (figure.better != Better::kNone && !context) figure.weight = Weight::kJudged;
    add_spread(parent, name, &figure);
    out_.push_back(std::move(figure));
  }

  void add_spread(const JsonValue& parent, const std::string& name, Figure* figure) const {
    const JsonValue* spread = &parent;
    if (name == "bytes_per_s") spread = parent.find("spread");
    if (name == "ceiling_bytes_per_s") spread = parent.find("ceiling_spread");
    if (name == "ratio_to_ceiling") spread = parent.find("ratio_spread");
    const bool own = spread != nullptr && spread->find("p10") != nullptr &&
                     (spread != &parent || name == "tok_per_s");
    if (own) {
      figure->low = spread->number_of("p10", figure->value);
      figure->high = spread->number_of("p90", figure->value);
      figure->noise = noise_of(*spread);
    } else if (name != "copies") {
      figure->noise = relative_noise_ * figure->value;
    }
    const JsonValue* interval =
        name == "ratio_to_ceiling" ? parent.find("ratio_interval") : nullptr;
    if (interval != nullptr) {
      figure->noise = (interval->number_of("high", 0) - interval->number_of("low", 0)) / 2;
    }
  }

  void percentiles(const JsonValue& value, const std::string& name, const std::string& path) {
    const Quantiles quantiles(value);
    const bool stage = has(kStages, name);
    for (const auto& [member, item] : value.members) {
      if (!item.is(Kind::kNumber) || member == "n") continue;
      Figure figure;
      figure.name = path + "." + member;
      figure.unit = name;
      figure.value = figure.low = figure.high = item.number;
      figure.better = better_of(name);
      const auto known =
          std::find_if(kPercentiles.begin(), kPercentiles.end(),
                       [&member = member](const Percentile& p) { return member == p.name; });
      if (known != kPercentiles.end() && quantiles.known()) {
        // Requests of one round are not independent: the rounds' spread counts too.
        figure.noise = std::max(quantiles.noise(known->share), relative_spread_ * item.number);
        const bool usable = quantiles.enough(known->share) && !(stage && known->share > 0.9);
        if (usable) figure.weight = stage ? Weight::kPart : Weight::kJudged;
      } else if (known != kPercentiles.end()) {
        figure.weight = stage ? Weight::kPart : Weight::kJudged;
      }
      if (figure.better == Better::kNone) figure.weight = Weight::kContext;
      out_.push_back(std::move(figure));
    }
  }

  const JsonValue& root_;
  double relative_noise_ = 0, relative_spread_ = 0;  // of the rounds' rates
  std::vector<Figure> out_;
};

std::string with_unit(const char* format, double value, const char* unit) {
  std::array<char, 64> text{};
  std::snprintf(text.data(), text.size(), format, value);
  return std::string(text.data()) + unit;
}

std::string time_text(double ns) {
  const double size = std::abs(ns);
  if (size < 1e3) return with_unit("%.0f", ns, " ns");
  if (size < 1e6) return with_unit(size < 1e5 ? "%.1f" : "%.0f", ns / 1e3, " us");
  if (size < 1e9) return with_unit(size < 1e8 ? "%.2f" : "%.0f", ns / 1e6, " ms");
  return with_unit("%.2f", ns / 1e9, " s");
}

}  // namespace

Better better_of(const std::string& unit) {
  const std::string_view name = unit;
  if (name.starts_with("ceiling_") || name.starts_with("reference_")) return Better::kNone;
  if (name.ends_with("_per_s") || name == "ratio_to_ceiling" || name.starts_with("goodput")) {
    return Better::kMore;
  }
  if (name == "copies" || name.ends_with("_per_gib")) return Better::kLess;
  for (const char* time : {"_ns", "_us", "_ms"}) {
    if (name.ends_with(time)) return Better::kLess;
  }
  return Better::kNone;
}

std::vector<Figure> figures_of(const ResultCase& one) { return Collector(one).take(); }

double median_noise(double p10, double p90, double n) {
  if (n < 2 || !(p90 > p10)) return 0;
  // Student's t at 97.5 % within 2 % from three values on, so that five samples are not taken for
  // many.
  const double df = n - 1;
  const double t = kTwoSided95 + 2.4 / df + 4.4 / (df * df);
  constexpr double kTenToNinety = 2.563;    // standard deviations
  constexpr double kMedianOfMean = 1.2533;  // a median's error against a mean's
  return t * kMedianOfMean * (p90 - p10) / kTenToNinety / std::sqrt(n);
}

std::string figure_text(const std::string& unit, double value) {
  const std::string_view name = unit;
  if (!std::isfinite(value)) return "none";
  if (name.ends_with("bytes_per_s")) return with_unit("%.2f", value / 1e9, " GB/s");
  if (name.ends_with("cpu_ns_per_gib")) return with_unit("%.3f", value / 1e9, " s/GiB");
  if (name.ends_with("_ns")) return time_text(value);
  if (name.ends_with("_us")) return time_text(value * 1e3);
  if (name.ends_with("_ms")) return time_text(value * 1e6);
  if (name.starts_with("ratio")) return with_unit("%.3f", value, "");
  if (name.ends_with("tok_per_s")) return with_unit(value < 100 ? "%.2f" : "%.1f", value, "");
  return number_text(value);
}

}  // namespace kvd::tools
