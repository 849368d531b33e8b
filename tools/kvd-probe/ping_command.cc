#include <algorithm>
#include <iostream>
#include <memory>

#include "base/units.h"
#include "cli/exit_code.h"
#include "cli/output.h"
#include "cli/progress.h"
#include "cli/signals.h"
#include "cli/version.h"
#include "kvd-probe/ping_report.h"
#include "kvd-probe/verbs.h"

namespace kvd::tools {
namespace {

constexpr std::uint64_t kLeast = 8, kMost = 1u << 20;

struct PingFields {
  PingOptions options;
  PingGates gates;
  bool ndjson = false;
};

void add_choosing(cli::OptionTable* table, PingFields* f) {
  PingOptions* o = &f->options;
  table
      ->group(
          "Choosing",
          {cli::text_option("provider", "P", &o->provider, "what carries the writes")
               .with_default("the best that both have"),
           cli::flag_option("require-rdma", &o->require_rdma, "refuse TCP and local"),
           cli::text_option("fabric-addr", "HOST", &o->fabric_addr,
                            "address of this host's interface")
               .with_default("of the route to PEER"),
           cli::text_option("device", "NAME", &o->device, "network device, as libfabric names it")
               .with_default("any"),
           cli::flag_option("reverse", &o->session.reverse, "let PEER write")})
      .group("Measuring",
             {cli::sizes_option("bytes", &o->bytes, "sizes of a write", kLeast, kMost),
              cli::duration_option("time", {&o->time}, "time for each size"),
              cli::count_option("depth", &o->depth, "most writes in flight", 1,
                                proto::ProbeBounds::kDepth)
                  .with_default("the best of three"),
              cli::flag_option("spin", &o->session.spin, "never sleep, on both sides"),
              cli::real_option("min-gbps", "GBIT", &f->gates.min_gbps,
                               "status 1 when the best size moves fewer Gbit/s", 0, 1e6)
                  .with_default("none"),
              cli::real_option("max-p99-us", "US", &f->gates.max_p99_us,
                               "status 1 when a write of the first size takes longer", 0, 1e9)
                  .with_default("none")});
}

cli::Command ping_command(PingFields* f) {
  PingOptions* o = &f->options;
  o->bytes = {4096, 65536, 1u << 20};
  cli::Command command;
  command.name = "ping";
  command.log_level = LogLevel::kError;
  command.summary = "write to a peer: latency, bandwidth, and the way that the bytes took";
  command.positionals = {
      {"PEER", "control address of a kvd-probe serve, or of a worker", &o->session.peer}};
  add_choosing(&command.options, f);
  command.options
      .group("Waiting", {cli::duration_option("timeout", {&o->session.timeout}, "wait for PEER"),
                         cli::duration_option("dead-after", {&o->session.dead_after},
                                              "silence after which PEER is taken for dead")})
      .group("Output", {cli::flag_option("ndjson", &f->ndjson, "print each size as an event")})
      .group("Security", {cli::text_option("keys", "FILE", &o->session.keys,
                                           "CURVE keys of the control channel")
                              .hidden_in_brief()});
  command.examples =
      "kvd-probe ping 10.0.0.2:7300\n"
      "kvd-probe ping 10.0.0.2:7200 --require-rdma --min-gbps 80\n"
      "kvd-probe ping 10.0.0.2:7300 --provider tcp --bytes 64KiB --json";
  return command;
}

std::string start_event(const PingFields& f) {
  cli::JsonWriter json;
  json.begin_object().field("event", "start").field("peer", f.options.session.peer);
  return json.field("version", cli::version()).end_object().take() + "\n";
}

int exit_of(const PingReport& report) {
  // Nothing was measured, or it was: what failed after the first write leaves results.
  if (!report.result.status.ok()) return cli::exit_code(report.result.status);
  const bool passed = std::all_of(report.gates.begin(), report.gates.end(),
                                  [](const GateOutcome& gate) { return gate.passed; });
  return passed ? cli::kExitOk : cli::kExitCheckFailed;
}

int run_ping_verb(PingFields& f, const cli::Invocation& invocation) {
  if (invocation.json && f.ndjson) {
    return cli::report_error(kProbeProgram,
                             invalid_argument("--json and --ndjson: give one of them"), true);
  }
  std::sort(f.options.bytes.begin(), f.options.bytes.end());
  const std::atomic<int>& signals = cli::count_signals();
  f.options.session.stop = [&signals] { return signals.load() != 0; };
  f.options.session.notice = [](const std::string& text) {
    std::cerr << kProbeProgram << ": " << text << std::endl;
  };
  Status out = f.ndjson ? cli::write_out(start_event(f)) : Status();
  PingResult result;
  std::size_t told = 0;
  cli::Progress progress("sizes", f.options.bytes.size());
  run_ping(f.options, &result, [&](const PingResult& now) {
    progress.update(now.sizes.size());
    for (; f.ndjson && told < now.sizes.size() && out.ok(); ++told) {
      out = cli::write_out(size_event(now.sizes[told]));
    }
  });
  const PingReport report{f.options, result, ping_findings(result, cli::version()),
                          check_gates(f.gates, result)};
  const bool nothing =
      !result.status.ok() && result.first_write_ns == 0 &&
      std::none_of(report.findings.begin(), report.findings.end(), [](const doctor::Finding& one) {
        return one.outcome == doctor::Outcome::kFail;
      });
  if (invocation.json || f.ndjson) {
    if (out.ok()) out = cli::write_out(ping_json(report, f.ndjson ? "end" : ""));
  } else if (!nothing && out.ok()) {
    out = cli::write_out(ping_text(report));
  }
  if (!out.ok()) return cli::report_error(kProbeProgram, out, false);
  if (!result.status.ok()) {
    std::cerr << kProbeProgram << ": " << result.status.message() << std::endl;
  }
  return exit_of(report);
}

}  // namespace

Verb ping_verb() {
  auto fields = std::make_shared<PingFields>();
  return {ping_command(fields.get()), [fields](const cli::Invocation& invocation) {
            return run_ping_verb(*fields, invocation);
          }};
}

}  // namespace kvd::tools
