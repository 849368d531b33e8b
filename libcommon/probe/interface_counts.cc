#include "probe/interface_counts.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>

namespace kvd::probe {
namespace {

namespace fs = std::filesystem;
using proto::InterfaceCount;

constexpr const char* kRdma = "/sys/class/infiniband";
constexpr std::size_t kMostDevices = 256;

std::string read_text(const fs::path& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

// The number in front; 0 when there is none.
std::uint64_t number_in(const fs::path& path) {
  std::istringstream text(read_text(path));
  std::int64_t number = 0;
  text >> number;
  return text && number > 0 ? static_cast<std::uint64_t>(number) : 0;
}

std::vector<fs::path> entries(const fs::path& directory) {
  std::vector<fs::path> out;
  std::error_code error;
  for (fs::directory_iterator it(directory, error), end; !error && it != end; it.increment(error)) {
    if (out.size() < kMostDevices) out.push_back(it->path());
  }
  return out;
}

std::vector<fs::path> rdma_ports() {
  std::vector<fs::path> out;
  for (const fs::path& device : entries(kRdma)) {
    for (const fs::path& port : entries(device / "ports")) out.push_back(port);
  }
  return out;
}

// port_*_data counts words of four bytes (Documentation/ABI, sysfs-class-infiniband); EFA has bytes
// in hw_counters.
InterfaceCount read_rdma_port(const fs::path& port) {
  InterfaceCount out;
  out.name = port.parent_path().parent_path().filename().string() + "/" + port.filename().string();
  out.rdma = true;
  out.sent_bytes = 4 * number_in(port / "counters/port_xmit_data");
  out.received_bytes = 4 * number_in(port / "counters/port_rcv_data");
  if (out.sent_bytes == 0) out.sent_bytes = number_in(port / "hw_counters/tx_bytes");
  if (out.received_bytes == 0) out.received_bytes = number_in(port / "hw_counters/rx_bytes");
  double gbits = 0;  // "100 Gb/sec (4X EDR)"
  std::istringstream(read_text(port / "rate")) >> gbits;
  if (gbits > 0) out.bits_per_s = static_cast<std::uint64_t>(gbits * 1e9);
  return out;
}

}  // namespace

std::vector<InterfaceCount> parse_net_dev(const std::string& text) {
  std::vector<InterfaceCount> out;
  std::istringstream lines(text);
  std::string line;
  while (std::getline(lines, line)) {
    const auto colon = line.find(':');
    if (colon == std::string::npos) continue;
    const auto first = line.find_first_not_of(' ');
    InterfaceCount one;
    one.name = line.substr(first, colon - first);
    std::istringstream numbers(line.substr(colon + 1));
    // Received: bytes packets errs drop fifo frame compressed multicast; then sent: bytes ...
    std::uint64_t skipped = 0;
    numbers >> one.received_bytes;
    for (int i = 0; i < 7; ++i) numbers >> skipped;
    numbers >> one.sent_bytes;
    if (numbers && !one.name.empty() && one.name.size() <= 64) out.push_back(std::move(one));
  }
  return out;
}

std::vector<InterfaceCount> read_interface_counts() {
  std::vector<InterfaceCount> out = parse_net_dev(read_text("/proc/thread-self/net/dev"));
  for (InterfaceCount& one : out) {
    const fs::path net = fs::path("/sys/class/net") / one.name;
    one.mtu_bytes =
        static_cast<std::uint32_t>(std::min<std::uint64_t>(number_in(net / "mtu"), UINT32_MAX));
    std::error_code error;
    if (fs::exists(net / "device", error)) one.bits_per_s = 1'000'000 * number_in(net / "speed");
  }
  for (const fs::path& port : rdma_ports()) out.push_back(read_rdma_port(port));
  std::stable_sort(out.begin(), out.end(), [](const InterfaceCount& a, const InterfaceCount& b) {
    return std::max(a.sent_bytes, a.received_bytes) > std::max(b.sent_bytes, b.received_bytes);
  });
  if (out.size() > proto::ProbeBounds::kInterfaces) out.resize(proto::ProbeBounds::kInterfaces);
  return out;
}

std::vector<InterfaceCount> interface_growth(const std::vector<InterfaceCount>& before,
                                             const std::vector<InterfaceCount>& after) {
  std::vector<InterfaceCount> out;
  for (const InterfaceCount& now : after) {
    const auto then = std::find_if(before.begin(), before.end(), [&](const InterfaceCount& one) {
      return one.name == now.name && one.rdma == now.rdma;
    });
    if (then == before.end() || now.sent_bytes < then->sent_bytes ||
        now.received_bytes < then->received_bytes) {
      continue;
    }
    out.push_back(now);
    out.back().sent_bytes -= then->sent_bytes;
    out.back().received_bytes -= then->received_bytes;
  }
  return out;
}

std::uint32_t active_rdma_ports() {
  std::uint32_t out = 0;
  for (const fs::path& port : rdma_ports()) {
    if (read_text(port / "state").find("ACTIVE") != std::string::npos) ++out;
  }
  return out;
}

}  // namespace kvd::probe
