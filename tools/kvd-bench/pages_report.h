// What `kvd-bench pages` says: text, one JSON document, NDJSON events, or CSV.
#pragma once

#include <string>

#include "common/environment.h"
#include "kvd-bench/pages_run.h"

namespace kvd::tools {

std::string pages_text(const PagesResult& result, const Environment& environment);
std::string pages_json(const PagesResult& result, const Environment& environment);  // no newline
std::string pages_csv(const PagesResult& result, const Environment& environment);
// Lines of --ndjson.
std::string pages_start_event(const PagesPlan& plan, const Environment& environment);
std::string pages_interval_event(const PagesResult& result);
std::string pages_end_event(const PagesResult& result, const Environment& environment);

}  // namespace kvd::tools
