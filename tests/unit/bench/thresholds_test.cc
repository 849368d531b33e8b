#include "kvd-bench/thresholds.h"

#include <catch2/catch.hpp>

#include "sample_results.h"

namespace kvd::tools {
namespace {

using Catch::Matchers::Contains;

std::vector<ResultCase> read(const std::string& text) {
  auto cases = parse_results("x.json", text);
  REQUIRE(cases.ok());
  return std::move(*cases);
}

// Of each figure that the threshold applies to, whether it is met.
std::vector<bool> met(const std::string& text, const std::vector<ResultCase>& cases) {
  const auto threshold = Threshold::parse(text);
  REQUIRE(threshold.ok());
  const auto findings = threshold->check(cases);
  REQUIRE(findings.ok());
  std::vector<bool> out;
  for (const auto& finding : *findings) out.push_back(finding.passed);
  return out;
}
const std::vector<bool> kYes = {true}, kNo = {false};

TEST_CASE("threshold: each operator, at and around its value") {
  const auto cases = read(R"({"x":2})");
  for (const auto& [text, passed] : std::vector<std::pair<std::string, bool>>{{"x>1.99", true},
                                                                              {"x>2", false},
                                                                              {"x>=2", true},
                                                                              {"x>=2.01", false},
                                                                              {"x<2.01", true},
                                                                              {"x<2", false},
                                                                              {"x<=2", true},
                                                                              {"x<=1.99", false},
                                                                              {"x==2", true},
                                                                              {"x==1", false},
                                                                              {"x!=1", true},
                                                                              {"x!=2", false},
                                                                              {" x > 1e0 ", true},
                                                                              {"x>-3", true}}) {
    CAPTURE(text);
    CHECK(met(text, cases) == std::vector<bool>{passed});
  }
}

TEST_CASE("threshold: a path goes into objects, and through every element of a list") {
  const auto cases = read(kSampleEngine);
  CHECK(met("ceilings.memory_bytes_per_s>10GB", cases) == kYes);
  CHECK(met("prefill.tok_per_s>250", cases) == std::vector<bool>{false, true});
  CHECK(met("prefill[1].tok_per_s>250", cases) == kYes);
  CHECK(met("decode[batch=8].tok_per_s>=400", cases) == kYes);
  CHECK(met("decode[batch=8,context=512].tok_per_s>400", cases) == kNo);
  CHECK(met("[threads=2].decode[context=0].tok_per_s<91", cases) == kYes);
  const auto threshold = Threshold::parse("decode[batch=8].tok_per_s>1");
  REQUIRE(threshold.ok());
  CHECK(threshold->check(cases)->front().path == "decode[1].tok_per_s");
}

TEST_CASE("threshold: every case must meet it, or those that are chosen") {
  SamplePages small, large;
  small.page_bytes = 4096, small.ratio = 0.91;
  const auto cases = read(small.json() + "\n" + large.json());
  CHECK(met("ratio_to_ceiling>=0.95", cases) == std::vector<bool>{false, true});
  CHECK(met("[page_bytes=64KiB].ratio_to_ceiling>=0.95", cases) == kYes);
  CHECK(met("[page_bytes=4096].ratio_to_ceiling>=0.9", cases) == kYes);
  CHECK(met("[0].ratio_to_ceiling>=0.95", cases) == kNo);
  CHECK(met("[provider=tcp].latency_ns.p50<2ms", cases) == std::vector<bool>{true, true});
  // A list of cases in one document is the same.
  const auto list = read("[" + small.json() + "," + large.json() + "]");
  CHECK(met("ratio_to_ceiling>=0.95", list) == std::vector<bool>{false, true});
}

TEST_CASE("threshold: units are those that the name says") {
  const auto cases =
      read(R"({"a_ns":1500000,"b_ms":20,"c_bytes_per_s":2e9,"share":0.2,"ok":true})");
  CHECK(met("a_ns<2ms", cases) == kYes);
  CHECK(met("a_ns<1500us", cases) == kNo);
  CHECK(met("b_ms<=20ms", cases) == kYes);
  CHECK(met("c_bytes_per_s>=2GB", cases) == kYes);
  CHECK(met("c_bytes_per_s>2GiB", cases) == kNo);
  CHECK(met("share<=20%", cases) == kYes);
  CHECK(met("ok==true", cases) == kYes);
  CHECK(met("ok!=true", cases) == kNo);
}

TEST_CASE("threshold: what has no value is not met") {
  CHECK(met("x<5", read(R"({"x":null,"y":1})")) == kNo);
}

TEST_CASE("threshold: a figure that is not there is an error that names the nearest") {
  const auto said = [](const std::string& text, const std::string& document) {
    const auto threshold = Threshold::parse(text);
    REQUIRE(threshold.ok());
    const auto findings = threshold->check(read(document));
    REQUIRE_FALSE(findings.ok());
    CHECK(findings.status().code() == StatusCode::kInvalidArgument);
    return findings.status().message();
  };
  const std::string pages = SamplePages().json();
  CHECK_THAT(said("ratio_to_celing>0.9", pages), Contains("did you mean ratio_to_ceiling?"));
  CHECK_THAT(said("latency_ns>5", pages), Contains("a number in it is latency_ns.p50"));
  CHECK_THAT(said("decode[batch=9].tok_per_s>5", kSampleEngine), Contains("choose none"));
  CHECK_THAT(said("provider==1", pages), Contains("no such figure in x.json"));
}

TEST_CASE("threshold: a text that is none is refused with an example") {
  for (const char* text : {"",       "x",       ">5",      "x>",    "x=5",   "x!5",   "x>abc",
                           "x>5s",   "x>5KiB",  "a..b>1",  ".a>1",  "a.>1",  "a[>1",  "a[]>1",
                           "a[b]>1", "a[=1]>1", "a[0]b>1", "x>nan", "x>inf", "x>1 2", "x><1"}) {
    CAPTURE(text);
    const auto threshold = Threshold::parse(text);
    REQUIRE_FALSE(threshold.ok());
    CHECK(threshold.status().code() == StatusCode::kInvalidArgument);
    CHECK_THAT(threshold.status().message(), Contains("for example"));
  }
}

}  // namespace
}  // namespace kvd::tools
