// The host around the NIC, and the path that TCP takes.
#include <algorithm>
#include <map>

#include "kvd-probe/doctor/check_list.h"

namespace kvd::doctor {
namespace {

struct Nic {
  std::string name;
  const PciFacts* pci;
};

std::vector<Nic> rdma_nics(const Inputs& in) {
  std::vector<Nic> out;
  for (const RdmaDevice& device : in.host.rdma) out.push_back({device.name, &device.pci});
  for (const CxiDevice& device : in.host.cxi) out.push_back({device.name, &device.pci});
  return out;
}

// Those that carry KV over TCP: of RoCE the RDMA checks tell.
std::vector<const NetDevice*> tcp_netdevs(const Inputs& in) {
  const std::vector<const NetDevice*> roce = roce_netdevs(in);
  std::vector<const NetDevice*> out;
  for (const NetDevice& net : in.host.net) {
    const bool other = std::find(roce.begin(), roce.end(), &net) != roce.end();
    if (net.physical && net.up() && !other) out.push_back(&net);
  }
  return out;
}

std::string lanes(double speed, std::uint64_t width) {
  std::string text = std::to_string(speed);
  text.resize(text.find('.') + 2);
  return text + " GT/s x" + std::to_string(width);
}

// The third of "4096 131072 6291456".
std::optional<std::uint64_t> largest(const Tree& tree, const std::string& path) {
  const std::vector<std::string> words = words_of(tree.read(path).text);
  return words.size() == 3 ? number_of(words[2]) : std::nullopt;
}

std::string allowed_cpus(const Tree& tree) {
  constexpr std::string_view kName = "Cpus_allowed_list:";
  for (const std::string& line : lines_of(tree.read("proc/self/status").text)) {
    if (!line.starts_with(kName)) continue;
    const std::vector<std::string> words = words_of(line);
    if (words.size() == 2) return words[1];
  }
  return "";
}

}  // namespace

void check_iommu(const Inputs& in, Verdict* out) {
  const bool groups = !in.tree.list("sys/kernel/iommu_groups").empty();
  for (const Nic& nic : rdma_nics(in)) {
    const std::string& type = nic.pci->iommu;
    if (type.empty()) {
      groups ? out->unknown(nic.name + ": the type of its IOMMU domain cannot be read",
                            "sudo dmesg | grep -i iommu; cat /proc/cmdline")
             : out->pass(nic.name + " is behind no IOMMU");
    } else {
      const std::string what = nic.name + ": IOMMU domain of type " + type;
      type.starts_with("DMA") ? out->warn(what) : out->pass(what);
    }
  }
  if (out->outcome() == Outcome::kSkip) out->skip("no RDMA device");
}

void check_pcie(const Inputs& in, Verdict* out) {
  std::vector<Nic> nics = rdma_nics(in);
  if (nics.empty()) {
    for (const NetDevice* net : tcp_netdevs(in)) nics.push_back({net->name, &net->pci});
  }
  for (const Nic& nic : nics) {
    const PciFacts& pci = *nic.pci;
    if (pci.width == 0 || pci.max_width == 0 || pci.max_speed_gts <= 0) continue;
    const std::string what = nic.name + " at " + pci.address + " trained to " +
                             lanes(pci.speed_gts, pci.width) + " of " +
                             lanes(pci.max_speed_gts, pci.max_width);
    pci.width < pci.max_width || pci.speed_gts < pci.max_speed_gts ? out->warn(what)
                                                                   : out->pass(what);
  }
  if (out->outcome() == Outcome::kSkip) out->skip("no NIC tells of a PCIe link");
}

void check_cpu_bind(const Inputs& in, Verdict* out) {
  const std::vector<int> allowed = cpu_list(allowed_cpus(in.tree));
  const std::vector<Nic> nics = rdma_nics(in);
  if (nics.empty()) return out->skip("no RDMA device");
  if (allowed.empty()) {
    return out->unknown("/proc/self/status tells no CPUs", "taskset -cp $$");
  }
  for (const Nic& nic : nics) {
    const std::vector<int> local = cpu_list(nic.pci->local_cpus);
    if (local.empty()) continue;
    const bool shared = std::any_of(local.begin(), local.end(), [&](int cpu) {
      return std::find(allowed.begin(), allowed.end(), cpu) != allowed.end();
    });
    const std::string what = nic.name + " is near CPUs " + nic.pci->local_cpus +
                             ", this process may use " + allowed_cpus(in.tree);
    shared ? out->pass(what) : out->warn(what);
  }
  if (out->outcome() == Outcome::kSkip) out->skip("no RDMA device tells its CPUs");
}

void check_cpu_gov(const Inputs& in, Verdict* out) {
  std::map<std::string, std::size_t> governors;
  for (const std::string& name : in.tree.list("sys/devices/system/cpu")) {
    if (!name.starts_with("cpu")) continue;
    const Text text = in.tree.read("sys/devices/system/cpu/" + name + "/cpufreq/scaling_governor");
    if (text.ok() && !text.text.empty()) ++governors[text.text];
  }
  for (const auto& [governor, cpus] : governors) {
    const std::string what = std::to_string(cpus) + " CPUs under governor " + governor;
    governor == "powersave" ? out->warn(what) : out->pass(what);
  }
  if (governors.empty()) out->skip("the kernel sets no CPU frequencies here");
}

void check_cpu_quota(const Inputs& in, Verdict* out) {
  const std::string path = cgroup_path(in.tree);
  const Text max = in.tree.read(path + "/cpu.max");
  if (max.access == Access::kAbsent) return out->skip("this cgroup has no CPU quota");
  if (!max.ok())
    return out->unknown("/" + path + "/cpu.max cannot be read", "cat /" + path + "/cpu.max");
  if (max.text.starts_with("max")) return out->pass("cpu.max " + max.text);
  if (!in.after) {
    return out->unknown("cpu.max " + max.text + ", one reading only", "cat /" + path + "/cpu.stat");
  }
  const auto throttled = grown(in, {"/nr_throttled"});
  throttled.empty()
      ? out->pass("cpu.max " + max.text + ", not throttled between two readings")
      : out->warn("cpu.max " + max.text + ", throttled " +
                  std::to_string(throttled.front().second) + " times between two readings");
}

void check_ports(const Inputs& in, Verdict* out) {
  constexpr std::uint64_t kFewest = 8192;
  const std::vector<std::string> words =
      words_of(in.tree.read("proc/sys/net/ipv4/ip_local_port_range").text);
  const auto low = words.size() == 2 ? number_of(words[0]) : std::nullopt;
  const auto high = words.size() == 2 ? number_of(words[1]) : std::nullopt;
  if (!low || !high || *high < *low) {
    return out->unknown("ip_local_port_range cannot be read",
                        "sysctl net.ipv4.ip_local_port_range");
  }
  const std::uint64_t ports = *high - *low + 1;
  std::uint64_t waiting = 0;
  for (const std::string& line : lines_of(in.tree.read("proc/net/sockstat").text)) {
    const std::size_t at = line.find(" tw ");
    if (line.starts_with("TCP:") && at != std::string::npos) {
      waiting = number_of(std::string_view(line).substr(at + 4)).value_or(0);
    }
  }
  const std::string what =
      std::to_string(ports) + " local ports, " + std::to_string(waiting) + " sockets in TIME_WAIT";
  ports<kFewest || waiting> ports / 2 ? out->warn(what) : out->pass(what);
}

void check_tcp_congestion(const Inputs& in, Verdict* out) {
  const Text name = in.tree.read("proc/sys/net/ipv4/tcp_congestion_control");
  if (!name.ok()) {
    return out->unknown("tcp_congestion_control cannot be read",
                        "sysctl net.ipv4.tcp_congestion_control");
  }
  const std::string what = "net.ipv4.tcp_congestion_control " + name.text;
  name.text.starts_with("bbr") ? out->warn(what) : out->pass(what);
}

void check_tcp_buffers(const Inputs& in, Verdict* out) {
  // What kvd has in flight to one peer over TCP.
  constexpr std::uint64_t kInFlight = 4u << 20;
  for (const char* name : {"tcp_rmem", "tcp_wmem"}) {
    const auto most = largest(in.tree, std::string("proc/sys/net/ipv4/") + name);
    const std::string label = std::string("net.ipv4.") + name;
    if (!most) {
      out->unknown(label + " cannot be read", "sysctl " + label);
      continue;
    }
    const std::string what = label + " grows to " + std::to_string(*most) + " bytes";
    *most < kInFlight ? out->warn(what + ", kvd keeps " + std::to_string(kInFlight) + " in flight")
                      : out->pass(what);
  }
}

void check_tcp_mtu(const Inputs& in, Verdict* out) {
  constexpr std::uint64_t kFastMbits = 25000, kStandard = 1500, kLeast = 1280;
  for (const NetDevice* net : tcp_netdevs(in)) {
    if (!net->mtu) continue;
    const std::string speed =
        net->mbits_per_s ? std::to_string(*net->mbits_per_s) + " Mbit/s" : "speed not told";
    const std::string what =
        net->name + " has MTU " + std::to_string(*net->mtu) + " (" + speed + ")";
    const bool fast = net->mbits_per_s && *net->mbits_per_s >= kFastMbits;
    *net->mtu < kLeast || (fast && *net->mtu <= kStandard) ? out->warn(what) : out->pass(what);
  }
  if (out->outcome() == Outcome::kSkip) out->skip("no network device for TCP is up");
}

// kvd/offloads/DEVICE: lines as `ethtool -k` prints them.
void check_tcp_offload(const Inputs& in, Verdict* out) {
  for (const NetDevice* net : tcp_netdevs(in)) {
    const Text features = in.tree.read("kvd/offloads/" + net->name);
    if (!features.ok()) {
      out->unknown(net->name + ": its offloads were not told", "ethtool -k " + net->name);
      continue;
    }
    std::vector<std::string> off;
    for (const char* name :
         {"tcp-segmentation-offload", "generic-segmentation-offload", "generic-receive-offload"}) {
      const std::size_t at = features.text.find(std::string(name) + ": off");
      if (at != std::string::npos) off.emplace_back(name);
    }
    off.empty() ? out->pass(net->name + ": segmentation and receive offloads are on")
                : out->warn(net->name + ": off: " + joined(off));
  }
  if (out->outcome() == Outcome::kSkip) out->skip("no network device for TCP is up");
}

}  // namespace kvd::doctor
