// Cells of the coverage that cannot be met, each with its reason. A hit of one fails the run as
// well.
#pragma once

#include <string_view>

namespace kvd::sim {

// "" when the cell can be met, and therefore must be.
std::string_view why_impossible(std::string_view cell);

}  // namespace kvd::sim
