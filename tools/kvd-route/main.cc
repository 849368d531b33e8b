// kvd-route: the router, and its operator's verbs.
#include "cli/exit_code.h"
#include "cli/output.h"
#include "cli/program.h"
#include "cli/signals.h"
#include "common/daemon.h"
#include "kvd-route/generate.h"
#include "kvd-route/options.h"

namespace kvd::tools {
namespace {

constexpr const char* kProgram = "kvd-route";

int run_serve(const RouteFields& fields, const cli::Invocation& invocation) {
  return run_daemon(kProgram, invocation, fields.serve.common,
                    [&] { return node::start_route(fields.serve); });
}

std::string load_text(std::uint32_t number, const node::WorkerRow& row) {
  return row.state == "unreachable" ? "-" : std::to_string(number);
}

int run_workers(RouteFields& fields, const cli::Invocation& invocation) {
  fields.workers.interrupt = &cli::count_signals();
  const auto rows = node::list_workers(fields.workers);
  if (!rows.ok()) return cli::report_error(kProgram, rows.status(), invocation.json);
  std::string text;
  if (invocation.json) {
    text = node::worker_rows_json(*rows) + "\n";
  } else {
    cli::TableWriter table(
        {"worker", "role", "state", "model", "running", "queue", "free pages", "pages"});
    for (const auto& row : *rows) {
      table.add_row({row.address, row.role, row.state, row.model, load_text(row.load.running, row),
                     load_text(row.load.queue, row), load_text(row.load.free_pages, row),
                     load_text(row.load.total_pages, row)});
    }
    text = table.render();
  }
  if (const Status status = cli::write_out(text); !status.ok()) {
    return cli::report_error(kProgram, status, false);
  }
  for (const auto& row : *rows) {
    if (row.state == "unreachable") return cli::kExitUnreachable;
  }
  return cli::kExitOk;
}

int run_drain(RouteFields& fields, const cli::Invocation& invocation) {
  fields.drain.interrupt = &cli::count_signals();
  const auto row = node::drain_worker(fields.drain_worker, fields.drain_wait, fields.drain);
  if (!row.ok()) return cli::report_error(kProgram, row.status(), invocation.json);
  const std::string text = invocation.json ? node::worker_row_json(*row)
                                           : row->address + " " + row->state + ", running " +
                                                 std::to_string(row->load.running) + ", queue " +
                                                 std::to_string(row->load.queue);
  const Status status = cli::write_out(text + "\n");
  return status.ok() ? cli::kExitOk : cli::report_error(kProgram, status, false);
}

int run_keygen(const RouteFields& fields, const cli::Invocation& invocation) {
  const auto pair = node::make_keys();
  if (!pair.ok()) return cli::report_error(kProgram, pair.status(), invocation.json);
  std::string peer_line = pair->public_key + " " + fields.key_role;
  if (!fields.key_address.empty()) peer_line += " " + fields.key_address;
  std::string text;
  if (invocation.json) {
    cli::JsonWriter json;
    json.begin_object().field("public_key", pair->public_key);
    json.field("secret_key", pair->secret_key).field("peer_line", peer_line);
    text = json.end_object().take();
  } else {
    text = "# Secret: for this worker's own --keys file, readable by nobody else (mode 600).\n" +
           pair->public_key + " self " + pair->secret_key +
           "\n# The line that its peers have in theirs:\n# " + peer_line;
  }
  const Status status = cli::write_out(text + "\n");
  return status.ok() ? cli::kExitOk : cli::report_error(kProgram, status, false);
}

}  // namespace

int route_main(int argc, const char* const* argv) {
  RouteFields fields;
  const cli::Program program = route_program(&fields);
  const cli::Invocation invocation = cli::parse(program, argc, argv);
  if (invocation.exit) return *invocation.exit;
  switch (static_cast<RouteCommand>(invocation.command)) {
    case kServe:
      return run_serve(fields, invocation);
    case kGenerate:
      return run_generate(fields, invocation);
    case kWorkers:
      return run_workers(fields, invocation);
    case kDrain:
      return run_drain(fields, invocation);
    case kKeygen:
      return run_keygen(fields, invocation);
  }
  return cli::kExitUsage;
}

}  // namespace kvd::tools

int main(int argc, char** argv) { return kvd::tools::route_main(argc, argv); }
