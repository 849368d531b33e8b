// What a tree says of a host's NICs, GPUs and network devices, read once. Pure but for the tree.
//
// Sources: the kernel's Documentation/ABI (sysfs-class-infiniband, sysfs-class-net,
// sysfs-bus-pci), and /proc/driver/nvidia of NVIDIA's driver.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kvd-probe/doctor/tree.h"

namespace kvd::doctor {

struct PciFacts {
  std::string address;       // "0000:3b:00.0"
  std::string path;          // real path in sysfs: what two devices share is their common way
  std::string driver;        // "mlx5_core"
  int numa_node = -1;        // -1: one node, or not known
  std::string local_cpus;    // "0-15"
  double speed_gts = 0;      // trained, GT/s a lane; 0: not known
  double max_speed_gts = 0;  // of the device
  std::uint64_t width = 0, max_width = 0;  // lanes
  std::string iommu;                       // type of its IOMMU domain: "identity", "DMA-FQ"
};

struct Gid {
  std::size_t index = 0;
  std::string text;  // "fe80:0000:..."
  std::string type;  // "RoCE v2", "IB/RoCE v1"
  std::string netdev;
  bool link_local = false;
};

struct RdmaPort {
  std::string name;        // "mlx5_0/1"
  std::string path;        // "sys/class/infiniband/mlx5_0/ports/1"
  std::string state;       // "ACTIVE", "DOWN", "INIT", "ARMED"; "" when it cannot be read
  std::string phys_state;  // "LinkUp", "Disabled", "Polling"
  std::string link_layer;  // "InfiniBand", "Ethernet", "Unknown" (EFA)
  double gbits_per_s = 0;
  std::optional<std::uint64_t> sm_lid;
  bool gids_known = false, pkeys_known = false;  // their folders can be read
  std::vector<Gid> gids;                         // those that are not zero
  std::vector<std::uint64_t> pkeys;

  bool active() const { return state == "ACTIVE"; }
  bool roce() const { return link_layer == "Ethernet"; }
};

struct RdmaDevice {
  std::string name;  // "mlx5_0"
  bool efa = false;
  PciFacts pci;
  std::vector<std::string> netdevs;
  std::string node;  // "dev/infiniband/uverbs0"; empty when the kernel made none
  Access node_access = Access::kAbsent;
  std::vector<RdmaPort> ports;
};

// Slingshot.
struct CxiDevice {
  std::string name;  // "cxi0"
  PciFacts pci;
  std::vector<std::string> netdevs;
  std::string node;  // "dev/cxi0"
  Access node_access = Access::kAbsent;
};

struct NetDevice {
  std::string name;
  std::string state;  // "up", "down", "unknown"
  std::optional<std::uint64_t> mtu;
  std::optional<std::uint64_t> mbits_per_s;  // nothing: the driver does not say
  bool physical = false;                     // has a device of its own
  PciFacts pci;

  bool up() const { return state == "up"; }
};

struct Gpu {
  std::string vendor;  // "NVIDIA", "AMD"
  std::string model;   // "NVIDIA H100 80GB HBM3"; empty when the driver does not say
  // Compute capability 10 and above; nothing when the model is not known to this build.
  std::optional<bool> blackwell;
  PciFacts pci;
  std::uint64_t bar1_bytes = 0;  // 0: not known
};

struct Host {
  std::vector<RdmaDevice> rdma;
  std::vector<CxiDevice> cxi;
  std::vector<NetDevice> net;
  std::vector<Gpu> gpus;
  std::size_t numa_nodes = 0;  // with CPUs or memory; 0: the kernel does not say
  std::string kernel;          // "6.8.0-31-generic"

  bool has_rdma() const { return !rdma.empty() || !cxi.empty(); }
  const NetDevice* find_net(const std::string& name) const;
  bool kernel_at_least(std::uint64_t major, std::uint64_t minor) const;
};

Host read_host(const Tree& tree);

// The GPU with the shortest way to `device`: on its NUMA node, and sharing most of its PCI path.
// Null: none, or none on the same node.
const Gpu* nearest_gpu(const Host& host, const PciFacts& device);

}  // namespace kvd::doctor
