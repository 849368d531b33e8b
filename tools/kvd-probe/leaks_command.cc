#include <memory>

#include "cli/exit_code.h"
#include "cli/output.h"
#include "cli/signals.h"
#include "kvd-probe/verbs.h"
#include "node/admin.h"

namespace kvd::tools {
namespace {

struct LeaksFields {
  node::AdminOptions options;
  std::string worker;
};

cli::Command leaks_command(LeaksFields* f) {
  cli::Command command;
  command.name = "leaks";
  command.log_level = LogLevel::kWarn;
  command.summary = "list a worker's KV pages that somebody may still write";
  command.positionals = {{"WORKER", "the worker's control address", &f->worker}};
  command.options.group(
      "Waiting", {cli::duration_option("timeout", {&f->options.timeout}, "wait for the answer")});
  command.options.group("Security", {cli::text_option("keys", "FILE", &f->options.keys,
                                                      "CURVE keys of the control channel")
                                         .hidden_in_brief()});
  command.examples =
      "kvd-probe leaks 127.0.0.1:7200\n"
      "kvd-probe leaks 127.0.0.1:7200 --json | jq '.leases[] | select(.state == \"quarantined\")'";
  return command;
}

std::string age_text(std::uint64_t age_ms) {
  return std::to_string(age_ms / 1000) + "." + std::to_string(age_ms / 100 % 10) + " s";
}

std::string leases_text(const proto::Leases& all) {
  std::string text = std::to_string(all.quarantined) + " quarantined, " +
                     std::to_string(all.leased) + " leased, " + std::to_string(all.sealed) +
                     " sealed, " + std::to_string(all.free) + " free\n";
  if (all.leases.empty()) return text;
  cli::TableWriter table({"pages", "count", "state", "room", "peer", "age", "missing proof"});
  for (const proto::LeaseReport& lease : all.leases) {
    table.add_row({lease.ranges, std::to_string(lease.pages),
                   lease.quarantined ? "quarantined" : "leased", lease.room ? hex(lease.room) : "-",
                   lease.peer ? hex(lease.peer) : "-", age_text(lease.age_ms),
                   lease.missing.empty() ? "-" : lease.missing});
  }
  return text + table.render();
}

int run_leaks(LeaksFields& fields, const cli::Invocation& invocation) {
  fields.options.interrupt = &cli::count_signals();
  const auto worker = node::list_leases(fields.worker, fields.options);
  if (!worker.ok()) return cli::report_error(kProbeProgram, worker.status(), invocation.json);
  const std::string text =
      invocation.json ? node::worker_leases_json(*worker) + "\n" : leases_text(worker->leases);
  if (const Status status = cli::write_out(text); !status.ok()) {
    return cli::report_error(kProbeProgram, status, false);
  }
  return worker->leases.quarantined == 0 ? cli::kExitOk : cli::kExitCheckFailed;
}

}  // namespace

Verb leaks_verb() {
  auto fields = std::make_shared<LeaksFields>();
  return {leaks_command(fields.get()),
          [fields](const cli::Invocation& invocation) { return run_leaks(*fields, invocation); }};
}

}  // namespace kvd::tools
