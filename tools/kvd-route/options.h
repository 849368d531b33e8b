// The option tables of kvd-route's subcommands and the fields they fill.
#pragma once

#include <string>

#include "cli/program.h"
#include "node/admin.h"
#include "node/generate.h"
#include "node/options.h"

namespace kvd::tools {

// Both forms of input and output that only the program knows.
struct GenerateForm {
  bool lines = false;   // --lines
  bool ndjson = false;  // --ndjson
};

struct RouteFields {
  node::RouteOptions serve;
  node::GenerateOptions generate;
  GenerateForm form;
  node::AdminOptions workers;
  node::AdminOptions drain;
  std::string drain_worker;
  bool drain_wait = false;
  std::string key_role, key_address;
};

// The order of Program::commands.
enum RouteCommand : std::size_t { kServe, kGenerate, kWorkers, kDrain, kKeygen };

// `fields` must outlive the program.
cli::Program route_program(RouteFields* fields);

}  // namespace kvd::tools
