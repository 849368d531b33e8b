#include "kvd-bench/pages_report.h"

#include <algorithm>
#include <cstdio>

#include "base/units.h"
#include "cli/output.h"
#include "common/measure.h"
#include "fabric/provider_details.h"
#include "transfer/digest.h"

namespace kvd::tools {
namespace {

using Pick = double (*)(const RequestTimes&);

struct Stage {
  const char* name;
  const char* text;
  Pick pick;
};
constexpr Stage kStages[] = {
    {"latency_ns", "latency", [](const RequestTimes& t) { return t.latency; }},
    {"control_ns", "control", [](const RequestTimes& t) { return t.control; }},
    {"post_ns", "post", [](const RequestTimes& t) { return t.post; }},
    {"wire_ns", "wire", [](const RequestTimes& t) { return t.wire; }},
    {"commit_ns", "commit", [](const RequestTimes& t) { return t.commit; }},
    {"digest_ns", "digest", [](const RequestTimes& t) { return t.digest; }},
    {"visible_ns", "visible", [](const RequestTimes& t) { return t.visible; }},
};

std::vector<double> sorted(const PagesResult& result, Pick pick) {
  std::vector<double> out;
  out.reserve(result.requests.size());
  for (const RequestTimes& times : result.requests) out.push_back(pick(times));
  std::sort(out.begin(), out.end());
  return out;
}

// The smallest value that so large a share is not above: exact, of all values.
double at(const std::vector<double>& values, double fraction) {
  if (values.empty()) return 0;
  const double rank = fraction * static_cast<double>(values.size());
  return values[std::min(values.size() - 1, static_cast<std::size_t>(rank))];
}

void write_percentiles(cli::JsonWriter* json, const char* name, const std::vector<double>& values) {
  json->key(name).begin_object();
  json->field("p50", at(values, 0.5))
      .field("p90", at(values, 0.9))
      .field("p99", at(values, 0.99))
      .field("p999", at(values, 0.999))
      .field("max", values.empty() ? 0.0 : values.back())
      .field("n", std::uint64_t{values.size()});
  json->end_object();
}

template <typename Value>
std::vector<double> of_pairs(const PagesResult& result, Value value) {
  std::vector<double> out;
  for (const RoundPair& pair : result.pairs) out.push_back(value(pair));
  return out;
}

std::vector<double> rates(const PagesResult& r) {
  return of_pairs(r, [](const RoundPair& p) { return p.bytes_per_s; });
}
std::vector<double> ceilings(const PagesResult& r) {
  return of_pairs(r, [](const RoundPair& p) { return p.ceiling_bytes_per_s; });
}
std::vector<double> ratios(const PagesResult& r) {
  return of_pairs(r, [](const RoundPair& p) { return p.ratio(); });
}
std::vector<double> cpu(const PagesResult& r) {
  return of_pairs(r, [](const RoundPair& p) { return p.cpu_ns_per_gib; });
}
std::vector<double> ceiling_cpu(const PagesResult& r) {
  return of_pairs(r, [](const RoundPair& p) { return p.ceiling_cpu_ns_per_gib; });
}

// Rounds below two thirds of the median: a transport with two modes shows here.
double slow_share(const std::vector<double>& values) {
  if (values.empty()) return 0;
  const double limit = spread_of(values).median * 2 / 3;
  const auto slow =
      std::count_if(values.begin(), values.end(), [&](double v) { return v < limit; });
  return static_cast<double>(slow) / static_cast<double>(values.size());
}

const char* wait_mode(const PagesResult& result) {
  return result.plan.options.spin ? "spin" : "wait";
}

void write_spread(cli::JsonWriter* json, const char* name, const std::vector<double>& values) {
  const Spread spread = spread_of(values);
  json->key(name).begin_object();
  json->field("p10", spread.p10).field("p90", spread.p90).field("n", std::uint64_t{spread.n});
  json->end_object();
}

void write_what(cli::JsonWriter* json, const PagesPlan& plan) {
  const PagesOptions& o = plan.options;
  json->field("shape", plan.shape.name)
      .field("mode", o.groups ? "groups" : "pages")
      .field("tokens", plan.tokens.text())
      .field("tp", o.tp)
      .field("page_size", plan.layout.page_size)
      .field("page_bytes", plan.layout.page_bytes())
      .field("layers", plan.layout.layers)
      .field("fragmentation", o.fragmentation)
      .field("concurrency", o.concurrency);
  json->key("rate");
  if (o.rate) {
    json->value(*o.rate);
  } else {
    json->null();
  }
  json->field("digest", transfer::to_string(o.digest))
      .field("pool_bytes", plan.layout.page_bytes() * plan.pool_pages);
}

void write_cold(cli::JsonWriter* json, const PagesResult& result) {
  json->key("cold").begin_object();
  json->field("start_ns", result.cold.start_ns)
      .field("register_ns", result.cold.register_ns)
      .field("connect_ns", result.cold.connect_ns)
      .field("first_request_ns", result.cold.first_request_ns);
  json->end_object();
}

void write_speed(cli::JsonWriter* json, const PagesResult& result) {
  const Spread ratio = spread_of(ratios(result));
  const Interval interval = median_interval(ratios(result));
  json->field("bytes_per_s", spread_of(rates(result)).median)
      .field("ceiling_bytes_per_s", spread_of(ceilings(result)).median)
      .field("ceiling_1mib_bytes_per_s", spread_of(result.ceiling_1mib).median)
      .field("write_bytes", result.ceiling.write_bytes)
      .field("pieces", result.ceiling.pieces)
      .field("ceiling_depth", result.ceiling.depth)
      .field("ratio_to_ceiling", ratio.median);
  json->key("ratio_interval").begin_object();
  json->field("low", interval.low).field("high", interval.high);
  json->end_object();
  write_spread(json, "ratio_spread", ratios(result));
  write_spread(json, "spread", rates(result));
  write_spread(json, "ceiling_spread", ceilings(result));
  json->field("slow_rounds", slow_share(rates(result)))
      .field("ceiling_slow_rounds", slow_share(ceilings(result)))
      .field("tight", result.tight);
}

void write_result(cli::JsonWriter* json, const PagesResult& result,
                  const Environment& environment) {
  json->field("kind", "pages").field("schema", 1);
  json->field("provider", result.provider).key("peer");
  const std::string& peer = result.plan.options.peer;
  if (peer.empty()) {
    json->null();
  } else {
    json->value(peer);
  }
  json->field("commit_clock", result.shared_clock ? "shared" : "half_round_trip");
  write_what(json, result.plan);
  json->field("pages", result.pages)
      .field("runs", result.runs)
      .field("writes", result.writes)
      .field("bytes", result.bytes);
  write_speed(json, result);
  for (const Stage& stage : kStages)
    write_percentiles(json, stage.name, sorted(result, stage.pick));
  std::vector<double> isolated = result.isolated_commit_ns;
  std::sort(isolated.begin(), isolated.end());
  write_percentiles(json, "commit_isolated_ns", isolated);
  json->field("wait_mode", wait_mode(result))
      .field("cpu_ns_per_gib", spread_of(cpu(result)).median)
      .field("ceiling_cpu_ns_per_gib", spread_of(ceiling_cpu(result)).median);
  const auto side = [&](auto pick) {
    return spread_of(of_pairs(result,
                              [&](const RoundPair& p) {
                                return pick(p.cpu) / static_cast<double>(p.bytes) * (1u << 30);
                              }))
        .median;
  };
  json->field("sender_cpu_ns_per_gib", side([](const CpuTimes& c) { return c.sender_ns; }))
      .field("receiver_cpu_ns_per_gib", side([](const CpuTimes& c) { return c.receiver_ns; }));
  write_cold(json, result);
  json->key("cpu_round_trip_ns");
  if (result.cpu_round_trip_before_ns && result.cpu_round_trip_after_ns) {
    json->begin_object()
        .field("before", *result.cpu_round_trip_before_ns)
        .field("after", *result.cpu_round_trip_after_ns);
    json->end_object();
  } else {
    json->null();
  }
  json->field("verified", result.verified)
      .field("copies", result.copies)
      .field("huge_pages", result.huge_pages.both())
      .field("sender_huge_pages", device::to_string(result.huge_pages.sender))
      .field("receiver_huge_pages", device::to_string(result.huge_pages.receiver))
      .field("partial", result.partial);
  json->key("environment");
  write_environment(
      json, environment,
      {{"libfabric", fabric::libfabric_version()}, {"libfabric_provider", result.libfabric_name}});
}

std::string gbps(double bytes_per_s) {
  char text[32];
  std::snprintf(text, sizeof text, "%.2f GB/s", bytes_per_s / 1e9);
  return text;
}

std::string number(const char* format, double value) {
  char text[48];
  std::snprintf(text, sizeof text, format, value);
  return text;
}

// On `local` the sender's pool is a memfd, which may cost it what other memory has.
std::string no_huge_pages(const PagesResult& result) {
  using device::HugePages;
  const bool sender = result.huge_pages.sender == HugePages::kNone;
  const bool both = sender && result.huge_pages.receiver == HugePages::kNone;
  std::string out = "no huge pages for the ";
  out += both ? "pools" : sender ? "sender's pool" : "receiver's pool";
  out += ": copies are slower";
  const std::string hint =
      sender && result.provider == "local" ? device::shared_huge_pages_hint() : "";
  return hint.empty() ? out : out + "; it is shared memory: " + hint;
}

std::string micros(double ns) { return number("%.1f", ns / 1e3); }

}  // namespace

std::string pages_json(const PagesResult& result, const Environment& environment) {
  cli::JsonWriter json;
  json.begin_object();
  write_result(&json, result, environment);
  json.end_object();
  return json.take();
}

std::string pages_start_event(const PagesPlan& plan, const Environment& environment) {
  cli::JsonWriter json;
  json.begin_object().field("event", "start").field("kind", "pages");
  write_what(&json, plan);
  json.key("environment");
  write_environment(&json, environment, {});
  return json.end_object().take() + "\n";
}

std::string pages_interval_event(const PagesResult& result) {
  const RoundPair& pair = result.pairs.back();
  cli::JsonWriter json;
  json.begin_object()
      .field("event", "interval")
      .field("pair", std::uint64_t{result.pairs.size()})
      .field("bytes_per_s", pair.bytes_per_s)
      .field("ceiling_bytes_per_s", pair.ceiling_bytes_per_s)
      .field("cpu_ns_per_gib", pair.cpu_ns_per_gib)
      .field("ceiling_cpu_ns_per_gib", pair.ceiling_cpu_ns_per_gib);
  return json.end_object().take() + "\n";
}

std::string pages_end_event(const PagesResult& result, const Environment& environment) {
  cli::JsonWriter json;
  json.begin_object().field("event", "end");
  write_result(&json, result, environment);
  return json.end_object().take() + "\n";
}

std::string pages_csv(const PagesResult& result, const Environment& environment) {
  std::string head =
      "provider,shape,page_bytes,pages,runs,writes,bytes,fragmentation,concurrency,wait_mode,"
      "bytes_per_s,p10,p90,ceiling_bytes_per_s,ceiling_1mib_bytes_per_s,write_bytes,ratio_to_"
      "ceiling,"
      "latency_p50_ns,latency_p99_ns,cpu_ns_per_gib,ceiling_cpu_ns_per_gib,congestion_control\n";
  const Spread rate = spread_of(rates(result));
  const std::vector<double> latency = sorted(result, kStages[0].pick);
  std::string row;
  const auto add = [&row](const std::string& cell) { row += (row.empty() ? "" : ",") + cell; };
  add(result.provider);
  add(result.plan.shape.name);
  add(std::to_string(result.plan.layout.page_bytes()));
  for (const double value : {result.pages, result.runs, result.writes, result.bytes}) {
    add(number("%.6g", value));
  }
  add(number("%g", result.plan.options.fragmentation));
  add(std::to_string(result.plan.options.concurrency));
  add(wait_mode(result));
  for (const double value :
       {rate.median, rate.p10, rate.p90, spread_of(ceilings(result)).median,
        spread_of(result.ceiling_1mib).median, static_cast<double>(result.ceiling.write_bytes)}) {
    add(number("%.0f", value));
  }
  add(number("%.4f", spread_of(ratios(result)).median));
  for (const double value : {at(latency, 0.5), at(latency, 0.99), spread_of(cpu(result)).median,
                             spread_of(ceiling_cpu(result)).median}) {
    add(number("%.0f", value));
  }
  add(environment.tcp_congestion_control);
  return head + row + "\n";
}

std::string pages_text(const PagesResult& result, const Environment& environment) {
  const PagesPlan& plan = result.plan;
  const Spread rate = spread_of(rates(result)), ratio = spread_of(ratios(result));
  const Interval interval = median_interval(ratios(result));
  std::string out = plan.shape.name + " over " + result.provider + " (" + result.libfabric_name +
                    ", " + environment.tcp_congestion_control + ", " + wait_mode(result) +
                    "): " + number("%.6g", result.pages) + " pages of " +
                    format_bytes(plan.layout.page_bytes()) + " in " + number("%.4g", result.runs) +
                    " runs, " + number("%.4g", result.writes) + " writes of " +
                    format_bytes(result.ceiling.write_bytes) + " a request\n\n";
  if (!plan.options.peer.empty()) {
    out += "sent by        " + plan.options.peer +
           (result.shared_clock ? "" : ", on another clock: commit is half a round trip") + "\n";
  }
  out += "KV pages       " + gbps(rate.median) + "  [" + gbps(rate.p10) + ", " + gbps(rate.p90) +
         "], " + std::to_string(rate.n) + " rounds\n";
  out += "plain writes   " + gbps(spread_of(ceilings(result)).median) + ", at 1 MiB " +
         gbps(spread_of(result.ceiling_1mib).median) + "\n";
  out += "ratio          " + number("%.3f", ratio.median) + "  [" + number("%.3f", interval.low) +
         ", " + number("%.3f", interval.high) + "] at 95 %" +
         (result.tight ? "" : ", wider than wanted") + "\n";
  out += "CPU per GiB    " + number("%.3f s", spread_of(cpu(result)).median / 1e9) +
         ", plain writes " + number("%.3f s", spread_of(ceiling_cpu(result)).median / 1e9) + "\n";
  out += "slow rounds    " + number("%.0f %%", 100 * slow_share(rates(result))) +
         ", plain writes " + number("%.0f %%", 100 * slow_share(ceilings(result))) + "\n";
  if (result.cpu_round_trip_before_ns && result.cpu_round_trip_after_ns) {
    out += "CPUs apart     " + number("%.0f ns", *result.cpu_round_trip_before_ns) + " before, " +
           number("%.0f ns", *result.cpu_round_trip_after_ns) +
           " after (below 350 they share a cache)\n";
  }
  out += "cold           start " + micros(result.cold.start_ns) + " us, registration " +
         micros(result.cold.register_ns) + " us, link " + micros(result.cold.connect_ns) +
         " us, first request " + micros(result.cold.first_request_ns) + " us\n";
  out += "verified       " + std::to_string(result.verified) + " pages, outside the timed part\n\n";
  cli::TableWriter table({"us", "p50", "p90", "p99", "p99.9"});
  const auto add = [&table](const char* name, const std::vector<double>& v) {
    table.add_row(
        {name, micros(at(v, 0.5)), micros(at(v, 0.9)), micros(at(v, 0.99)), micros(at(v, 0.999))});
  };
  for (const Stage& stage : kStages) add(stage.text, sorted(result, stage.pick));
  std::vector<double> isolated = result.isolated_commit_ns;
  std::sort(isolated.begin(), isolated.end());
  add("commit alone", isolated);
  out += table.render();
  if (!result.huge_pages.both()) out += "\n" + no_huge_pages(result) + "\n";
  return out;
}

}  // namespace kvd::tools
