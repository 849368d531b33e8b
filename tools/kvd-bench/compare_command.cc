#include "kvd-bench/compare_command.h"

#include <memory>

#include "cli/exit_code.h"
#include "cli/output.h"
#include "kvd-bench/compare.h"

namespace kvd::tools {
namespace {

struct CompareOptions {
  std::string a, b;
  double max_regression = 0.1;
  std::vector<std::string> thresholds;
  bool all = false;
};

// Thresholds are for what is new: B, or A alone.
Status check_thresholds(const std::vector<Threshold>& thresholds,
                        const std::vector<ResultCase>& cases, Comparison* out) {
  for (const Threshold& threshold : thresholds) {
    const auto findings = threshold.check(cases);
    if (!findings.ok()) return findings.status();
    for (const Threshold::Finding& finding : *findings) {
      out->thresholds.push_back({threshold.text(), cases[finding.number].label(), finding});
    }
  }
  return {};
}

Result<Comparison> compare(const CompareOptions& options) {
  std::vector<Threshold> thresholds;
  for (const std::string& text : options.thresholds) {
    auto threshold = Threshold::parse(text);
    if (!threshold.ok()) return threshold.status();
    thresholds.push_back(std::move(*threshold));
  }
  if (options.b.empty() && thresholds.empty()) {
    return invalid_argument("one result has nothing to be compared with: name a second one, or " +
                            std::string("give --threshold"));
  }
  if (options.a == "-" && options.b == "-") {
    return invalid_argument("A and B are both stdin: one of them must be a file");
  }
  const auto a = read_results(options.a);
  if (!a.ok()) return a.status();
  Comparison out;
  out.a = options.a;
  out.max_regression = options.max_regression;
  if (options.b.empty()) {
    KVD_RETURN_IF_ERROR(check_thresholds(thresholds, *a, &out));
    return out;
  }
  const auto b = read_results(options.b);
  if (!b.ok()) return b.status();
  auto compared = compare_results(*a, *b, options.max_regression);
  if (!compared.ok()) return compared;
  KVD_RETURN_IF_ERROR(check_thresholds(thresholds, *b, &*compared));
  return compared;
}

int run_verb(const CompareOptions& options, const cli::Invocation& invocation) {
  const auto comparison = compare(options);
  if (!comparison.ok()) {
    return cli::report_error(kBenchProgram, comparison.status(), invocation.json);
  }
  const std::string text = invocation.json ? comparison_json(*comparison) + "\n"
                                           : comparison_text(*comparison, options.all);
  const int code = comparison->passed() ? cli::kExitOk : cli::kExitCheckFailed;
  const Status status = cli::write_out(text);
  // A reader that has seen enough does not make a regression pass.
  if (!status.ok() && status.code() != StatusCode::kCancelled) {
    return cli::report_error(kBenchProgram, status, invocation.json);
  }
  return code;
}

}  // namespace

Verb compare_verb() {
  const auto options = std::make_shared<CompareOptions>();
  Verb verb;
  verb.command.name = "compare";
  verb.command.log_level = LogLevel::kWarn;
  verb.command.summary = "compare two results, or hold one against thresholds";
  verb.command.positionals = {
      {"A", "a result of --json or --ndjson: the baseline; - is stdin", &options->a},
      {"B", "the result that is compared with it", &options->b, true}};
  verb.command.options.group(
      "Verdict",
      {cli::share_option("max-regression", &options->max_regression,
                         "exit with 1 when a figure is worse by this or more, and beyond noise"),
       cli::list_option(
           "threshold", "EXPRESSION", &options->thresholds,
           "what B, or A alone, must meet: 'ratio_to_ceiling>=0.95'; may be repeated")});
  verb.command.options.group(
      "Output", {cli::flag_option("all", &options->all,
                                  "print every figure, and not only those that are judged")});
  verb.command.examples =
      "kvd-bench compare before.json after.json --max-regression 5%\n"
      "kvd-bench compare after.json --threshold 'ratio_to_ceiling>=0.95' "
      "--threshold 'latency_ns.p99<2ms'";
  verb.run = [options](const cli::Invocation& invocation) {
    return run_verb(*options, invocation);
  };
  return verb;
}

}  // namespace kvd::tools
