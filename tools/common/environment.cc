#include "common/environment.h"

#include <sys/utsname.h>

#include <cmath>
#include <fstream>
#include <sstream>
#include <thread>

#include "cli/version.h"

namespace kvd::tools {
namespace {

std::string trimmed(const std::string& text) {
  const auto first = text.find_first_not_of(" \t\r\n");
  if (first == std::string::npos) return {};
  return text.substr(first, text.find_last_not_of(" \t\r\n") - first + 1);
}

// The value of "name : value" or "name: value"; "" when no line has it.
std::string value_of(const std::string& path, const std::string& name) {
  std::ifstream file(path);
  std::string line;
  while (std::getline(file, line)) {
    if (!line.starts_with(name)) continue;
    const auto colon = line.find(':');
    if (colon == std::string::npos || trimmed(line.substr(0, colon)) != name) continue;
    return trimmed(line.substr(colon + 1));
  }
  return {};
}

std::uint64_t number_of(const std::string& text) {
  std::uint64_t number = 0;
  std::istringstream(text) >> number;
  return number;
}

// "always [madvise] never" -> "madvise"
std::string chosen(const std::string& text) {
  const auto open = text.find('['), close = text.find(']');
  if (open == std::string::npos || close == std::string::npos || close < open) return text;
  return text.substr(open + 1, close - open - 1);
}

}  // namespace

std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return trimmed(line);
}

Environment capture_environment() {
  Environment out;
  out.cpu = value_of("/proc/cpuinfo", "model name");
  out.cores = std::thread::hardware_concurrency();
  out.memory_bytes = number_of(value_of("/proc/meminfo", "MemTotal")) * 1024;
  utsname name{};
  if (uname(&name) == 0) {
    out.kernel = std::string(name.sysname) + " " + name.release;
    out.machine = name.machine;
  }
  const std::string net = "/proc/sys/net/";
  out.tcp_congestion_control = first_line(net + "ipv4/tcp_congestion_control");
  out.tcp_rmem = first_line(net + "ipv4/tcp_rmem");
  out.tcp_wmem = first_line(net + "ipv4/tcp_wmem");
  out.rmem_max = first_line(net + "core/rmem_max");
  out.wmem_max = first_line(net + "core/wmem_max");
  out.transparent_huge_pages = chosen(first_line("/sys/kernel/mm/transparent_hugepage/enabled"));
  out.huge_pages_total = number_of(value_of("/proc/meminfo", "HugePages_Total"));
  out.huge_pages_free = number_of(value_of("/proc/meminfo", "HugePages_Free"));
  out.governor = first_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor");
  std::istringstream load(first_line("/proc/loadavg"));
  if (!(load >> out.load_1 >> out.load_5 >> out.load_15)) {
    out.load_1 = out.load_5 = out.load_15 = std::nan("");
  }
  return out;
}

void write_environment(cli::JsonWriter* json, const Environment& environment,
                       const std::vector<std::pair<std::string, std::string>>& more) {
  json->begin_object();
  json->field("kvd_version", cli::version())
      .field("commit", cli::commit())
      .field("build_type", cli::build_type());
  for (const auto& [name, text] : more) json->field(name, text);
  json->field("cpu", environment.cpu)
      .field("cores", environment.cores)
      .field("memory_bytes", environment.memory_bytes)
      .field("kernel", environment.kernel)
      .field("machine", environment.machine)
      .field("tcp_congestion_control", environment.tcp_congestion_control)
      .field("tcp_rmem", environment.tcp_rmem)
      .field("tcp_wmem", environment.tcp_wmem)
      .field("rmem_max", environment.rmem_max)
      .field("wmem_max", environment.wmem_max)
      .field("transparent_huge_pages", environment.transparent_huge_pages)
      .field("huge_pages_total", environment.huge_pages_total)
      .field("huge_pages_free", environment.huge_pages_free)
      .field("governor", environment.governor);
  json->key("load_average").begin_array();
  json->value(environment.load_1).value(environment.load_5).value(environment.load_15);
  json->end_array().end_object();
}

}  // namespace kvd::tools
