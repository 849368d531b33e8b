// kvd-probe: looks into a host and a running cluster.
#include <vector>

#include "fabric/provider_details.h"
#include "kvd-probe/verbs.h"

namespace kvd::tools {
namespace {

int probe_main(int argc, const char* const* argv) {
  const std::vector<Verb> verbs = {list_verb(), doctor_verb(), serve_verb(),
                                   ping_verb(), mesh_verb(),   leaks_verb()};
  cli::Program program;
  program.name = kProbeProgram;
  program.summary = "look into a host and a running cluster";
  program.version_fields = {{"libfabric", fabric::libfabric_version()}};
  for (const Verb& verb : verbs) program.commands.push_back(verb.command);
  const cli::Invocation invocation = cli::parse(program, argc, argv);
  return invocation.exit ? *invocation.exit : verbs[invocation.command].run(invocation);
}

}  // namespace
}  // namespace kvd::tools

int main(int argc, char** argv) { return kvd::tools::probe_main(argc, argv); }
