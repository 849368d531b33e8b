// Ports of RDMA devices: links, addresses, counters, and Ethernet's own settings.
#include <algorithm>
#include <map>
#include <set>

#include "kvd-probe/doctor/check_list.h"

namespace kvd::doctor {
namespace {

constexpr const char* kNoPorts = "no RDMA port";
constexpr const char* kNoRoce = "no active RoCE port";
constexpr const char* kNoInfiniband = "no InfiniBand port";
constexpr std::uint64_t kRoceMtu = 4200;  // RDMA's 4096 and its headers

template <typename Function>
bool each_port(const Inputs& in, Function function) {
  bool any = false;
  for (const RdmaDevice& device : in.host.rdma) {
    for (const RdmaPort& port : device.ports) {
      function(device, port);
      any = true;
    }
  }
  return any;
}

std::string short_real(double value) {
  std::string text = std::to_string(value);
  while (text.ends_with('0')) text.pop_back();
  if (text.ends_with('.')) text.pop_back();
  return text;
}

// Of a counter check: what grew, or what stood still.
void check_growth(const Inputs& in, const std::vector<std::string>& endings, const char* none,
                  const std::string& command, Verdict* out) {
  std::size_t counters = 0;
  std::uint64_t total = 0;
  for (const auto& counter : in.before) {
    if (std::any_of(endings.begin(), endings.end(),
                    [&](const std::string& ending) { return counter.first.ends_with(ending); })) {
      ++counters;
      total += counter.second;
    }
  }
  if (counters == 0) return out->skip(none);
  if (!in.after) {
    return out->unknown("one reading only (" + std::to_string(total) +
                            " since the counters began): growth cannot be told",
                        command);
  }
  for (const auto& [path, growth] : grown(in, endings)) {
    out->warn("/" + path + " grew by " + std::to_string(growth));
  }
  if (out->outcome() == Outcome::kSkip) {
    out->pass(std::to_string(counters) + " counters stood still (" + std::to_string(total) +
              " since they began)");
  }
}

// Destination and mask of the networks that a device is connected to, from /proc/net/route.
std::set<std::string> subnets_of(const Tree& tree, const std::string& device) {
  std::set<std::string> out;
  for (const std::string& line : lines_of(tree.read("proc/net/route").text)) {
    const std::vector<std::string> words = words_of(line);
    if (words.size() >= 8 && words[0] == device && words[2] == "00000000" &&
        words[1] != "00000000") {
      out.insert(words[1] + "/" + words[7]);
    }
  }
  return out;
}

bool has_route(const Tree& tree, const std::string& device, bool ipv4) {
  const std::vector<std::string> lines =
      lines_of(tree.read(ipv4 ? "proc/net/route" : "proc/net/ipv6_route").text);
  return std::any_of(lines.begin(), lines.end(), [&](const std::string& line) {
    const std::vector<std::string> words = words_of(line);
    if (words.size() < 8) return false;
    if (ipv4) return words[0] == device;
    return words.back() == device && !words[0].starts_with("fe80") && !words[0].starts_with("ff");
  });
}

// The larger of the setting for all and for one, as the kernel takes it.
std::uint64_t conf(const Tree& tree, const std::string& device, const std::string& name) {
  const std::string path = "proc/sys/net/ipv4/conf/";
  return std::max(number_of(tree.read(path + "all/" + name).text).value_or(0),
                  number_of(tree.read(path + device + "/" + name).text).value_or(0));
}

}  // namespace

void check_port_down(const Inputs& in, Verdict* out) {
  each_port(in, [&](const RdmaDevice&, const RdmaPort& port) {
    const std::string what = port.name + " is " +
                             (port.state.empty() ? "in no readable state" : port.state) +
                             (port.phys_state.empty() ? "" : ", physically " + port.phys_state);
    if (port.state.empty()) {
      out->unknown(what, "rdma link show");
    } else if (port.active()) {
      out->pass(what);
    } else if (port.state != "INIT") {  // ib-sm tells of that
      out->fail(what);
    }
  });
  for (const CxiDevice& device : in.host.cxi) {
    for (const std::string& name : device.netdevs) {
      const NetDevice* net = in.host.find_net(name);
      if (net == nullptr || net->state.empty()) continue;
      const std::string what = device.name + " (" + name + ") is " + net->state;
      net->up() ? out->pass(what) : out->fail(what);
    }
  }
  if (out->outcome() == Outcome::kSkip) out->skip(kNoPorts);
}

void check_ib_sm(const Inputs& in, Verdict* out) {
  each_port(in, [&](const RdmaDevice&, const RdmaPort& port) {
    if (port.link_layer != "InfiniBand" || port.state == "DOWN") return;
    if (!port.sm_lid) return out->unknown(port.path + "/sm_lid cannot be read", "sudo sminfo");
    const std::string what =
        port.name + " is " + port.state + ", sm_lid " + std::to_string(*port.sm_lid);
    port.state == "INIT" || *port.sm_lid == 0 ? out->fail(what) : out->pass(what);
  });
  if (out->outcome() == Outcome::kSkip) out->skip(kNoInfiniband);
}

void check_link_rate(const Inputs& in, Verdict* out) {
  double best = 0;
  std::size_t active = 0;
  each_port(in, [&](const RdmaDevice&, const RdmaPort& port) {
    if (!port.active() || port.gbits_per_s <= 0) return;
    best = std::max(best, port.gbits_per_s);
    ++active;
  });
  if (active < 2) return out->skip("fewer than two active ports to compare");
  each_port(in, [&](const RdmaDevice&, const RdmaPort& port) {
    if (!port.active() || port.gbits_per_s <= 0) return;
    const std::string what = port.name + " runs at " + short_real(port.gbits_per_s) + " Gbit/s";
    port.gbits_per_s < best ? out->warn(what + ", another port at " + short_real(best))
                            : out->pass(what);
  });
}

void check_mtu(const Inputs& in, Verdict* out) {
  std::set<std::uint64_t> sizes;
  for (const NetDevice* net : roce_netdevs(in)) {
    if (!net->mtu) {
      out->unknown("the MTU of " + net->name + " cannot be read", "ip link show " + net->name);
      continue;
    }
    sizes.insert(*net->mtu);
    const std::string what = net->name + " has MTU " + std::to_string(*net->mtu);
    *net->mtu < kRoceMtu
        ? out->warn(what + ", RDMA packets of 4096 bytes need " + std::to_string(kRoceMtu))
        : out->pass(what);
  }
  if (sizes.size() > 1) {
    out->warn("the RoCE devices of this host have different MTUs: " +
              std::to_string(*sizes.begin()) + " to " + std::to_string(*sizes.rbegin()));
  }
  if (out->outcome() == Outcome::kSkip) out->skip(kNoRoce);
}

void check_gid(const Inputs& in, Verdict* out) {
  each_port(in, [&](const RdmaDevice&, const RdmaPort& port) {
    if (!port.roce() || !port.active()) return;
    if (!port.gids_known) return out->unknown(port.path + "/gids cannot be read", "show_gids");
    if (port.gids.empty()) return out->fail(port.name + " has no GID but zero");
    std::string v2, any;
    bool typed = false;
    for (const Gid& gid : port.gids) {
      const std::string text =
          port.name + " GID " + std::to_string(gid.index) + " " + gid.text + " (" + gid.type + ")";
      typed = typed || !gid.type.empty();
      if (!gid.link_local && gid.type == "RoCE v2") v2 = text;
      any = text;
    }
    if (!v2.empty()) return out->pass(v2);
    if (!typed) {
      return out->unknown(port.path + "/gid_attrs/types cannot be read", "rdma_topo or show_gids");
    }
    out->fail("no routable RoCE v2 GID: the last of " + std::to_string(port.gids.size()) + " is " +
              any);
  });
  if (out->outcome() == Outcome::kSkip) out->skip(kNoRoce);
}

void check_gid_route(const Inputs& in, Verdict* out) {
  std::set<std::pair<std::string, bool>> told;
  each_port(in, [&](const RdmaDevice&, const RdmaPort& port) {
    if (!port.roce() || !port.active()) return;
    for (const Gid& gid : port.gids) {
      const bool ipv4 = gid.text.starts_with("0000:0000:0000:0000:0000:ffff:");
      if (gid.link_local || gid.netdev.empty() || gid.type != "RoCE v2") continue;
      if (!told.insert({gid.netdev, ipv4}).second) continue;
      const std::string family = ipv4 ? "IPv4" : "IPv6";
      const bool routed = has_route(in.tree, gid.netdev, ipv4);
      const std::string what =
          gid.netdev + " of " + port.name + " GID " + std::to_string(gid.index);
      routed ? out->pass(what + " has an " + family + " route")
             : out->fail(what + " has no " + family + " route");
    }
  });
  if (out->outcome() == Outcome::kSkip) out->skip("no routable RoCE v2 GID");
}

void check_pkey(const Inputs& in, Verdict* out) {
  each_port(in, [&](const RdmaDevice&, const RdmaPort& port) {
    if (port.link_layer != "InfiniBand" || !port.active()) return;
    constexpr std::uint64_t kFullMember = 0x8000;
    const bool full = std::any_of(port.pkeys.begin(), port.pkeys.end(),
                                  [](std::uint64_t key) { return (key & kFullMember) != 0; });
    if (!port.pkeys_known)
      return out->unknown(port.path + "/pkeys cannot be read", "ibv_devinfo -v");
    if (port.pkeys.empty()) return out->fail(port.name + " is in no partition");
    full ? out->pass(port.name + " is a full member of a partition")
         : out->warn(port.name + " is only a limited member of its partitions");
  });
  if (out->outcome() == Outcome::kSkip) out->skip(kNoInfiniband);
}

void check_link_errors(const Inputs& in, Verdict* out) {
  check_growth(in, {"/symbol_error", "/link_downed", "/port_rcv_errors"},
               "no port has error counters", "sudo ibdiagnet -pc", out);
}

void check_retransmit(const Inputs& in, Verdict* out) {
  check_growth(
      in, {"/out_of_sequence", "/packet_seq_err", "/local_ack_timeout_err", "/rnr_nak_retry_err"},
      "no port has hardware counters", "rdma statistic show", out);
}

// kvd/dcb/DEVICE is what `dcb pfc show dev DEVICE` prints: "prio-pfc 0:off ... 3:on".
void check_pfc(const Inputs& in, Verdict* out) {
  for (const NetDevice* net : roce_netdevs(in)) {
    const Text pfc = in.tree.read("kvd/dcb/" + net->name);
    const Text trust = in.tree.read("sys/class/net/" + net->name + "/qos/trust");
    if (!pfc.ok()) {
      out->unknown(net->name + ": the driver tells no priority flow control",
                   "dcb pfc show dev " + net->name + "; or sudo mlnx_qos -i " + net->name);
      continue;
    }
    const bool on = pfc.text.find(":on") != std::string::npos;
    if (!on) {
      out->warn(net->name + ": priority flow control is off for every priority");
    } else if (trust.ok() && trust.text == "pcp") {
      out->warn(net->name + ": trusts pcp, which routed RoCE v2 packets do not carry");
    } else {
      out->pass(net->name + ": priority flow control is on" +
                (trust.ok() ? ", trust " + trust.text : ""));
    }
  }
  if (out->outcome() == Outcome::kSkip) out->skip(kNoRoce);
}

void check_ecn(const Inputs& in, Verdict* out) {
  for (const NetDevice* net : roce_netdevs(in)) {
    for (const char* point : {"roce_np", "roce_rp"}) {
      const std::string path = "sys/class/net/" + net->name + "/ecn/" + point + "/enable";
      bool read = false, on = false;
      for (const std::string& priority : in.tree.list(path)) {
        const Text text = in.tree.read(path + "/" + priority);
        read = read || text.ok();
        on = on || text.text == "1";
      }
      const std::string what = net->name + ": " +
                               (point == std::string("roce_np") ? "marking of congestion (NP)"
                                                                : "reaction to congestion (RP)");
      if (!read) {
        out->unknown(what + " is not in sysfs",
                     "sudo cat /sys/kernel/debug/mlx5/*/cc_params/*; or mlxconfig -d PCI query");
      } else {
        on ? out->pass(what + " is on") : out->warn(what + " is off for every priority");
      }
    }
  }
  if (out->outcome() == Outcome::kSkip) out->skip(kNoRoce);
}

void check_pause(const Inputs& in, Verdict* out) {
  // Flow control pauses a little all the time; a storm is thousands of frames a second.
  constexpr std::uint64_t kStorm = 1000;
  const bool any = std::any_of(in.before.begin(), in.before.end(), [](const auto& counter) {
    return counter.first.starts_with("kvd/statistics/");
  });
  if (!any) return out->skip("no network device counts pause frames");
  if (!in.after) {
    return out->unknown("one reading only: growth cannot be told",
                        "ethtool -S DEVICE | grep pause");
  }
  for (const auto& [path, growth] : grown(in, {"_pause"})) {
    const std::string what =
        path.substr(std::string("kvd/statistics/").size()) + " grew by " + std::to_string(growth);
    growth > kStorm ? out->warn(what) : out->pass(what);
  }
  if (out->outcome() == Outcome::kSkip) out->pass("no pause frames between two readings");
}

void check_arp_flux(const Inputs& in, Verdict* out) {
  std::map<std::string, std::vector<std::string>> by_subnet;
  for (const NetDevice* net : roce_netdevs(in)) {
    for (const std::string& subnet : subnets_of(in.tree, net->name)) {
      by_subnet[subnet].push_back(net->name);
    }
  }
  for (const auto& [subnet, devices] : by_subnet) {
    if (devices.size() < 2) continue;
    for (const std::string& device : devices) {
      const std::uint64_t ignore = conf(in.tree, device, "arp_ignore");
      const std::uint64_t announce = conf(in.tree, device, "arp_announce");
      const std::uint64_t filter = conf(in.tree, device, "rp_filter");
      const std::string what = joined(devices) + " share a subnet; " + device + " has arp_ignore " +
                               std::to_string(ignore) + ", arp_announce " +
                               std::to_string(announce) + ", rp_filter " + std::to_string(filter);
      ignore >= 1 && announce >= 2 && filter != 1 ? out->pass(what) : out->warn(what);
    }
  }
  if (out->outcome() == Outcome::kSkip) out->skip("no two RoCE devices share a subnet");
}

}  // namespace kvd::doctor
