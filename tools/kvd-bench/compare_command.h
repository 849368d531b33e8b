// `kvd-bench compare A [B]`: two results, or thresholds.
#pragma once

#include "kvd-bench/verb.h"

namespace kvd::tools {

Verb compare_verb();

}  // namespace kvd::tools
