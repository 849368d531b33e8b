#include "common/daemon.h"

#include <malloc.h>
#include <sys/resource.h>

#include <limits>

#include "cli/exit_code.h"
#include "cli/output.h"
#include "cli/ready.h"
#include "cli/signals.h"

namespace kvd::tools {
namespace {

// What a daemon needs of its process. Best effort: it also runs without.
void prepare_process() {
  // Each peer's endpoint costs several descriptors.
  rlimit files{};
  if (getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur < files.rlim_max) {
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
  }
  // A few threads that rarely allocate: one arena keeps the resident set from creeping.
  mallopt(M_ARENA_MAX, 1);
}

}  // namespace

void add_daemon_options(cli::OptionTable* table, node::CommonOptions* options,
                        Duration* more_dead_after) {
  std::vector<Duration*> dead_after = {&options->dead_after};
  if (more_dead_after != nullptr) dead_after.push_back(more_dead_after);
  table->group(
      "Addresses",
      {cli::address_option("http", &options->http, "HTTP: OpenAI API, /health, /metrics"),
       cli::address_option("listen", &options->listen, "control channel; port 0 picks one"),
       cli::address_option("join", &options->join, "registry of workers to use")});
  table->group("Waiting",
               {cli::duration_option("timeout", {&options->timeout}, "wait for other workers")
                    .hidden_in_brief(),
                cli::duration_option("request-timeout", {&options->request_timeout},
                                     "deadline of a request that names none")
                    .hidden_in_brief(),
                cli::duration_option("dead-after", dead_after,
                                     "silence after which a worker is taken for dead")
                    .hidden_in_brief(),
                cli::int_option("ready-fd", "N", &options->ready_fd,
                                "write the ready line to this file descriptor too", 0,
                                std::numeric_limits<int>::max())
                    .with_default("none")
                    .hidden_in_brief()});
}

void add_security_options(cli::OptionTable* table, node::CommonOptions* options) {
  table->group(
      "Security",
      {cli::text_option("keys", "FILE", &options->keys, "CURVE keys of the control channel")
           .hidden_in_brief(),
       cli::text_option("api-key", "KEY", &options->api_key, "what HTTP clients must present")
           .as_secret()
           .hidden_in_brief(),
       cli::flag_option("insecure", &options->insecure,
                        "allow addresses that other hosts can reach without keys")
           .hidden_in_brief()});
}

int run_daemon(const std::string& program, const cli::Invocation& invocation,
               const node::CommonOptions& options, const Start& start) {
  const auto failed = [&](const Status& status) {
    return cli::report_error(program, status, invocation.json);
  };
  if (const Status status = cli::check_ready_fd(options.ready_fd); !status.ok()) {
    return failed(status);
  }
  prepare_process();
  const std::atomic<int>& signals = cli::count_signals();
  auto daemon = start();
  if (!daemon.ok()) return failed(daemon.status());
  const Status told = cli::announce_ready((*daemon)->ready_line(), options.ready_fd);
  if (!told.ok()) return failed(told);
  const Status status = (*daemon)->run(signals);
  return status.ok() ? cli::kExitOk : failed(status);
}

}  // namespace kvd::tools
