#include "kvd-bench/compare.h"

#include <catch2/catch.hpp>
#include <cmath>

#include "sample_results.h"

namespace kvd::tools {
namespace {

using Catch::Matchers::Contains;

Verdict verdict_of(const CasePair& pair, const std::string& name) {
  for (const FigurePair& figure : pair.figures) {
    if (figure.a.name == name) return figure.verdict;
  }
  FAIL("no figure " << name);
  return Verdict::kNone;
}

Verdict verdict(const SamplePages& a, const SamplePages& b, const std::string& name,
                double max_regression = 0.1) {
  return verdict_of(compare_cases(a.read(), b.read("b.json"), max_regression), name);
}

std::vector<ResultCase> cases_of(const std::string& file, const std::string& text) {
  auto cases = parse_results(file, text);
  REQUIRE(cases.ok());
  return std::move(*cases);
}

TEST_CASE("compare: more of a rate or a ratio is better, less of a time or of CPU") {
  const auto better = [](const char* unit) { return better_of(unit); };
  for (const char* unit : {"bytes_per_s", "tok_per_s", "ratio_to_ceiling", "goodput_per_s"}) {
    CHECK(better(unit) == Better::kMore);
  }
  for (const char* unit : {"latency_ns", "cpu_ns_per_gib", "ttft_ms", "copies"}) {
    CHECK(better(unit) == Better::kLess);
  }
  for (const char* unit : {"ceiling_bytes_per_s", "ceiling_cpu_ns_per_gib", "pages", "writes",
                           "reference_tok_per_s", "verified"}) {
    CHECK(better(unit) == Better::kNone);
  }
}

TEST_CASE("compare: a tenth less is a regression, in each direction that is worse") {
  const SamplePages base;
  SamplePages other = base;
  other.bytes_per_s = 1.8e9;
  CHECK(verdict(base, other, "bytes_per_s") == Verdict::kRegressed);
  CHECK(verdict(base, other, "bytes_per_s", 0.11) == Verdict::kWorse);
  CHECK(verdict(other, base, "bytes_per_s") == Verdict::kBetter);
  other = base, other.ratio = 0.8;
  CHECK(verdict(base, other, "ratio_to_ceiling") == Verdict::kRegressed);
  other = base, other.p50_ns = 1.2e6;
  CHECK(verdict(base, other, "latency_ns.p50") == Verdict::kRegressed);
  CHECK(verdict(other, base, "latency_ns.p50") == Verdict::kBetter);
  other = base, other.cpu_ns_per_gib = 4.8e8;
  CHECK(verdict(base, other, "cpu_ns_per_gib") == Verdict::kRegressed);
  CHECK(verdict(other, base, "cpu_ns_per_gib") == Verdict::kBetter);
  other = base, other.copies = 1;
  CHECK(verdict(base, other, "copies") == Verdict::kRegressed);
}

TEST_CASE("compare: what chance can do is no regression, however large") {
  SamplePages base;
  base.p10 = 1e9, base.p90 = 3e9, base.rounds = 5;
  SamplePages other = base;
  other.bytes_per_s = 1.6e9;
  CHECK(verdict(base, other, "bytes_per_s") == Verdict::kNoise);
  CHECK(verdict(base, base, "bytes_per_s") == Verdict::kNoise);
  const auto compared = compare_results({base.read()}, {other.read("b.json")}, 0.1);
  REQUIRE(compared.ok());
  CHECK((compared->passed() && compared->unclear() == 1));
  CHECK_THAT(comparison_text(*compared, false), Contains("1 figure is worse by as much"));
  // With the same spread over many rounds it is none.
  base.rounds = other.rounds = 300;
  CHECK(verdict(base, other, "bytes_per_s") == Verdict::kRegressed);
}

TEST_CASE("compare: the noise of a median shrinks with the root of the samples") {
  // A normal distribution's 10th to 90th percentile is 2.563 deviations wide.
  CHECK(median_noise(10 - 1.2815, 10 + 1.2815, 1e6) == Approx(1.96 * 1.2533e-3).epsilon(0.01));
  CHECK(median_noise(9, 11, 400) / median_noise(9, 11, 100) == Approx(0.5).epsilon(0.02));
  CHECK(median_noise(9, 11, 1) == 0);
  CHECK(median_noise(9, 9, 10) == 0);
}

TEST_CASE("compare: ceilings, single samples and tails of few requests are shown, not judged") {
  const SamplePages base;
  SamplePages other = base;
  other.ceiling = 1e9;
  const CasePair pair = compare_cases(base.read(), other.read(), 0.1);
  CHECK(verdict_of(pair, "ceiling_bytes_per_s") == Verdict::kNone);
  CHECK(verdict_of(pair, "cold.connect_ns") == Verdict::kNone);
  CHECK(verdict_of(pair, "latency_ns.max") == Verdict::kNone);
  CHECK(verdict_of(pair, "latency_ns.p999") == Verdict::kNone);  // 2 of 2000 requests
  CHECK(verdict_of(pair, "latency_ns.p99") == Verdict::kNoise);
  REQUIRE(pair.warnings.size() == 1);
  CHECK_THAT(pair.warnings[0], Contains("plain writes went from 2.06 GB/s to 1.00 GB/s"));
}

TEST_CASE("compare: a stage is judged by what it is of the whole latency") {
  const SamplePages base;
  SamplePages other = base;
  other.visible_p50_ns = 4000;  // ten times, of a millisecond in all
  CHECK(verdict(base, other, "visible_ns.p50") == Verdict::kNoise);
  other.wire_p50_ns = 1e6;
  CHECK(verdict(base, other, "wire_ns.p50") == Verdict::kRegressed);
}

TEST_CASE("compare: engine figures are matched by prompt, batch and context") {
  std::string slower = kSampleEngine;
  const std::string before = "\"tok_per_s\":400,\"p10\":396,\"p90\":404";
  slower.replace(slower.find(before), before.size(), "\"tok_per_s\":300,\"p10\":298,\"p90\":302");
  const auto a = cases_of("a.json", kSampleEngine), b = cases_of("b.json", slower);
  const auto compared = compare_results(a, b, 0.1);
  REQUIRE(compared.ok());
  CHECK(verdict_of(compared->cases[0], "decode[batch=8,context=512].tok_per_s") ==
        Verdict::kRegressed);
  CHECK(verdict_of(compared->cases[0], "prefill[tokens=128].tok_per_s") == Verdict::kNoise);
  CHECK_FALSE(compared->passed());
  CHECK_THAT(comparison_text(*compared, false), Contains("-25.0 %") && Contains("1 regression of"));
}

TEST_CASE("compare: different measurements are refused, with what differs") {
  const SamplePages base;
  SamplePages other = base;
  other.provider = "local", other.page_bytes = 4096;
  const auto refused = compare_results({base.read()}, {other.read("b.json")}, 0.1);
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.status().code() == StatusCode::kInvalidArgument);
  CHECK_THAT(refused.status().message(), Contains("a.json and b.json") &&
                                             Contains("provider tcp and local") &&
                                             Contains("page_bytes 65536 and 4096"));
  const auto engine = compare_results({base.read()}, cases_of("e.json", kSampleEngine), 0.1);
  REQUIRE_FALSE(engine.ok());
  CHECK_THAT(engine.status().message(), Contains("kind pages and engine"));
}

TEST_CASE("compare: several cases are matched in any order, the others are named") {
  const SamplePages large;
  SamplePages small = large, groups = large;
  small.page_bytes = 4096;
  groups.mode = "groups";
  const auto compared =
      compare_results(cases_of("a", large.json() + small.json()),
                      cases_of("b", groups.json() + small.json() + large.json()), 0.1);
  REQUIRE(compared.ok());
  CHECK(compared->cases.size() == 2);
  CHECK(compared->unmatched ==
        std::vector<std::string>{"only in B: tcp, groups of pages of 64 KiB"});
  CHECK(compared->passed());
}

TEST_CASE("compare: differences of the hosts are warnings, versions are not") {
  const SamplePages base;
  SamplePages other = base;
  other.congestion_control = "bbr";
  other.load = 8;
  other.partial = true;
  const CasePair pair = compare_cases(base.read(), other.read(), 0.1);
  CHECK(pair.warnings ==
        std::vector<std::string>{"B ended early: its figures are partial",
                                 "B was measured under a load of 8 on 2 cores",
                                 "tcp_congestion_control differs: cubic, then bbr"});
  CHECK(compare_cases(base.read(), base.read(), 0.1).warnings.empty());
}

TEST_CASE("compare: JSON has every figure with its verdict, and null where there is none") {
  SamplePages other;
  other.copies = 1;
  auto compared = compare_results({SamplePages().read()}, {other.read("b.json")}, 0.1);
  REQUIRE(compared.ok());
  const auto documents = cli::parse_json_documents(comparison_json(*compared));
  REQUIRE(documents.ok());
  const cli::JsonValue& root = documents->front();
  CHECK_FALSE(root.find("passed")->boolean);
  CHECK(root.number_of("regressed", 0) == 1);
  const auto& figures = root.find("cases")->elements.at(0).find("figures")->elements;
  bool copies = false;
  for (const auto& figure : figures) {
    if (figure.text_of("name") != "copies") continue;
    copies = true;
    CHECK(figure.find("change")->is(cli::JsonValue::Kind::kNull));
    CHECK(figure.text_of("verdict") == "regressed");
    CHECK(figure.text_of("better") == "less");
  }
  CHECK(copies);
}

TEST_CASE("results: the end of a stream of events counts, and failures are no results") {
  const std::string end = "{\"event\":\"end\"," + SamplePages().json().substr(1);
  const auto cases =
      cases_of("n", "{\"event\":\"start\"}\n{\"event\":\"interval\",\"x\":1}\n" + end);
  CHECK(cases.size() == 1);
  const auto said = [](const std::string& text) {
    const auto refused = parse_results("bad.json", text);
    REQUIRE_FALSE(refused.ok());
    CHECK(refused.status().code() == StatusCode::kInvalidArgument);
    return refused.status().message();
  };
  CHECK_THAT(said(R"({"error":{"code":"deadline","message":"too late"}})"),
             Contains("bad.json: a failure, not a result: too late"));
  for (const char* text : {"", "{}", "[]", "{\"a\":\"b\"}", "{\"event\":\"start\",\"x\":1}"}) {
    CHECK_THAT(said(text), Contains("no figures in it"));
  }
  CHECK_THAT(said("3"), Contains("no JSON object"));
  CHECK_THAT(said("{"), Contains("not JSON"));
  CHECK_THAT(read_results("/nonexistent.json").status().message(),
             Contains("/nonexistent.json: cannot be opened: No such file"));
  CHECK_FALSE(read_results("/").ok());
}

}  // namespace
}  // namespace kvd::tools
