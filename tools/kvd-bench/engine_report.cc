#include "kvd-bench/engine_report.h"

#include <array>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <iterator>

#include "cli/input.h"
#include "cli/output.h"

namespace kvd::tools {
namespace {

using cli::JsonWriter;
using Kind = SpeedFigure::Kind;

constexpr Kind kKinds[] = {Kind::kPrefill, Kind::kMatrices, Kind::kDecode};

const char* kind_name(Kind kind) {
  switch (kind) {
    case Kind::kPrefill:
      return "prefill";
    case Kind::kMatrices:
      return "matrices";
    case Kind::kDecode:
      break;
  }
  return "decode";
}

std::string fixed(double value, int digits) {
  std::array<char, 64> text{};
  std::snprintf(text.data(), text.size(), "%.*f", digits, value);
  return text.data();
}

std::string rate(double value) { return fixed(value, value < 100 ? 2 : 1); }

std::string base_name(const std::string& path) {
  std::string name = path.substr(path.find_last_of('/') + 1);
  if (name.ends_with(".gguf")) name.resize(name.size() - 5);
  return name;
}

// Three digits are what a median of a few samples has.
double rounded(double value) { return std::round(value * 100) / 100; }

const double* reference_of(const EngineReport& report, const SpeedFigure& figure) {
  const auto found = report.reference.find(short_name(figure));
  return found == report.reference.end() ? nullptr : &found->second;
}

void add_figure(JsonWriter& json, const EngineReport& report, const SpeedFigure& figure) {
  json.begin_object();
  if (figure.kind == Kind::kDecode) {
    json.field("batch", figure.batch).field("context", figure.context);
    json.field("steps", figure.steps);
  } else {
    json.field("tokens", figure.tokens);
  }
  const Spread& s = figure.tok_per_s;
  json.field("tok_per_s", rounded(s.median)).field("p10", rounded(s.p10));
  json.field("p90", rounded(s.p90)).field("n", std::uint64_t{s.n});
  json.field("rejected", std::uint64_t{figure.rejected}).field("disturbed", figure.disturbed);
  if (const Share share = share_of(report, figure); share.part > 0) {
    json.field("limit", share.of).field("share_of_limit", share.part);
  }
  if (figure.share_of_memory.n != 0) {
    json.field("memory_bytes_per_s", figure.memory_bytes_per_s.median);
    json.field("share_of_memory", figure.share_of_memory.median);
  }
  if (const double* other = reference_of(report, figure)) {
    json.field("reference_tok_per_s", *other).field("ratio", s.median / *other);
  }
  json.end_object();
}

void add_head(JsonWriter& json, const EngineReport& report) {
  json.field("model", base_name(report.file)).field("file", report.file);
  json.field("threads", report.threads).field("kernels", report.kernels);
}

void add_ceilings(JsonWriter& json, const EngineReport& report) {
  const Ceilings& c = report.ceilings;
  json.key("ceilings").begin_object();
  json.field("memory_bytes_per_s", c.memory_bytes_per_s);
  json.field("weights_bytes_per_s", c.weights_bytes_per_s);
  json.field("int8_macs_per_s", c.int8_macs_per_s).field("fp32_macs_per_s", c.fp32_macs_per_s);
  if (c.bf16_macs_per_s > 0) json.field("bf16_macs_per_s", c.bf16_macs_per_s);
  json.field("disturbed", c.disturbed).end_object();
  json.key("cost").begin_object().field("linear_macs_per_token", report.cost.linear_macs);
  json.field("weight_bytes_per_step", report.cost.step_bytes);
  json.field("kv_bytes_per_token", report.cost.kv_token_bytes).end_object();
}

void add_body(JsonWriter& json, const EngineReport& report) {
  add_head(json, report);
  add_ceilings(json, report);
  for (const Kind kind : kKinds) {
    json.key(kind_name(kind)).begin_array();
    for (const SpeedFigure& figure : report.figures) {
      if (figure.kind == kind) add_figure(json, report, figure);
    }
    json.end_array();
  }
  if (!report.reference_file.empty()) json.field("compared_with", report.reference_file);
  json.key("environment");
  write_environment(&json, report.environment, {});
  json.field("partial", report.partial);
}

std::string finished(JsonWriter& json) { return json.end_object().take() + "\n"; }

// From "prefill.0.tokens" and its neighbours.
void add_own(const std::map<std::string, double>& numbers, std::map<std::string, double>* out) {
  const auto at = [&](const std::string& key) -> std::optional<double> {
    const auto found = numbers.find(key);
    return found == numbers.end() ? std::nullopt : std::optional(found->second);
  };
  for (const Kind kind : kKinds) {
    for (std::size_t i = 0;; ++i) {
      const std::string prefix = std::string(kind_name(kind)) + "." + std::to_string(i) + ".";
      const auto speed = at(prefix + "tok_per_s");
      if (!speed) break;
      SpeedFigure figure;
      figure.kind = kind;
      figure.tokens = static_cast<std::uint32_t>(at(prefix + "tokens").value_or(0));
      figure.batch = static_cast<std::uint32_t>(at(prefix + "batch").value_or(0));
      figure.context = static_cast<std::uint32_t>(at(prefix + "context").value_or(0));
      (*out)[short_name(figure)] = *speed;
    }
  }
}

bool is_short_name(const std::string& name) {
  const bool prefill = name.rfind("pp", 0) == 0;
  return (prefill || name.rfind("tg", 0) == 0) && name.size() > 2 &&
         name.find_first_not_of(prefill ? "0123456789" : "0123456789_", 2) == std::string::npos;
}

}  // namespace

std::string short_name(const SpeedFigure& figure) {
  if (figure.kind == Kind::kDecode) {
    return "tg" + std::to_string(figure.batch) + "_" + std::to_string(figure.context);
  }
  return (figure.kind == Kind::kPrefill ? "pp" : "matrices") + std::to_string(figure.tokens);
}

Share share_of(const EngineReport& report, const SpeedFigure& figure) {
  const Ceilings& c = report.ceilings;
  const double rate = figure.tok_per_s.median;
  if (figure.kind != Kind::kDecode) {
    const double macs = rate * static_cast<double>(report.cost.linear_macs);
    if (c.bf16_macs_per_s > 0) return {"bf16", macs / c.bf16_macs_per_s};
    return c.int8_macs_per_s > 0 ? Share{"int8", macs / c.int8_macs_per_s} : Share{};
  }
  if (c.weights_bytes_per_s <= 0) return {};
  const double bytes = report.cost.decode_bytes(figure.batch, figure.context, figure.steps);
  return {"memory", rate / figure.batch * bytes / c.weights_bytes_per_s};
}

Result<std::map<std::string, double>> read_reference(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return invalid_argument("--compare " + path + ": cannot be opened");
  std::string text(std::istreambuf_iterator<char>(file), {});
  if (text.size() > cli::kMaxInputBytes) {
    return invalid_argument("--compare " + path + ": longer than 16 MiB");
  }
  const auto numbers = cli::parse_json_numbers(text);
  if (!numbers.ok()) return numbers.status().with_context("--compare " + path);
  std::map<std::string, double> reference;
  add_own(*numbers, &reference);
  for (const auto& [name, value] : *numbers) {
    if (is_short_name(name)) reference[name] = value;
  }
  if (reference.empty()) {
    return invalid_argument("--compare " + path +
                            ": no figures in it; give a result of kvd-bench engine --json, or an "
                            "object with numbers named as pp512 or tg8_0");
  }
  return reference;
}

std::string report_text(const EngineReport& report) {
  std::vector<std::string> header = {"", "tok/s", "p10", "p90", "n", "of limit"};
  if (!report.reference.empty()) {
    header.emplace_back("reference");
    header.emplace_back("ratio");
  }
  header.emplace_back("");
  cli::TableWriter table(header);
  for (const SpeedFigure& figure : report.figures) {
    const Spread& s = figure.tok_per_s;
    std::vector<std::string> row = {figure.name(), rate(s.median), rate(s.p10), rate(s.p90),
                                    std::to_string(s.n)};
    const Share share = share_of(report, figure);
    row.push_back(share.part > 0 ? fixed(share.part * 100, 0) + " % " + share.of : "-");
    if (!report.reference.empty()) {
      const double* other = reference_of(report, figure);
      row.push_back(other != nullptr ? rate(*other) : "-");
      row.push_back(other != nullptr ? fixed(s.median / *other, 2) : "-");
    }
    row.emplace_back(figure.disturbed ? "disturbed by other processes" : "");
    table.add_row(std::move(row));
  }
  std::string text = base_name(report.file) + ", " + report.kernels + " kernels, " +
                     std::to_string(report.threads) + " threads\n" + table.render();
  const Ceilings& c = report.ceilings;
  if (c.memory_bytes_per_s > 0) {
    text += "limits: " + fixed(c.memory_bytes_per_s / 1e9, 1) + " GB/s of memory, " +
            fixed(c.weights_bytes_per_s / 1e9, 1) + " GB/s over the weights of a step (" +
            fixed(static_cast<double>(report.cost.step_bytes) / 1e6, 1) + " MB)";
    if (c.int8_macs_per_s > 0) {
      text += ", " + fixed(c.int8_macs_per_s / 1e9, 0) + " GMAC/s int8, " +
              fixed(c.fp32_macs_per_s / 1e9, 0) + " fp32";
    }
    if (c.bf16_macs_per_s > 0) text += ", " + fixed(c.bf16_macs_per_s / 1e9, 0) + " bf16";
    text += c.disturbed ? " (disturbed by other processes: too low)\n" : "\n";
  }
  if (report.partial) text += "ended early: not all figures were measured\n";
  return text;
}

std::string report_json(const EngineReport& report) {
  JsonWriter json;
  json.begin_object();
  add_body(json, report);
  return json.end_object().take();
}

std::string report_csv(const EngineReport& report) {
  std::string text = "phase,tokens,batch,context,tok_per_s,p10,p90,n,rejected,disturbed\n";
  for (const SpeedFigure& figure : report.figures) {
    const Spread& s = figure.tok_per_s;
    const bool decode = figure.kind == Kind::kDecode;
    text += std::string(kind_name(figure.kind)) + "," +
            (decode ? "," + std::to_string(figure.batch) + "," + std::to_string(figure.context)
                    : std::to_string(figure.tokens) + ",,");
    text += "," + fixed(s.median, 2) + "," + fixed(s.p10, 2) + "," + fixed(s.p90, 2) + "," +
            std::to_string(s.n) + "," + std::to_string(figure.rejected) + "," +
            (figure.disturbed ? "true" : "false") + "\n";
  }
  return text;
}

std::string start_event(const EngineReport& report) {
  JsonWriter json;
  json.begin_object().field("event", "start");
  add_head(json, report);
  return finished(json);
}

std::string result_event(const EngineReport& report, const SpeedFigure& figure) {
  JsonWriter json;
  json.begin_object().field("event", "result");
  json.field("phase", kind_name(figure.kind)).key("figure");
  add_figure(json, report, figure);
  return finished(json);
}

std::string end_event(const EngineReport& report) {
  JsonWriter json;
  json.begin_object().field("event", "end");
  add_body(json, report);
  return finished(json);
}

}  // namespace kvd::tools
