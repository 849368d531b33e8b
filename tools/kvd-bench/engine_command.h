// `kvd-bench engine`: prefill and decode speed of a model on this host.
#pragma once

#include "kvd-bench/verb.h"

namespace kvd::tools {

Verb engine_verb();

}  // namespace kvd::tools
