#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <iostream>
#include <memory>

#include "cli/exit_code.h"
#include "cli/output.h"
#include "cli/progress.h"
#include "cli/signals.h"
#include "kvd-probe/mesh_run.h"
#include "kvd-probe/ping_run.h"
#include "kvd-probe/verbs.h"
#include "peer/provider_choice.h"
#include "proto/ops_messages.h"

namespace kvd::tools {
namespace {

constexpr std::size_t kMostPeers = 256;
constexpr std::uint64_t kLeast = 4096, kMost = 1u << 20;

struct MeshFields {
  MeshOptions options;
  std::string html;
};

cli::Command mesh_command(MeshFields* f) {
  MeshOptions* o = &f->options;
  cli::Command command;
  command.name = "mesh";
  command.log_level = LogLevel::kError;
  command.summary = "measure every pair of peers, and mark those that stand out";
  cli::Positional peers;
  peers.metavar = "PEER...";
  peers.help = "control addresses of kvd-probe serve, as they reach each other, or of workers";
  peers.rest = &o->peers;
  command.positionals = {peers};
  command.options
      .group("Measuring",
             {cli::text_option("provider", "P", &o->provider, "what carries the writes")
                  .with_default("the best that both have"),
              cli::bytes_option("bytes", &o->bytes, "size of a write, for the bandwidth", kLeast,
                                kMost),
              cli::duration_option("time", {&o->time}, "time for each pair")})
      .group("Waiting", {cli::duration_option("timeout", {&o->timeout}, "wait for the peers"),
                         cli::duration_option("dead-after", {&o->dead_after},
                                              "silence after which a peer is taken for dead")})
      .group("Output", {cli::text_option("html", "FILE", &f->html, "write a heat map")})
      .group("Security",
             {cli::text_option("keys", "FILE", &o->keys, "CURVE keys of the control channel")
                  .hidden_in_brief()});
  command.examples =
      "kvd-probe mesh 10.0.0.1:7300 10.0.0.2:7300 10.0.0.3:7300\n"
      "kvd-probe mesh 10.0.0.1:7300 10.0.0.2:7200 --html mesh.html\n"
      "kvd-probe mesh 10.0.0.1:7300 10.0.0.2:7300 --json | jq '.pairs[] | select(.slow)'";
  return command;
}

int exit_of(const MeshResult& result) {
  const auto any = [&](auto is) {
    return std::any_of(result.pairs.begin(), result.pairs.end(), is);
  };
  if (!any([](const MeshPair& pair) { return pair.done; })) {
    // Nothing was measured; a reason that all share is the status of the run.
    const auto none = [](const MeshPair& pair) { return pair.error_code == "no_provider"; };
    const bool all = std::all_of(result.pairs.begin(), result.pairs.end(), none);
    return all && !result.pairs.empty() ? cli::kExitNoProvider : cli::kExitUnreachable;
  }
  if (any([](const MeshPair& pair) { return !pair.done; })) return cli::kExitPartial;
  const bool marked = any([](const MeshPair& pair) { return pair.slow || pair.downgraded; });
  return marked ? cli::kExitCheckFailed : cli::kExitOk;
}

Status check(const MeshOptions& o) {
  if (o.peers.size() < 2 || o.peers.size() > kMostPeers) {
    return invalid_argument("a mesh has 2 to 256 peers: name the control address of each");
  }
  if (o.time.count() / 1'000'000 > proto::ProbeBounds::kMs || o.time.count() < 1'000'000) {
    return invalid_argument("--time: from 1ms to 10m");
  }
  return check_provider_name(o.provider);
}

Status write_html(const std::string& path, const std::string& text, std::ios::openmode mode) {
  errno = 0;
  std::ofstream file(path, mode);
  file << text;
  file.close();
  if (file) return {};
  const std::string why = errno != 0 ? std::strerror(errno) : "cannot be written";
  return invalid_argument("--html " + path + ": " + why);
}

int run_mesh_verb(MeshFields& f, const cli::Invocation& invocation) {
  const auto failed = [&](const Status& status) {
    return cli::report_error(kProbeProgram, status, invocation.json);
  };
  if (const Status status = check(f.options); !status.ok()) return failed(status);
  if (!f.html.empty()) {  // before minutes are spent on what could not be written
    const Status status = write_html(f.html, "", std::ios::app);
    if (!status.ok()) return failed(status);
  }
  const std::atomic<int>& signals = cli::count_signals();
  const std::size_t peers = f.options.peers.size();
  cli::Progress progress("pairs", peers * (peers - 1));
  f.options.stop = [&signals] { return signals.load() != 0; };
  f.options.notice = [](const std::string& text) {
    std::cerr << kProbeProgram << ": " << text << std::endl;
  };
  f.options.progress = [&progress](std::size_t done) { progress.update(done); };
  MeshResult result;
  const Status status = run_mesh(f.options, &result);
  if (!status.ok() && result.pairs.empty()) return failed(status);
  Status out = cli::write_out(invocation.json ? mesh_json(result) : mesh_text(result));
  if (out.ok() && !f.html.empty()) out = write_html(f.html, mesh_html(result), std::ios::trunc);
  if (!out.ok()) return cli::report_error(kProbeProgram, out, false);
  return status.ok() ? exit_of(result) : cli::report_error(kProbeProgram, status, false);
}

}  // namespace

Verb mesh_verb() {
  auto fields = std::make_shared<MeshFields>();
  return {mesh_command(fields.get()), [fields](const cli::Invocation& invocation) {
            return run_mesh_verb(*fields, invocation);
          }};
}

}  // namespace kvd::tools
