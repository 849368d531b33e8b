// `kvd-route generate`: prompts from stdin, results to stdout, in the form that was asked for.
#pragma once

#include "cli/program.h"
#include "kvd-route/options.h"

namespace kvd::tools {

// Returns the exit code.
int run_generate(const RouteFields& fields, const cli::Invocation& invocation);

}  // namespace kvd::tools
