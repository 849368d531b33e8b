#include "sim/impossible.h"

namespace kvd::sim {

std::string_view why_impossible(std::string_view) { return {}; }

}  // namespace kvd::sim
