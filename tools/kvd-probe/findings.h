// How a finding is told, whichever verb found it. Pure.
#pragma once

#include <string>

#include "cli/output.h"
#include "kvd-probe/doctor/checks.h"

namespace kvd::tools {

// One object, as kvd-json(5) has it.
void write_finding(cli::JsonWriter* json, const doctor::Finding& finding);
// Lines for people: what was read, what it means, what to do.
std::string finding_text(const doctor::Finding& finding);

}  // namespace kvd::tools
