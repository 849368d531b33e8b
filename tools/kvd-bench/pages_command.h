// `kvd-bench pages`: transfers of KV pages, shaped by a model, against plain writes.
#pragma once

#include "kvd-bench/verb.h"

namespace kvd::tools {

Verb pages_verb();

}  // namespace kvd::tools
