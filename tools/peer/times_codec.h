// ProbeResult.times and .rounds: little-endian uint64. Pure.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "peer/pages_sender.h"

namespace kvd::tools {

std::string pack_number(std::uint64_t number);
// 0 beyond the end.
std::uint64_t number_at(const std::string& bytes, std::size_t at);

std::string pack_times(const std::vector<SentTimes>& times);
// What is no whole request at the end is left out.
std::vector<SentTimes> unpack_times(const std::string& bytes);

}  // namespace kvd::tools
