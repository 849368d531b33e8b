// What the plan of `kvd-bench pages` means to both sides.
#pragma once

#include <string>
#include <vector>

#include "fabric/fabric.h"
#include "kvd-bench/pages_options.h"
#include "peer/sender_spec.h"

namespace kvd::tools {

// --provider, or the best one here. Errors: as fabric::explain_missing().
Result<std::string> choose_pages_provider(const PagesOptions& options);
SenderSpec sender_spec(const PagesPlan& plan, bool isolated);
// The calling thread, and those it starts, stay on pin[index]; nothing when there is none.
void pin_to(const std::vector<int>& pin, std::size_t index);

}  // namespace kvd::tools
