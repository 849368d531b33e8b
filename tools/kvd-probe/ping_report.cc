#include "kvd-probe/ping_report.h"

#include <cstdio>

#include "base/units.h"
#include "cli/output.h"
#include "cli/version.h"
#include "common/environment.h"
#include "common/measure.h"
#include "fabric/provider_details.h"
#include "kvd-probe/findings.h"

namespace kvd::tools {
namespace {

constexpr double kGib = 1u << 30;

std::string format(const char* pattern, double value) {
  char text[64];
  std::snprintf(text, sizeof text, pattern, value);
  return text;
}

// Percentiles without the samples to tell them are left out: the 999th of 1000 needs 1000.
bool told(const std::vector<double>& sorted, double share) {
  return static_cast<double>(sorted.size()) * (1 - share) >= 0.999;
}

void write_latency(cli::JsonWriter* json, const std::vector<double>& sorted) {
  json->key("latency_ns").begin_object();
  constexpr std::pair<const char*, double> kShares[] = {
      {"p50", 0.5}, {"p90", 0.9}, {"p99", 0.99}, {"p999", 0.999}};
  for (const auto& [name, share] : kShares) {
    json->key(name);
    told(sorted, share) ? json->value(percentile(sorted, share)) : json->null();
  }
  json->field("n", std::uint64_t{sorted.size()}).end_object();
}

void write_rate(cli::JsonWriter* json, const char* name, const std::vector<double>& rates) {
  json->key(name);
  if (rates.empty()) {
    json->null();
    return;
  }
  const Interval interval = median_interval(rates);
  json->begin_object().field("bytes_per_s", spread_of(rates).median);
  json->field("low", interval.low).field("high", interval.high);
  json->field("n", std::uint64_t{rates.size()}).end_object();
}

void write_size_fields(cli::JsonWriter* json, const SizeResult& size) {
  json->field("bytes", size.bytes);
  write_latency(json, size.latency_ns);
  json->field("depth", size.depth).field("writes", size.writes);
  write_rate(json, "write", size.rates);
  write_rate(json, "read", size.read_rates);
}

void number_or_null(cli::JsonWriter* json, const char* name, double number, bool known) {
  json->key(name);
  known ? json->value(number) : json->null();
}

void write_interfaces(cli::JsonWriter* json, const char* name,
                      const std::vector<proto::InterfaceCount>& interfaces) {
  json->key(name).begin_array();
  for (const proto::InterfaceCount& one : interfaces) {
    json->begin_object().field("name", one.name).field("rdma", one.rdma);
    json->field("sent_bytes", one.sent_bytes).field("received_bytes", one.received_bytes);
    number_or_null(json, "bits_per_s", static_cast<double>(one.bits_per_s), one.bits_per_s != 0);
    json->end_object();
  }
  json->end_array();
}

void write_peer(cli::JsonWriter* json, const PingReport& report) {
  const PingResult& r = report.result;
  json->field("peer", report.options.session.peer);
  const auto text = [&](const char* name, const std::string& value) {
    json->key(name);
    value.empty() ? json->null() : json->value(value);
  };
  text("peer_program", r.peer ? r.peer->program : "");
  text("peer_version", r.peer ? r.peer->version : "");
  text("version", cli::version());
  text("provider", r.provider.name);
  text("provider_why", r.provider.why);
  text("libfabric", fabric::libfabric_version());
  text("peer_libfabric", r.opened.libfabric);
  text("fabric_address", r.source);
  json->field("reverse", r.reverse).field("limited", r.limited());
}

double per_gib(const PingResult& r, double ns) { return ns / r.payload_bytes * kGib; }

void write_measured(cli::JsonWriter* json, const PingResult& r) {
  number_or_null(json, "connect_ns", r.open_ns, r.open_ns != 0);
  number_or_null(json, "first_write_ns", r.first_write_ns, r.first_write_ns != 0);
  const bool steady = !r.sizes.empty() && !r.sizes.front().latency_ns.empty();
  number_or_null(json, "cold_ratio",
                 steady ? r.first_write_ns / percentile(r.sizes.front().latency_ns, 0.5) : 0,
                 steady && r.first_write_ns != 0);
  json->key("sizes").begin_array();
  for (const SizeResult& size : r.sizes) {
    json->begin_object();
    write_size_fields(json, size);
    json->end_object();
  }
  json->end_array().key("verified").begin_object();
  json->field("pages", r.verified_pages).field("bytes", r.verified_bytes).end_object();
  const bool timed = r.payload_bytes != 0;
  json->key("cpu_ns_per_gib").begin_object();
  number_or_null(json, "here", timed ? per_gib(r, r.cpu_here_ns) : 0, timed);
  number_or_null(json, "there", timed ? per_gib(r, r.cpu_there_ns) : 0, timed && r.cpu_there_known);
  json->end_object().key("path").begin_object();
  json->field("payload_bytes", r.payload_bytes);
  write_interfaces(json, "here", r.here);
  write_interfaces(json, "there", r.there);
  json->end_object();
}

std::string gigabytes(const std::vector<double>& rates) {
  if (rates.empty()) return "-";
  const Interval interval = median_interval(rates);
  return format("%.3f", spread_of(rates).median / 1e9) + format(" (%.3f", interval.low / 1e9) +
         format("-%.3f)", interval.high / 1e9);
}

std::string micros(const std::vector<double>& sorted, double share) {
  return told(sorted, share) ? format("%.1f", percentile(sorted, share) / 1e3) : "-";
}

std::string sizes_text(const PingResult& r) {
  cli::TableWriter table({"size", "p50 us", "p90 us", "p99 us", "samples", "depth",
                          "write GB/s (95 %)", "read GB/s (95 %)"});
  for (const SizeResult& size : r.sizes) {
    table.add_row({format_bytes(size.bytes), micros(size.latency_ns, 0.5),
                   micros(size.latency_ns, 0.9), micros(size.latency_ns, 0.99),
                   std::to_string(size.latency_ns.size()), std::to_string(size.depth),
                   gigabytes(size.rates), gigabytes(size.read_rates)});
  }
  return table.render();
}

}  // namespace

std::string size_event(const SizeResult& size) {
  cli::JsonWriter json;
  json.begin_object().field("event", "size");
  write_size_fields(&json, size);
  return json.end_object().take() + "\n";
}

std::string ping_json(const PingReport& report, const std::string& event) {
  const PingResult& r = report.result;
  cli::JsonWriter json;
  json.begin_object();
  if (!event.empty()) json.field("event", event);
  write_peer(&json, report);
  json.field("complete", r.status.ok());
  write_measured(&json, r);
  json.key("findings").begin_array();
  for (const doctor::Finding& finding : report.findings) write_finding(&json, finding);
  json.end_array().key("gates").begin_array();
  for (const GateOutcome& gate : report.gates) {
    json.begin_object().field("name", gate.name).field("limit", gate.limit);
    json.field("value", gate.value).field("passed", gate.passed).end_object();
  }
  json.end_array().key("environment");
  write_environment(&json, capture_environment(), {});
  if (!r.status.ok()) {
    json.key("error").begin_object().field("code", to_string(r.status.code()));
    json.field("message", r.status.message()).end_object();
  }
  return json.end_object().take() + "\n";
}

std::string ping_text(const PingReport& report) {
  const PingResult& r = report.result;
  std::string out =
      report.options.session.peer + " by " + r.provider.name + ": " + r.provider.why + "\n";
  out += "session " + format("%.2f ms", r.open_ns / 1e6) + ", first write " +
         format("%.3f ms", r.first_write_ns / 1e6) + (r.reverse ? ", the far side writes\n" : "\n");
  if (!r.sizes.empty()) out += sizes_text(r);
  if (r.payload_bytes != 0) {
    out += "cpu a GiB: here " + format("%.3f s", per_gib(r, r.cpu_here_ns) / 1e9) + ", there " +
           (r.cpu_there_known ? format("%.3f s", per_gib(r, r.cpu_there_ns) / 1e9)
                              : std::string("not told")) +
           "\n";
  }
  if (r.verified_pages != 0) {
    out += std::to_string(r.verified_pages) + " pages, " + format_bytes(r.verified_bytes) +
           ", were where they belong, byte by byte\n";
  }
  for (const doctor::Finding& finding : report.findings) {
    if (finding.outcome != doctor::Outcome::kSkip) out += finding_text(finding);
  }
  for (const GateOutcome& gate : report.gates) {
    out += std::string(gate.passed ? "PASS    " : "FAIL    ") + gate.name +
           format(": %.3f", gate.value) + format(", limit %.3f\n", gate.limit);
  }
  return out;
}

}  // namespace kvd::tools
