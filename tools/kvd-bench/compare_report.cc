#include <array>
#include <cmath>
#include <cstdio>

#include "cli/output.h"
#include "kvd-bench/compare.h"

namespace kvd::tools {
namespace {

std::string percent(const char* format, double share) {
  std::array<char, 48> text{};
  std::snprintf(text.data(), text.size(), format, 100 * share);
  return text.data();
}

bool shown(const FigurePair& pair, bool all) {
  if (all) return true;
  const bool notable = pair.verdict == Verdict::kBetter || pair.verdict == Verdict::kWorse ||
                       pair.verdict == Verdict::kRegressed;
  return notable || pair.a.weight == Weight::kJudged || pair.a.unit == "ceiling_bytes_per_s";
}

std::string table_of(const CasePair& one, bool all) {
  cli::TableWriter table({"", "A", "B", "change", "noise", ""});
  for (const FigurePair& pair : one.figures) {
    if (!shown(pair, all)) continue;
    const bool judged = pair.verdict != Verdict::kNone;
    table.add_row({pair.a.name, figure_text(pair.a.unit, pair.a.value),
                   figure_text(pair.b.unit, pair.b.value), change_text(pair),
                   judged && pair.noise > 0 ? percent("%.1f %%", pair.noise) : "",
                   to_string(pair.verdict)});
  }
  return table.render();
}

std::string thresholds_text(const Comparison& comparison) {
  std::string out;
  for (const CheckedThreshold& one : comparison.thresholds) {
    const Threshold::Finding& finding = one.finding;
    out += std::string(finding.passed ? "met     " : "missed  ") + one.text + ": " + finding.path +
           " is " + (finding.value ? number_text(*finding.value) : "null") + " (" + one.label +
           ")\n";
  }
  return out;
}

std::string counted(std::size_t n, const char* one, const char* more) {
  return std::to_string(n) + " " + (n == 1 ? one : more);
}

void add_pair(cli::JsonWriter* json, const FigurePair& pair) {
  json->begin_object().field("name", pair.a.name);
  json->field("a", pair.a.value).field("b", pair.b.value).field("change", pair.change);
  json->key("better");
  if (pair.a.better == Better::kNone) {
    json->null();
  } else {
    json->value(pair.a.better == Better::kMore ? "more" : "less");
  }
  json->key("noise");
  if (pair.verdict == Verdict::kNone || pair.noise <= 0) {
    json->null();
  } else {
    json->value(pair.noise);
  }
  json->key("verdict");
  if (pair.verdict == Verdict::kNone) {
    json->null();
  } else {
    json->value(to_string(pair.verdict));
  }
  json->end_object();
}

void add_texts(cli::JsonWriter* json, const char* name, const std::vector<std::string>& texts) {
  json->key(name).begin_array();
  for (const std::string& text : texts) json->value(text);
  json->end_array();
}

void add_case(cli::JsonWriter* json, const CasePair& one) {
  json->begin_object().field("case", one.a.label());
  json->key("identity").begin_object();
  for (const auto& [name, text] : one.a.identity()) json->field(name, text);
  json->end_object();
  json->key("figures").begin_array();
  for (const FigurePair& pair : one.figures) add_pair(json, pair);
  json->end_array();
  add_texts(json, "warnings", one.warnings);
  json->end_object();
}

void add_threshold(cli::JsonWriter* json, const CheckedThreshold& one) {
  json->begin_object().field("threshold", one.text).field("case", one.label);
  json->field("path", one.finding.path).key("value");
  if (one.finding.value) {
    json->value(*one.finding.value);
  } else {
    json->null();
  }
  json->field("passed", one.finding.passed).end_object();
}

}  // namespace

std::string change_text(const FigurePair& pair) {
  if (pair.a.value == pair.b.value) return "0.0 %";
  return std::isfinite(pair.change) ? percent("%+.1f %%", pair.change) : "from 0";
}

std::string comparison_text(const Comparison& comparison, bool all) {
  std::string out;
  if (!comparison.b.empty()) out += "A " + comparison.a + "\nB " + comparison.b + "\n";
  for (const CasePair& one : comparison.cases) {
    out += "\n" + one.a.label() + "\n" + table_of(one, all);
    for (const std::string& warning : one.warnings) out += "warning: " + warning + "\n";
  }
  if (!comparison.unmatched.empty()) out += "\n";
  for (const std::string& one : comparison.unmatched) out += "warning: " + one + "\n";
  if (!comparison.thresholds.empty() && !out.empty()) out += "\n";
  out += thresholds_text(comparison);
  if (comparison.b.empty()) return out;
  const std::size_t regressed = comparison.count(Verdict::kRegressed);
  out += "\n" + counted(regressed, "regression", "regressions") + " of " +
         percent("%.4g %%", comparison.max_regression) + " or more; " +
         std::to_string(comparison.count(Verdict::kWorse)) + " worse by less, " +
         std::to_string(comparison.count(Verdict::kBetter)) + " better, " +
         std::to_string(comparison.count(Verdict::kNoise)) + " within noise\n";
  if (const std::size_t unclear = comparison.unclear(); unclear > 0) {
    out += counted(unclear, "figure is", "figures are") + " worse by as much, but no more than " +
           "chance can do: measure longer, on a quiet host\n";
  }
  return out;
}

std::string comparison_json(const Comparison& comparison) {
  cli::JsonWriter json;
  json.begin_object().field("kind", "compare").field("schema", 1);
  json.field("passed", comparison.passed()).field("a", comparison.a).key("b");
  if (comparison.b.empty()) {
    json.null();
  } else {
    json.value(comparison.b);
  }
  json.field("max_regression", comparison.max_regression);
  for (const auto& [name, verdict] : {std::pair("regressed", Verdict::kRegressed),
                                      {"worse", Verdict::kWorse},
                                      {"better", Verdict::kBetter},
                                      {"within_noise", Verdict::kNoise}}) {
    json.field(name, std::uint64_t{comparison.count(verdict)});
  }
  json.field("unclear", std::uint64_t{comparison.unclear()});
  json.key("cases").begin_array();
  for (const CasePair& one : comparison.cases) add_case(&json, one);
  json.end_array();
  add_texts(&json, "unmatched", comparison.unmatched);
  json.key("thresholds").begin_array();
  for (const CheckedThreshold& one : comparison.thresholds) add_threshold(&json, one);
  return json.end_array().end_object().take();
}

}  // namespace kvd::tools
