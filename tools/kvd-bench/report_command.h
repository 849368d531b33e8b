// `kvd-bench report RESULT...`: one HTML page.
#pragma once

#include "kvd-bench/verb.h"

namespace kvd::tools {

Verb report_verb();

}  // namespace kvd::tools
