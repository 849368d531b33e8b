#include <algorithm>
#include <array>
#include <map>

#include "common/html.h"
#include "kvd-bench/charts.h"
#include "kvd-bench/figures.h"
#include "kvd-bench/report_runs.h"

namespace kvd::tools {
namespace {

using cli::JsonValue;
using Kind = cli::JsonValue::Kind;

constexpr std::array kStages = {"control", "post", "wire", "commit", "digest", "visible"};
constexpr std::size_t kMostOtherRows = 200;

double member_of(const JsonValue& document, const char* object, const char* name,
                 double otherwise) {
  const JsonValue* value = document.find(object);
  return value == nullptr ? otherwise : value->number_of(name, otherwise);
}

// The unit of an axis of times, by its largest value.
struct TimeUnit {
  const char* name;
  double ns;
};
TimeUnit time_unit(double largest_ns) {
  if (largest_ns < 1e4) return {"ns", 1};
  if (largest_ns < 1e7) return {"us", 1e3};
  if (largest_ns < 1e10) return {"ms", 1e6};
  return {"s", 1e9};
}

// Calls `add` for each member, with the heading where the group begins.
template <typename Add>
void each_row(const ReportData& data, Add add) {
  for (const CaseGroup* group : data.of_kind("pages")) {
    std::string heading = group->label;
    for (const Member& member : group->members) {
      add(heading, data.row_name(member), member, member.one->document);
      heading.clear();
    }
  }
}

std::string bandwidth_chart(const ReportData& data) {
  std::vector<Bar> bars;
  each_row(data, [&](const std::string& heading, const std::string& label, const Member& member,
                     const JsonValue& d) {
    Bar bar{heading, label, member.run, d.number_of("bytes_per_s", 0), 0, 0, -1, -1, ""};
    bar.low = member_of(d, "spread", "p10", bar.value);
    bar.high = member_of(d, "spread", "p90", bar.value);
    bar.mark = d.number_of("ceiling_bytes_per_s", -1);
    bar.second_mark = d.number_of("ceiling_1mib_bytes_per_s", -1);
    bar.text = figure_text("bytes_per_s", bar.value) + ", ratio " +
               figure_text("ratio", d.number_of("ratio_to_ceiling", 0));
    bars.push_back(std::move(bar));
  });
  return bar_chart("Bandwidth of KV pages", "GB/s", 1e9, bars) +
         legend({{"", "bar: median of the rounds, whiskers: p10 to p90"},
                 {"", "thick mark: plain writes of the same size"},
                 {"", "dashed mark: plain writes of 1 MiB"}});
}

// Curves of those series of which there is more than one size.
std::string size_chart(const ReportData& data) {
  std::map<std::string, Curve> series;
  std::vector<std::string> order;
  for (const CaseGroup* group : data.of_kind("pages")) {
    for (const Member& member : group->members) {
      const JsonValue& d = member.one->document;
      if (d.text_of("shape") != "pages" || !(d.number_of("page_bytes", 0) >= 1)) continue;
      std::string label = d.text_of("provider") + ", " + d.text_of("mode") + ", " +
                          d.text_of("wait_mode") + ", fragmentation " +
                          number_text(d.number_of("fragmentation", 0));
      if (data.runs.size() > 1) label = data.runs[member.run].name + ": " + label;
      const auto [place, is_new] = series.emplace(label, Curve{label, series.size(), {}});
      if (is_new) order.push_back(label);
      CurvePoint point;
      point.x = d.number_of("page_bytes", 0);
      point.y = d.number_of("bytes_per_s", 0);
      point.low = member_of(d, "spread", "p10", point.y);
      point.high = member_of(d, "spread", "p90", point.y);
      point.ceiling = d.number_of("ceiling_bytes_per_s", -1);
      place->second.points.push_back(point);
    }
  }
  std::vector<Curve> curves;
  for (const std::string& label : order) {
    Curve& curve = series[label];
    std::stable_sort(curve.points.begin(), curve.points.end(),
                     [](const CurvePoint& a, const CurvePoint& b) { return a.x < b.x; });
    if (curve.points.size() > 1) curves.push_back(curve);
  }
  if (curves.empty()) return {};
  for (std::size_t i = 0; i < curves.size(); ++i) curves[i].run = i;
  return curve_chart("Bandwidth by page size", "GB/s", 1e9, curves) +
         legend({{"", "line: median, bars: p10 to p90 of the rounds"},
                 {"", "dashed: plain writes of the same size"}});
}

std::string latency_chart(const ReportData& data) {
  std::vector<Range> ranges;
  double largest = 0;
  each_row(data, [&](const std::string& heading, const std::string& label, const Member& member,
                     const JsonValue& d) {
    Range range{heading, label, member.run, {}, ""};
    for (const char* name : {"p50", "p90", "p99", "p999"}) {
      const double value = member_of(d, "latency_ns", name, 0);
      if (value > 0 && (range.points.empty() || value >= range.points.back())) {
        range.points.push_back(value);
      }
    }
    if (!range.points.empty()) largest = std::max(largest, range.points.back());
    range.text = figure_text("_ns", member_of(d, "latency_ns", "p50", 0)) + ", p99 " +
                 figure_text("_ns", member_of(d, "latency_ns", "p99", 0));
    ranges.push_back(std::move(range));
  });
  const TimeUnit unit = time_unit(largest / 10);
  return range_chart("Latency of a request", unit.name, unit.ns, ranges) +
         legend({{"", "dot: median; ticks: p90, p99, p99.9 of the requests; logarithmic"}});
}

// As shares, so that a request of 10 us is as readable as one of a second.
std::string stage_chart(const ReportData& data) {
  std::vector<Stack> stacks;
  each_row(data, [&](const std::string& heading, const std::string& label, const Member&,
                     const JsonValue& d) {
    Stack stack{heading, label, {}, ""};
    double sum = 0;
    for (const char* stage : kStages) {
      const double p50 = member_of(d, (std::string(stage) + "_ns").c_str(), "p50", 0);
      stack.parts.push_back(std::clamp(p50, 0.0, 1e18));
      sum += stack.parts.back();
    }
    for (double& part : stack.parts) part *= sum > 0 ? 100 / sum : 0;
    stack.text = figure_text("_ns", sum) + " in all";
    stacks.push_back(std::move(stack));
  });
  return stack_chart("Stages of a request", "%", 1, {kStages.begin(), kStages.end()}, stacks) +
         legend({{"", "shares of the stages' medians, whose sum is near the median of the whole"}});
}

std::string cpu_chart(const ReportData& data) {
  std::vector<Bar> bars;
  each_row(data, [&](const std::string& heading, const std::string& label, const Member& member,
                     const JsonValue& d) {
    const double value = d.number_of("cpu_ns_per_gib", 0);
    Bar bar{heading, label, member.run, value, value, value, -1, -1, ""};
    bar.mark = d.number_of("ceiling_cpu_ns_per_gib", -1);
    bar.text = figure_text("cpu_ns_per_gib", value);
    bars.push_back(std::move(bar));
  });
  return bar_chart("CPU time of both sides", "s/GiB", 1e9, bars) +
         legend({{"", "bar: KV pages; thick mark: plain writes of the same size"}});
}

struct Phase {
  const char* name;
  const char* caption;
};
constexpr std::array kPhases = {Phase{"prefill", "Prefill"},
                                Phase{"matrices", "Prefill, the matrices alone"},
                                Phase{"decode", "Decode, all sequences together"}};

// "prompt of 512 tokens", "batch 8, context 0"; a chunk of a prompt is all that `matrices` is of.
std::string engine_heading(const Phase& phase, const JsonValue& element) {
  if (element.find("batch") == nullptr) {
    return (std::string_view(phase.name) == "matrices" ? "chunk of " : "prompt of ") +
           number_text(element.number_of("tokens", 0)) + " tokens";
  }
  return "batch " + number_text(element.number_of("batch", 0)) + ", context " +
         number_text(element.number_of("context", 0));
}

std::string engine_chart(const ReportData& data, const CaseGroup& group, const Phase& phase) {
  std::vector<std::string> order;
  std::map<std::string, std::vector<Bar>> rows;
  for (const Member& member : group.members) {
    const JsonValue* list = member.one->document.find(phase.name);
    if (list == nullptr) continue;
    for (const JsonValue& element : list->elements) {
      const std::string heading = engine_heading(phase, element);
      auto& bars = rows[heading];
      if (bars.empty()) order.push_back(heading);
      const double value = element.number_of("tok_per_s", 0);
      Bar bar{bars.empty() ? heading : "",
              data.row_name(member),
              member.run,
              value,
              element.number_of("p10", value),
              element.number_of("p90", value),
              -1,
              -1,
              ""};
      const JsonValue* disturbed = element.find("disturbed");
      bar.text = figure_text("tok_per_s", value) + " tok/s" +
                 (disturbed != nullptr && disturbed->boolean ? ", disturbed" : "");
      bars.push_back(std::move(bar));
    }
  }
  std::vector<Bar> bars;
  for (const std::string& heading : order) {
    for (Bar& bar : rows[heading]) bars.push_back(std::move(bar));
  }
  if (bars.empty()) return {};
  return bar_chart(phase.caption, "tok/s", 1, bars);
}

}  // namespace

std::string pages_sections(const ReportData& data) {
  if (data.of_kind("pages").empty()) return {};
  return "<h2>KV pages: bandwidth</h2>\n" + size_chart(data) + bandwidth_chart(data) +
         "<h2>KV pages: latency</h2>\n" + latency_chart(data) + stage_chart(data) +
         "<h2>KV pages: CPU</h2>\n" + cpu_chart(data);
}

std::string engine_sections(const ReportData& data) {
  std::string out;
  for (const CaseGroup* group : data.of_kind("engine")) {
    std::string kernels;
    for (const Member& member : group->members) {
      const std::string name = member.one->document.text_of("kernels");
      if (kernels.find(name) == std::string::npos) kernels += (kernels.empty() ? "" : ", ") + name;
    }
    out += "<h2>Engine: " + html_escape(group->label) + "</h2>\n<p>" + html_escape(kernels) +
           " kernels; bars are medians, whiskers p10 to p90 of the samples.</p>\n";
    for (const Phase& phase : kPhases) out += engine_chart(data, *group, phase);
  }
  return out;
}

std::string other_sections(const ReportData& data) {
  std::string out;
  for (const CaseGroup& group : data.groups) {
    if (group.kind == "pages" || group.kind == "engine") continue;
    std::vector<std::string> header = {""}, names;
    std::vector<std::vector<std::string>> rows;
    for (std::size_t i = 0; i < group.members.size(); ++i) {
      header.push_back(html_escape(shortened(data.runs[group.members[i].run].name, 60)));
      for (const Figure& figure : figures_of(*group.members[i].one)) {
        auto place = std::find(names.begin(), names.end(), figure.name);
        if (place == names.end()) {
          if (names.size() == kMostOtherRows) continue;
          names.push_back(figure.name);
          rows.push_back({html_escape(figure.name)});
          place = names.end() - 1;
        }
        auto& row = rows[static_cast<std::size_t>(place - names.begin())];
        row.resize(i + 1);
        row.push_back(html_escape(figure_text(figure.unit, figure.value)));
      }
    }
    for (auto& row : rows) row.resize(header.size());
    out += "<h2>" + html_escape(group.label) + "</h2>\n" + html_table(header, rows);
  }
  return out;
}

}  // namespace kvd::tools
