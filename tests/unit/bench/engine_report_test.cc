#include "kvd-bench/engine_report.h"

#include <catch2/catch.hpp>
#include <cstdio>
#include <fstream>

namespace kvd::tools {
namespace {

using Catch::Matchers::Contains;

SpeedFigure prefill(std::uint32_t tokens, double rate) {
  SpeedFigure figure;
  figure.tokens = tokens;
  figure.tok_per_s = {rate, rate - 1, rate + 1, 5};
  return figure;
}
SpeedFigure decode(std::uint32_t batch, std::uint32_t context, double rate) {
  SpeedFigure figure = prefill(0, rate);
  figure.kind = SpeedFigure::Kind::kDecode;
  figure.batch = batch, figure.context = context;
  return figure;
}

EngineReport sample_report() {
  EngineReport report;
  report.file = "/models/tiny.Q4_1.gguf";
  report.threads = 2;
  report.kernels = "avx2";
  report.figures = {prefill(512, 1000), decode(8, 0, 500)};
  return report;
}

// A file in the working directory of the test, removed at the end.
struct ResultFile {
  std::string path = "kvd_bench_result.json";
  explicit ResultFile(const std::string& text) { std::ofstream(path) << text; }
  ~ResultFile() { std::remove(path.c_str()); }
};

TEST_CASE("engine report: what it prints as JSON it takes for --compare") {
  const ResultFile file(report_json(sample_report()));
  const auto reference = read_reference(file.path);
  REQUIRE(reference.ok());
  CHECK(*reference == std::map<std::string, double>{{"pp512", 1000}, {"tg8_0", 500}});
}

TEST_CASE("engine report: another program's pairs are taken, their details are not") {
  const ResultFile file(
      R"({"pp512":203.5,"tg1_0":96,"threads":2,"detail":{"pp512":{"fa0":{"median":1}}}})");
  const auto reference = read_reference(file.path);
  REQUIRE(reference.ok());
  CHECK(*reference == std::map<std::string, double>{{"pp512", 203.5}, {"tg1_0", 96}});
}

TEST_CASE("engine report: a file without figures is refused with what to give") {
  for (const char* text : {"{}", "[]", "{\"threads\":2}", "no JSON"}) {
    const ResultFile file(text);
    const auto reference = read_reference(file.path);
    REQUIRE_FALSE(reference.ok());
    CHECK(reference.status().code() == StatusCode::kInvalidArgument);
    CHECK_THAT(reference.status().message(), Contains(file.path));
  }
  CHECK_THAT(read_reference("/nonexistent.json").status().message(), Contains("cannot be opened"));
}

TEST_CASE("engine report: ratios stand beside the figures that the reference has") {
  EngineReport report = sample_report();
  report.reference_file = "llama.json";
  report.reference = {{"pp512", 250}};
  const std::string text = report_text(report);
  CHECK_THAT(text, Contains("4.00") && Contains("tiny.Q4_1, avx2 kernels, 2 threads"));
  CHECK_THAT(report_json(report), Contains("\"ratio\":4.0") && Contains("\"compared_with\""));
  CHECK_THAT(report_json(sample_report()), !Contains("ratio"));
}

TEST_CASE("engine report: shares are bytes of a step, or products of a token, against the limit") {
  EngineReport report = sample_report();
  CHECK(share_of(report, report.figures[0]).part == 0);
  report.cost = {1'000'000, 90'000'000, 100};
  report.ceilings.weights_bytes_per_s = 20e9;
  report.ceilings.memory_bytes_per_s = 15e9;
  report.ceilings.int8_macs_per_s = 4e9;
  CHECK(share_of(report, report.figures[0]).part == Approx(1000.0 * 1e6 / 4e9));
  // 100 steps a second of 8 sequences with 512 to 575 tokens each.
  SpeedFigure figure = decode(8, 512, 800);
  figure.steps = 63;
  CHECK(share_of(report, figure).part == Approx(100 * (90e6 + 8 * 544 * 100) / 20e9));
  report.ceilings.bf16_macs_per_s = 2e9;
  CHECK(share_of(report, report.figures[0]).part == Approx(0.5));
  CHECK_THAT(report_text(report), Contains("50 % bf16") && Contains("limits: "));
}

TEST_CASE("engine report: the share of memory that was measured around the runs is decode's") {
  EngineReport report = sample_report();
  CHECK_THAT(report_json(report), !Contains("share_of_memory"));
  report.figures.back().memory_bytes_per_s = {25e9, 24e9, 26e9, 6};
  report.figures.back().share_of_memory = {0.75, 0.5, 1, 5};
  CHECK_THAT(report_json(report), Contains("\"memory_bytes_per_s\":25000000000") &&
                                      Contains("\"share_of_memory\":0.75"));
}

TEST_CASE("engine runs: a run is set against the better memory around it, the first against none") {
  const std::vector<double> shares = shares_of_memory({9, 6, 3}, {1, 10, 20, 5});
  REQUIRE(shares.size() == 2);
  CHECK(shares[0] == Approx(6.0 / 20));
  CHECK(shares[1] == Approx(3.0 / 20));
  CHECK(shares_of_memory({9}, {1, 2}).empty());
}

TEST_CASE("engine report: a disturbed figure and an early end are said in every form") {
  EngineReport report = sample_report();
  report.figures[0].disturbed = true;
  report.partial = true;
  CHECK_THAT(report_text(report), Contains("disturbed") && Contains("ended early"));
  CHECK_THAT(report_json(report), Contains("\"disturbed\":true") && Contains("\"partial\":true"));
  CHECK_THAT(report_csv(report), Contains("prefill,512,,,1000.00,999.00,1001.00,5,0,true"));
  CHECK_THAT(end_event(report), Contains("\"event\":\"end\"") && Contains("\"partial\":true"));
}

}  // namespace
}  // namespace kvd::tools
