#include "common/memory.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>

namespace kvd::tools {
namespace {

constexpr std::uint64_t kUnknown = std::numeric_limits<std::uint64_t>::max();

// "max" is no number: no limit.
std::uint64_t number_in(const char* path) {
  std::ifstream file(path);
  std::uint64_t out = 0;
  return file >> out ? out : kUnknown;
}

// The number behind `name` in a file of such lines.
std::uint64_t number_of(const char* path, const std::string& name) {
  std::ifstream file(path);
  std::string word, rest;
  for (std::uint64_t out = 0; file >> word >> out; std::getline(file, rest)) {
    if (word == name) return out;
  }
  return kUnknown;
}

}  // namespace

std::uint64_t available_memory() {
  const std::uint64_t kib = number_of("/proc/meminfo", "MemAvailable:");
  const std::uint64_t host = kib == kUnknown ? kUnknown : kib * 1024;
  const std::uint64_t limit = number_in("/sys/fs/cgroup/memory.max");
  const std::uint64_t current = number_in("/sys/fs/cgroup/memory.current");
  if (limit == kUnknown || current == kUnknown) return host;
  const std::uint64_t cache = number_of("/sys/fs/cgroup/memory.stat", "inactive_file");
  const std::uint64_t used = cache == kUnknown ? current : current - std::min(current, cache);
  return std::min(host, limit - std::min(limit, used));
}

}  // namespace kvd::tools
