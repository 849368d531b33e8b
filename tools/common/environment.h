// What a figure depends on besides the program: host, kernel, memory, TCP, load, and this build.
// Each result of kvd-bench carries it, so that two results can be told to be comparable.
//
// Linux: /proc and /sys. What cannot be read is empty, or not a number. One thread.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "cli/output.h"

namespace kvd::tools {

struct Environment {
  std::string cpu;  // as /proc/cpuinfo names it
  std::uint32_t cores = 0;
  std::uint64_t memory_bytes = 0;
  std::string kernel, machine;
  std::string tcp_congestion_control;                  // of this network namespace
  std::string tcp_rmem, tcp_wmem, rmem_max, wmem_max;  // bytes: least, default, most
  std::string transparent_huge_pages;                  // the chosen one of always, madvise, never
  std::uint64_t huge_pages_total = 0, huge_pages_free = 0;
  std::string governor;  // of CPU 0
  double load_1 = 0, load_5 = 0, load_15 = 0;
};
Environment capture_environment();

// One object, with the version, commit and build type of this program. `more`: what the caller
// knows, name and text (provider, libfabric).
void write_environment(cli::JsonWriter* json, const Environment& environment,
                       const std::vector<std::pair<std::string, std::string>>& more);

// The first line of a file without white space at its ends; "" when it cannot be read.
std::string first_line(const std::string& path);

}  // namespace kvd::tools
