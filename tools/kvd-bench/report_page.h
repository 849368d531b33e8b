// The page of `kvd-bench report`: plots and tables of results, those of the same measurement beside
// each other.
#pragma once

#include <string>
#include <vector>

#include "kvd-bench/results.h"

namespace kvd::tools {

// Cases of one file are neighbours; the files' order is the runs' order, and the first run is the
// one that others are compared with.
std::string report_page(const std::string& title, const std::vector<ResultCase>& cases);

}  // namespace kvd::tools
