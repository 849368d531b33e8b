#include <catch2/catch.hpp>
#include <limits>

#include "base/units.h"
#include "common/html.h"
#include "kvd-bench/charts.h"
#include "kvd-bench/report_page.h"
#include "sample_results.h"

namespace kvd::tools {
namespace {

using Catch::Matchers::Contains;

std::size_t count(const std::string& text, const std::string& part) {
  std::size_t out = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1))
    ++out;
  return out;
}

TEST_CASE("html: what could be markup, or no character at all, is escaped") {
  CHECK(html_escape("<a href=\"x\" id='y'>&amp;") ==
        "&lt;a href=&quot;x&quot; id=&#39;y&#39;&gt;&amp;amp;");
  CHECK(html_escape(std::string("a\0b\x1f", 4)) ==
        "a\xEF\xBF\xBD"
        "b\xEF\xBF\xBD");
  CHECK(html_escape("\xff<") == "\xEF\xBF\xBD&lt;");
  CHECK(html_escape("x\xEF\xBF\xBFy") == "x\xEF\xBF\xBDy");
  CHECK(html_escape("\xC3\xA9\n\t") == "\xC3\xA9\n\t");
}

TEST_CASE("html: a text is shortened between characters") {
  CHECK(shortened("abc", 3) == "abc");
  CHECK(shortened("abcd", 3) == "ab\xE2\x80\xA6");
  CHECK(shortened("\xC3\xA9\xC3\xA9\xC3\xA9\xC3\xA9", 3) == "\xC3\xA9\xC3\xA9\xE2\x80\xA6");
}

TEST_CASE("charts: no value leads out of the picture") {
  constexpr double kHuge = std::numeric_limits<double>::max();
  const double kNan = std::numeric_limits<double>::quiet_NaN();
  std::string all;
  for (const double value : {0.0, 1.0, -5.0, 1e-300, kHuge, kNan}) {
    all += bar_chart("b", "u", 1e9, {{"h", "l", 7, value, -value, value, value, value, "t"}});
    all += range_chart("r", "u", 1e3, {{"h", "l", 0, {value, value * 2}, "t"}});
    all += stack_chart("s", "u", 1e3, {"x", "y"}, {{"h", "l", {value, value}, "t"}});
    all += curve_chart("c", "u", 1, {{"l", 0, {{1, value, 0, value, value}, {4096, 1, 0, 2, -1}}}});
  }
  all += bar_chart("none", "u", 1, {});
  CHECK(count(all, "nan") == 0);
  CHECK(count(all, "inf") == 0);
  CHECK(count(all, "=\"-") == 0);
  CHECK(all.size() < 100'000);
  CHECK(count(all, "<figure>") == count(all, "</svg></figure>"));
}

TEST_CASE("charts: bars keep their proportion, whiskers and marks stand where their values are") {
  const std::string svg =
      bar_chart("b", "GB/s", 1,
                {{"h", "", 0, 50, 40, 60, 100, -1, "50"}, {"i", "", 1, 25, 25, 25, -1, -1, "25"}});
  // The largest value is the mark's 100, and the axis has 4 % more: 670 units for 104.
  CHECK_THAT(svg, Contains("width=\"322.1\"") && Contains("width=\"161.1\""));
  CHECK_THAT(svg, Contains("x1=\"257.7\"") && Contains("x2=\"386.5\"") && Contains("x1=\"644.2\""));
}

TEST_CASE("report: each run and each kind has its plots, the same measurement stands together") {
  std::vector<ResultCase> cases;
  SamplePages slower;
  slower.bytes_per_s = 1.5e9, slower.p10 = 1.4e9, slower.p90 = 1.6e9;
  cases.push_back(SamplePages().read("x/a.json"));
  cases.push_back(slower.read("y/a.json"));
  for (const std::string text : {kSampleEngine, R"({"kind":"ping","x_ns":5})"}) {
    const auto more = parse_results("more.json", text);
    REQUIRE(more.ok());
    cases.push_back(more->front());
  }
  const std::string page = report_page("a title", cases);
  // Both files are named a.json: only their folders tell them apart.
  CHECK_THAT(page, Contains("x/a.json") && Contains("y/a.json"));
  CHECK_THAT(page, Contains("Bandwidth of KV pages") && Contains("2.00 GB/s, ratio 0.970"));
  CHECK_THAT(page, Contains("1.50 GB/s <span class=\"change worse\">-25.0 %, worse</span>"));
  CHECK_THAT(page, Contains("Prefill") && Contains("batch 8, context 512"));
  CHECK_THAT(page, Contains("<h2>ping</h2>") && Contains("x_ns"));
  CHECK_THAT(page, !Contains("Bandwidth by page size"));
  CHECK(count(page, "<svg ") == 6);
  const std::string alone = report_page("t", {cases.front()});
  CHECK_THAT(alone, !Contains("Comparison of runs") && Contains("Environment"));
}

TEST_CASE("report: nothing of a result becomes markup") {
  SamplePages hostile;
  hostile.provider = "<script>alert(1)</script>";
  hostile.congestion_control = "</td><img src=x>";
  const std::string page = report_page("</title><b>", {hostile.read("<i>.json")});
  CHECK_THAT(page,
             !Contains("<script") && !Contains("<img") && !Contains("<b>") && !Contains("<i>"));
  CHECK_THAT(page, Contains("&lt;script&gt;alert(1)") && Contains("&lt;i&gt;.json"));
  CHECK_THAT(page, Contains("default-src 'none'") && !Contains("url("));
  CHECK(is_valid_utf8(report_page("\xff", {hostile.read("\xfe")})));
}

}  // namespace
}  // namespace kvd::tools
