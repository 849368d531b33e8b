#include <limits>
#include <memory>

#include "cli/version.h"
#include "common/daemon.h"
#include "kvd-probe/serve_daemon.h"
#include "kvd-probe/verbs.h"

namespace kvd::tools {
namespace {

cli::Command serve_command(ServeOptions* o) {
  cli::Command command;
  command.name = "serve";
  command.summary = "be the far side of ping, mesh and kvd-bench pages";
  node::CommonOptions* common = &o->common;
  command.options
      .group(
          "Addresses",
          {cli::address_option("listen", &common->listen, "control channel; port 0 picks one"),
           cli::text_option("fabric-addr", "HOST", &o->fabric_addr, "address that is written to")
               .with_default("the host of --listen"),
           cli::text_option("device", "NAME", &o->device, "network device, as libfabric names it")
               .with_default("any")})
      .group("Choosing",
             {cli::text_option("provider", "P", &o->provider, "offer this one only")
                  .with_default("all that are here"),
              cli::flag_option("require-rdma", &o->require_rdma, "offer no TCP and no local")})
      .group("Waiting",
             {cli::duration_option("timeout", {&common->timeout}, "wait for a peer of a mesh"),
              cli::int_option("ready-fd", "N", &common->ready_fd,
                              "write the ready line to this file descriptor too", 0,
                              std::numeric_limits<int>::max())
                  .with_default("none")
                  .hidden_in_brief()})
      .group("Security",
             {cli::text_option("keys", "FILE", &common->keys, "CURVE keys of the control channel")
                  .hidden_in_brief(),
              cli::flag_option("insecure", &common->insecure,
                               "allow an address that other hosts can reach without keys")
                  .hidden_in_brief()});
  command.examples =
      "kvd-probe serve\n"
      "kvd-probe serve --listen 10.0.0.2:7300 --insecure";
  return command;
}

}  // namespace

Verb serve_verb() {
  auto options = std::make_shared<ServeOptions>();
  options->common.program = kProbeProgram;
  options->common.version = cli::version();
  options->common.listen = "127.0.0.1:7300";
  return {serve_command(options.get()), [options](const cli::Invocation& invocation) {
            return run_daemon(kProbeProgram, invocation, options->common,
                              [&] { return start_serve(*options); });
          }};
}

}  // namespace kvd::tools
