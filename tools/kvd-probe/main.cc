// kvd-probe: looks into a running cluster.
#include "cli/exit_code.h"
#include "cli/output.h"
#include "cli/program.h"
#include "cli/signals.h"
#include "node/admin.h"

namespace kvd::tools {
namespace {

constexpr const char* kProgram = "kvd-probe";

struct ProbeFields {
  node::AdminOptions leaks;
  std::string leaks_worker;
};

// The order of Program::commands.
enum ProbeCommand : std::size_t { kLeaks };

cli::Command leaks_command(ProbeFields* f) {
  cli::Command command;
  command.name = "leaks";
  command.log_level = LogLevel::kWarn;
  command.summary = "list a worker's KV pages that somebody may still write";
  command.positionals = {{"WORKER", "the worker's control address", &f->leaks_worker}};
  command.options.group(
      "Waiting", {cli::duration_option("timeout", {&f->leaks.timeout}, "wait for the answer")});
  command.options.group("Security", {cli::text_option("keys", "FILE", &f->leaks.keys,
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

int run_leaks(ProbeFields& fields, const cli::Invocation& invocation) {
  fields.leaks.interrupt = &cli::count_signals();
  const auto worker = node::list_leases(fields.leaks_worker, fields.leaks);
  if (!worker.ok()) return cli::report_error(kProgram, worker.status(), invocation.json);
  const std::string text =
      invocation.json ? node::worker_leases_json(*worker) + "\n" : leases_text(worker->leases);
  if (const Status status = cli::write_out(text); !status.ok()) {
    return cli::report_error(kProgram, status, false);
  }
  return worker->leases.quarantined == 0 ? cli::kExitOk : cli::kExitCheckFailed;
}

}  // namespace

int probe_main(int argc, const char* const* argv) {
  ProbeFields fields;
  cli::Program program;
  program.name = kProgram;
  program.summary = "look into a running cluster";
  program.commands = {leaks_command(&fields)};
  const cli::Invocation invocation = cli::parse(program, argc, argv);
  if (invocation.exit) return *invocation.exit;
  switch (static_cast<ProbeCommand>(invocation.command)) {
    case kLeaks:
      return run_leaks(fields, invocation);
  }
  return cli::kExitUsage;
}

}  // namespace kvd::tools

int main(int argc, char** argv) { return kvd::tools::probe_main(argc, argv); }
