// kvd-bench: measures.
#include <vector>

#include "cli/exit_code.h"
#include "cli/program.h"
#include "kvd-bench/compare_command.h"
#include "kvd-bench/engine_command.h"
#include "kvd-bench/pages_command.h"
#include "kvd-bench/report_command.h"
#include "kvd-bench/verb.h"

namespace kvd::tools {
namespace {

int bench_main(int argc, const char* const* argv) {
  const std::vector<Verb> verbs = {engine_verb(), pages_verb(), compare_verb(), report_verb()};
  cli::Program program;
  program.name = kBenchProgram;
  program.summary = "measure the engine and the transfer of KV";
  for (const Verb& verb : verbs) program.commands.push_back(verb.command);
  const cli::Invocation invocation = cli::parse(program, argc, argv);
  return invocation.exit ? *invocation.exit : verbs[invocation.command].run(invocation);
}

}  // namespace
}  // namespace kvd::tools

int main(int argc, char** argv) { return kvd::tools::bench_main(argc, argv); }
