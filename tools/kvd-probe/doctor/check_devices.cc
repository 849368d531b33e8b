// Devices and providers: is there RDMA, and would libfabric use it?
#include <algorithm>
#include <array>

#include "kvd-probe/doctor/check_list.h"

namespace kvd::doctor {
namespace {

constexpr const char* kNoRdma = "no RDMA device";
constexpr const char* kNotAsked = "libfabric was not asked: this is a recorded tree";

std::string device_names(const Host& host) {
  std::vector<std::string> names;
  for (const RdmaDevice& device : host.rdma) names.push_back(device.name);
  for (const CxiDevice& device : host.cxi) names.push_back(device.name);
  return joined(names);
}

// PCI devices whose drivers would make RDMA devices: NVIDIA (Mellanox), EFA, Slingshot.
std::string idle_nic(const Tree& tree) {
  for (const std::string& address : tree.list("sys/bus/pci/devices")) {
    const std::string path = "sys/bus/pci/devices/" + address;
    const std::string vendor = tree.read(path + "/vendor").text;
    const std::uint64_t id = number_of(tree.read(path + "/device").text).value_or(0);
    const std::uint64_t kind = number_of(tree.read(path + "/class").text).value_or(0) >> 16;
    const bool efa = vendor == "0x1d0f" && id >= 0xefa0 && id <= 0xefaf;
    const bool nic = kind == 0x02 && (vendor == "0x15b3" || vendor == "0x17db");
    if (efa || nic) return address + " (vendor " + vendor + ")";
  }
  return "";
}

void check_node(const std::string& device, const std::string& node, Access access,
                const std::string& module, Verdict* out) {
  if (node.empty()) {
    out->fail(device + ": the kernel made no uverbs node");
    out->set_remedy("load the module: modprobe " + module);
  } else if (access == Access::kAbsent) {
    out->fail("/" + node + " of " + device + " is not here, although sysfs shows the device");
  } else if (access == Access::kDenied) {
    out->fail("/" + node + " of " + device + " cannot be opened by this user");
    out->set_remedy("give this user read and write access to /" + node +
                    ", in a container also the device cgroup's");
  } else {
    out->pass("/" + node + " of " + device + " can be opened");
  }
}

// The transports that this host's hardware asks for.
std::vector<std::string> wanted_transports(const Host& host) {
  std::vector<std::string> out;
  const bool efa = std::any_of(host.rdma.begin(), host.rdma.end(),
                               [](const RdmaDevice& device) { return device.efa; });
  const bool verbs = std::any_of(host.rdma.begin(), host.rdma.end(),
                                 [](const RdmaDevice& device) { return !device.efa; });
  if (efa) out.push_back("efa");
  if (!host.cxi.empty()) out.push_back("cxi");
  if (verbs) out.push_back("verbs;ofi_rxm");
  return out;
}

std::string names_of(const std::vector<ProviderFact>& providers) {
  std::vector<std::string> names;
  for (const ProviderFact& fact : providers) {
    if (std::find(names.begin(), names.end(), fact.name) == names.end()) {
      names.push_back(fact.name);
    }
  }
  return names.empty() ? "none" : joined(names);
}

struct Effect {
  const char* name;
  const char* what;
};
// Variables of the libraries below kvd, and what they do to KV.
constexpr std::array<Effect, 14> kEffects = {{
    {"FI_PROVIDER", "leaves out providers"},
    {"FI_TCP_IFACE", "ties tcp to one interface"},
    {"FI_NET_IFACE", "ties tcp to one interface"},
    {"FI_TCP_PREFETCH_RBUF_SIZE", "above 0 copies the beginning of each write"},
    {"FI_NET_PREFETCH_RBUF_SIZE", "above 0 copies the beginning of each write"},
    {"FI_VERBS_IFACE", "ties verbs to one interface"},
    {"FI_VERBS_DEVICE_NAME", "ties verbs to one device"},
    {"FI_VERBS_GID_IDX", "chooses the GID"},
    {"FI_EFA_USE_DEVICE_RDMA", "0 makes EFA emulate RMA on the CPU"},
    {"FI_HMEM_DISABLE_P2P", "1 keeps NICs out of GPU memory"},
    {"FI_MR_CACHE_MAX_COUNT", "0 registers anew each time"},
    {"FI_UNIVERSE_SIZE", "sizes tables by the number of peers"},
    {"RDMAV_FORK_SAFE", "makes each registration slower"},
    {"RDMAV_HUGEPAGES_SAFE", "makes each registration slower"},
}};

}  // namespace

void check_dev_none(const Inputs& in, Verdict* out) {
  if (in.host.has_rdma()) return out->pass(device_names(in.host));
  const std::string idle = idle_nic(in.tree);
  if (!idle.empty()) {
    out->fail("PCI device " + idle + " is an RDMA NIC, but /sys/class/infiniband is empty");
    return out->set_remedy("load the NIC's driver (mlx5_ib, efa, cxi_user) and see dmesg");
  }
  const std::string what = "/sys/class/infiniband and /sys/class/cxi are empty";
  in.settings.require_rdma ? out->fail(what) : out->warn(what);
}

void check_dev_container(const Inputs& in, Verdict* out) {
  if (!in.host.has_rdma()) return out->skip(kNoRdma);
  for (const RdmaDevice& device : in.host.rdma) {
    check_node(device.name, device.node, device.node_access, "ib_uverbs", out);
  }
  for (const CxiDevice& device : in.host.cxi) {
    check_node(device.name, device.node, device.node_access, "cxi_user", out);
  }
}

void check_dev_netns(const Inputs& in, Verdict* out) {
  const std::string path = "sys/module/ib_core/parameters/netns_mode";
  const Text mode = in.tree.read(path);
  if (mode.access == Access::kAbsent) return out->skip("ib_core is not loaded");
  if (!mode.ok()) return out->unknown("/" + path + " cannot be read", "rdma system show");
  const bool shared = mode.text == "Y" || mode.text == "1";
  if (shared) return out->pass("netns_mode " + mode.text + ": shared by all network namespaces");
  if (in.host.has_rdma()) {
    return out->pass("netns_mode " + mode.text + ": exclusive, and devices are in this namespace");
  }
  out->fail("netns_mode " + mode.text + ": exclusive, and no device is in this namespace");
}

void check_prov_none(const Inputs& in, Verdict* out) {
  const std::vector<std::string> wanted = wanted_transports(in.host);
  if (wanted.empty()) return out->skip(kNoRdma);
  if (!in.providers) return out->unknown(kNotAsked, "kvd-probe list");
  for (const std::string& name : wanted) {
    const bool here = std::any_of(in.providers->begin(), in.providers->end(),
                                  [&](const ProviderFact& fact) { return fact.name == name; });
    if (here) {
      out->pass("libfabric offers " + name);
      continue;
    }
    std::string evidence = "libfabric does not offer " + name + ", but " + device_names(in.host) +
                           " is here; it offers " + names_of(*in.providers);
    if (in.environment && in.environment->contains("FI_PROVIDER")) {
      evidence += "; FI_PROVIDER=" + in.environment->at("FI_PROVIDER");
    }
    out->fail(std::move(evidence));
  }
}

void check_prov_tcp(const Inputs& in, Verdict* out) {
  if (!any_rdma_port_active(in)) return out->skip("no active RDMA port");
  if (!in.providers) return out->unknown(kNotAsked, "kvd-probe list");
  const auto rdma = std::find_if(in.providers->begin(), in.providers->end(),
                                 [](const ProviderFact& fact) { return fact.rdma(); });
  if (rdma != in.providers->end()) return out->pass("workers would choose " + rdma->name);
  out->fail("workers would choose " +
            (in.providers->empty() ? "nothing" : in.providers->front().name) + " though " +
            device_names(in.host) + " has an active port");
}

void check_prov_emulated(const Inputs& in, Verdict* out) {
  if (!in.host.has_rdma()) return out->skip(kNoRdma);
  if (!in.providers) return out->unknown(kNotAsked, "kvd-probe list");
  bool any = false;
  for (const ProviderFact& fact : *in.providers) {
    if (!fact.rdma()) continue;
    any = true;
    const std::string what = fact.name + " at " + fact.domain;
    fact.emulated ? out->warn(what + " carries remote writes as messages that a CPU copies")
                  : out->pass(what + " writes by itself");
  }
  if (!any) out->skip("no provider with RDMA");
}

// Lines "tcp ok TEXT" and "verbs;ofi_rxm failed REASON".
void check_self_write(const Inputs& in, Verdict* out) {
  const Text tried = in.tree.read("kvd/self-write");
  if (!tried.ok()) return out->skip("nothing was tried: this is a recorded tree");
  for (const std::string& line : lines_of(tried.text)) {
    const std::vector<std::string> words = words_of(line);
    if (words.size() < 2) continue;
    words[1] == "ok" ? out->pass(line) : out->fail(line);
  }
  if (out->outcome() == Outcome::kSkip) out->skip("no provider to try");
}

void check_mkey_leak(const Inputs& in, Verdict* out) {
  if (!in.host.has_rdma()) return out->skip(kNoRdma);
  const Text tried = in.tree.read("kvd/self-write");
  if (!tried.ok()) return out->skip("nothing was tried: this is a recorded tree");
  for (const std::string& line : lines_of(tried.text)) {
    if (line.starts_with("tcp") || line.starts_with("local")) continue;
    const bool exhausted = line.find("fi_mr_reg") != std::string::npos &&
                           line.find("Resource temporarily unavailable") != std::string::npos;
    exhausted ? out->fail(line) : out->pass(line);
  }
  if (out->outcome() == Outcome::kSkip) out->skip("no provider with RDMA to try");
}

void check_mr_limit(const Inputs& in, Verdict* out) {
  if (!in.providers) return out->skip(kNotAsked);
  // Each peer needs a registration of the pool and one of the slots.
  constexpr std::uint64_t kFewest = 1024;
  for (const ProviderFact& fact : *in.providers) {
    if (!fact.rdma() || fact.regions == 0) continue;
    const std::string what = fact.name + " at " + fact.domain + " takes " +
                             std::to_string(fact.regions) + " registrations";
    fact.regions < kFewest ? out->warn(what) : out->pass(what);
  }
  if (out->outcome() == Outcome::kSkip) out->skip("no RDMA provider names a limit");
}

void check_env_override(const Inputs& in, Verdict* out) {
  if (!in.environment) return out->skip("a recorded tree without an environment");
  for (const auto& [name, value] : *in.environment) {
    const bool below = name.starts_with("FI_") || name.starts_with("RDMAV_") ||
                       name.starts_with("IBV_") || name.starts_with("MLX5_");
    // Only what is logged.
    if (!below || name.starts_with("FI_LOG")) continue;
    std::string evidence = name + "=" + value;
    for (const Effect& effect : kEffects) {
      if (name == effect.name) evidence += ": " + std::string(effect.what);
    }
    out->warn(std::move(evidence));
  }
  if (out->outcome() == Outcome::kSkip) out->pass("no FI_*, RDMAV_*, IBV_* or MLX5_* variable");
}

}  // namespace kvd::doctor
