// The neighbour a mistyped name was meant to be.
#pragma once

#include <string>
#include <vector>

namespace kvd::cli {

// The nearest of `names`, by insertions, deletions, replacements and swaps of neighbours; empty
// when none is near enough to be worth naming.
std::string nearest(const std::string& typed, const std::vector<std::string>& names);

}  // namespace kvd::cli
