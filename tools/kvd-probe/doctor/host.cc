#include "kvd-probe/doctor/host.h"

#include <algorithm>
#include <charconv>

namespace kvd::doctor {
namespace {

constexpr std::size_t kMaxDevices = 64;
constexpr std::size_t kMaxPorts = 8;
constexpr std::size_t kMaxGids = 256;
const std::string kInfiniband = "sys/class/infiniband";

double real_of(const std::string& text) {
  double value = 0;
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && stop != text.data() && value >= 0 && value < 1e9 ? value : 0;
}

std::vector<std::string> first_entries(const Tree& tree, const std::string& path) {
  std::vector<std::string> names = tree.list(path);
  if (names.size() > kMaxDevices) names.resize(kMaxDevices);
  return names;
}

PciFacts read_pci(const Tree& tree, const std::string& path) {
  PciFacts out;
  const std::string uevent = tree.read(path + "/uevent").text;
  out.address = value_of(uevent, "PCI_SLOT_NAME");
  out.driver = value_of(uevent, "DRIVER");
  out.path = tree.real_path(path);
  const std::string node = tree.read(path + "/numa_node").text;
  if (const auto number = number_of(node); number && *number < 4096) {
    out.numa_node = static_cast<int>(*number);
  }
  out.local_cpus = tree.read(path + "/local_cpulist").text;
  out.speed_gts = real_of(tree.read(path + "/current_link_speed").text);
  out.max_speed_gts = real_of(tree.read(path + "/max_link_speed").text);
  out.width = number_of(tree.read(path + "/current_link_width").text).value_or(0);
  out.max_width = number_of(tree.read(path + "/max_link_width").text).value_or(0);
  out.iommu = tree.read(path + "/iommu_group/type").text;
  return out;
}

// "4: ACTIVE" is ACTIVE.
std::string after_colon(const std::string& text) {
  const std::size_t colon = text.find(": ");
  return colon == std::string::npos ? text : text.substr(colon + 2);
}

std::vector<Gid> read_gids(const Tree& tree, const std::string& port) {
  std::vector<Gid> out;
  for (const std::string& name : tree.list(port + "/gids")) {
    const auto index = number_of(name);
    if (!index || out.size() == kMaxGids) continue;
    Gid gid;
    gid.index = *index;
    gid.text = tree.read(port + "/gids/" + name).text;
    // Of a fresh Ethernet port only the prefix may be there.
    const bool zero = gid.text.find_first_not_of("0:") == std::string::npos ||
                      gid.text == "fe80:0000:0000:0000:0000:0000:0000:0000";
    if (zero) continue;
    gid.link_local = gid.text.starts_with("fe80:");
    gid.type = tree.read(port + "/gid_attrs/types/" + name).text;
    gid.netdev = tree.read(port + "/gid_attrs/ndevs/" + name).text;
    out.push_back(std::move(gid));
  }
  std::sort(out.begin(), out.end(), [](const Gid& a, const Gid& b) { return a.index < b.index; });
  return out;
}

RdmaPort read_port(const Tree& tree, const std::string& device, const std::string& number) {
  RdmaPort out;
  out.name = device + "/" + number;
  out.path = kInfiniband + "/" + device + "/ports/" + number;
  out.state = after_colon(tree.read(out.path + "/state").text);
  out.phys_state = after_colon(tree.read(out.path + "/phys_state").text);
  out.link_layer = tree.read(out.path + "/link_layer").text;
  out.gbits_per_s = real_of(tree.read(out.path + "/rate").text);
  out.sm_lid = number_of(tree.read(out.path + "/sm_lid").text);
  out.gids_known = !tree.list(out.path + "/gids").empty();
  out.pkeys_known = !tree.list(out.path + "/pkeys").empty();
  out.gids = read_gids(tree, out.path);
  for (const std::string& name : first_entries(tree, out.path + "/pkeys")) {
    const auto key = number_of(tree.read(out.path + "/pkeys/" + name).text);
    if (key && *key != 0) out.pkeys.push_back(*key);
  }
  return out;
}

RdmaDevice read_rdma(const Tree& tree, const std::string& name) {
  RdmaDevice out;
  const std::string path = kInfiniband + "/" + name;
  out.name = name;
  out.pci = read_pci(tree, path + "/device");
  out.efa = out.pci.driver == "efa";
  out.netdevs = first_entries(tree, path + "/device/net");
  for (const std::string& verbs : first_entries(tree, "sys/class/infiniband_verbs")) {
    if (tree.read("sys/class/infiniband_verbs/" + verbs + "/ibdev").text != name) continue;
    out.node = "dev/infiniband/" + verbs;
    out.node_access = tree.writable(out.node);
  }
  for (const std::string& port : tree.list(path + "/ports")) {
    if (out.ports.size() < kMaxPorts) out.ports.push_back(read_port(tree, name, port));
  }
  return out;
}

NetDevice read_net(const Tree& tree, const std::string& name) {
  NetDevice out;
  const std::string path = "sys/class/net/" + name;
  out.name = name;
  out.state = tree.read(path + "/operstate").text;
  out.mtu = number_of(tree.read(path + "/mtu").text);
  // "-1" where the driver does not know; an error where the link is down.
  out.mbits_per_s = number_of(tree.read(path + "/speed").text);
  out.physical = tree.read(path + "/device/uevent").access != Access::kAbsent;
  if (out.physical) out.pci = read_pci(tree, path + "/device");
  return out;
}

// Blackwell and later by the names that NVIDIA gives them.
std::optional<bool> is_blackwell(const std::string& model) {
  static const char* const kBlackwell[] = {"B100",  "B200",      "B300",   "GB1", "GB200",
                                           "GB300", "Blackwell", "RTX 50", "Thor"};
  static const char* const kOlder[] = {
      "H100", "H200",  "H800",   "H20",    "GH200",  "A100",         "A800", "A30",
      "A10",  "A40",   "A2",     "L4",     "L40",    "V100",         "T4",   "P100",
      "P40",  "RTX A", "RTX 20", "RTX 30", "RTX 40", "RTX 6000 Ada", "GTX"};
  for (const char* name : kBlackwell) {
    if (model.find(name) != std::string::npos) return true;
  }
  for (const char* name : kOlder) {
    if (model.find(name) != std::string::npos) return false;
  }
  return std::nullopt;
}

// Lines "start end flags", one a region; BAR1 is the first prefetchable one after region 0.
std::uint64_t bar1_of(const std::string& resource) {
  const std::vector<std::string> lines = lines_of(resource);
  for (std::size_t i = 1; i < lines.size() && i < 6; ++i) {
    const std::vector<std::string> words = words_of(lines[i]);
    if (words.size() < 3) return 0;
    const auto begin = number_of(words[0]), end = number_of(words[1]), flags = number_of(words[2]);
    constexpr std::uint64_t kPrefetch = 0x2000;
    if (begin && end && flags && (*flags & kPrefetch) != 0 && *end > *begin) {
      return *end - *begin + 1;
    }
  }
  return 0;
}

std::optional<Gpu> read_gpu(const Tree& tree, const std::string& address) {
  const std::string path = "sys/bus/pci/devices/" + address;
  const auto kind = number_of(tree.read(path + "/class").text);
  const auto vendor = number_of(tree.read(path + "/vendor").text);
  if (!kind || !vendor) return std::nullopt;
  // Display controllers; processing accelerators (0x12) too, as AMD's are.
  const std::uint64_t base = *kind >> 16;
  if (base != 0x03 && base != 0x12) return std::nullopt;
  Gpu out;
  if (*vendor == 0x10de) out.vendor = "NVIDIA";
  if (*vendor == 0x1002) out.vendor = "AMD";
  if (out.vendor.empty()) return std::nullopt;
  out.pci = read_pci(tree, path);
  out.pci.address = address;
  out.bar1_bytes = bar1_of(tree.read(path + "/resource").text);
  const std::string info = tree.read("proc/driver/nvidia/gpus/" + address + "/information").text;
  for (const std::string& line : lines_of(info)) {
    if (!line.starts_with("Model:")) continue;
    const std::size_t begin = line.find_first_not_of(" \t", 6);
    if (begin != std::string::npos) out.model = line.substr(begin);
  }
  out.blackwell = is_blackwell(out.model);
  return out;
}

std::size_t common_prefix(const std::string& a, const std::string& b) {
  const auto differ = std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first;
  const std::string same(a.begin(), differ);
  return static_cast<std::size_t>(std::count(same.begin(), same.end(), '/'));
}

}  // namespace

const NetDevice* Host::find_net(const std::string& name) const {
  const auto it = std::find_if(net.begin(), net.end(),
                               [&](const NetDevice& device) { return device.name == name; });
  return it == net.end() ? nullptr : &*it;
}

bool Host::kernel_at_least(std::uint64_t major, std::uint64_t minor) const {
  const auto here = number_of(kernel);
  const std::size_t dot = kernel.find('.');
  const auto here_minor =
      dot == std::string::npos ? std::nullopt : number_of(std::string_view(kernel).substr(dot + 1));
  if (!here || !here_minor) return false;
  return *here > major || (*here == major && *here_minor >= minor);
}

Host read_host(const Tree& tree) {
  Host out;
  for (const std::string& name : first_entries(tree, kInfiniband)) {
    out.rdma.push_back(read_rdma(tree, name));
  }
  for (const std::string& name : first_entries(tree, "sys/class/cxi")) {
    CxiDevice device;
    device.name = name;
    device.pci = read_pci(tree, "sys/class/cxi/" + name + "/device");
    device.netdevs = first_entries(tree, "sys/class/cxi/" + name + "/device/net");
    device.node = "dev/" + name;
    device.node_access = tree.writable(device.node);
    out.cxi.push_back(std::move(device));
  }
  for (const std::string& name : first_entries(tree, "sys/class/net")) {
    out.net.push_back(read_net(tree, name));
  }
  for (const std::string& address : tree.list("sys/bus/pci/devices")) {
    if (auto gpu = read_gpu(tree, address); gpu && out.gpus.size() < kMaxDevices) {
      out.gpus.push_back(std::move(*gpu));
    }
  }
  for (const std::string& name : tree.list("sys/devices/system/node")) {
    const bool node = name.starts_with("node") && name.size() > 4 &&
                      name.find_first_not_of("0123456789", 4) == std::string::npos;
    if (node) ++out.numa_nodes;
  }
  out.kernel = tree.read("proc/sys/kernel/osrelease").text;
  return out;
}

const Gpu* nearest_gpu(const Host& host, const PciFacts& device) {
  const Gpu* best = nullptr;
  std::size_t best_common = 0;
  for (const Gpu& gpu : host.gpus) {
    if (gpu.pci.numa_node != device.numa_node) continue;
    const std::size_t common = common_prefix(gpu.pci.path, device.path);
    if (best != nullptr && common <= best_common) continue;
    best = &gpu;
    best_common = common;
  }
  return best;
}

}  // namespace kvd::doctor
