// The verbs of kvd-probe.
#pragma once

#include "common/verb.h"

namespace kvd::tools {

constexpr const char* kProbeProgram = "kvd-probe";

Verb list_verb();
Verb doctor_verb();
Verb serve_verb();
Verb ping_verb();
Verb mesh_verb();
Verb leaks_verb();

}  // namespace kvd::tools
