// The check functions by area, for the table in checks.cc.
#pragma once

#include "kvd-probe/doctor/checks.h"

namespace kvd::doctor {

// check_devices.cc
void check_dev_none(const Inputs& in, Verdict* out);
void check_dev_container(const Inputs& in, Verdict* out);
void check_dev_netns(const Inputs& in, Verdict* out);
void check_prov_none(const Inputs& in, Verdict* out);
void check_prov_tcp(const Inputs& in, Verdict* out);
void check_prov_emulated(const Inputs& in, Verdict* out);
void check_self_write(const Inputs& in, Verdict* out);
void check_mkey_leak(const Inputs& in, Verdict* out);
void check_mr_limit(const Inputs& in, Verdict* out);
void check_env_override(const Inputs& in, Verdict* out);

// check_ports.cc
void check_port_down(const Inputs& in, Verdict* out);
void check_ib_sm(const Inputs& in, Verdict* out);
void check_link_rate(const Inputs& in, Verdict* out);
void check_mtu(const Inputs& in, Verdict* out);
void check_gid(const Inputs& in, Verdict* out);
void check_gid_route(const Inputs& in, Verdict* out);
void check_pkey(const Inputs& in, Verdict* out);
void check_link_errors(const Inputs& in, Verdict* out);
void check_retransmit(const Inputs& in, Verdict* out);
void check_pfc(const Inputs& in, Verdict* out);
void check_ecn(const Inputs& in, Verdict* out);
void check_pause(const Inputs& in, Verdict* out);
void check_arp_flux(const Inputs& in, Verdict* out);

// check_memory.cc
void check_memlock(const Inputs& in, Verdict* out);
void check_rdma_cgroup(const Inputs& in, Verdict* out);
void check_map_count(const Inputs& in, Verdict* out);
void check_fork_huge(const Inputs& in, Verdict* out);
void check_shm(const Inputs& in, Verdict* out);
void check_numa_bal(const Inputs& in, Verdict* out);

// check_gpu.cc
void check_peermem(const Inputs& in, Verdict* out);
void check_dmabuf(const Inputs& in, Verdict* out);
void check_bw_peermem(const Inputs& in, Verdict* out);
void check_hmem(const Inputs& in, Verdict* out);
void check_gpu_reg(const Inputs& in, Verdict* out);
void check_bar1(const Inputs& in, Verdict* out);
void check_topo(const Inputs& in, Verdict* out);
void check_acs(const Inputs& in, Verdict* out);
void check_gpu_throttle(const Inputs& in, Verdict* out);
void check_gpu_mode(const Inputs& in, Verdict* out);
void check_nvl_fabric(const Inputs& in, Verdict* out);
void check_pod_ipc(const Inputs& in, Verdict* out);
void check_gdr_order(const Inputs& in, Verdict* out);

// check_host.cc
void check_iommu(const Inputs& in, Verdict* out);
void check_pcie(const Inputs& in, Verdict* out);
void check_cpu_bind(const Inputs& in, Verdict* out);
void check_cpu_gov(const Inputs& in, Verdict* out);
void check_cpu_quota(const Inputs& in, Verdict* out);
void check_ports(const Inputs& in, Verdict* out);
void check_tcp_congestion(const Inputs& in, Verdict* out);
void check_tcp_buffers(const Inputs& in, Verdict* out);
void check_tcp_mtu(const Inputs& in, Verdict* out);
void check_tcp_offload(const Inputs& in, Verdict* out);

// What several areas ask.
bool any_rdma_port_active(const Inputs& in);
// Network devices that carry RoCE on an active port, each once.
std::vector<const NetDevice*> roce_netdevs(const Inputs& in);
std::string joined(const std::vector<std::string>& parts);
// The directory of this process's cgroup: "sys/fs/cgroup/...".
std::string cgroup_path(const Tree& tree);
// A counter that grew between the readings, with its growth; nothing when it stood still.
std::vector<std::pair<std::string, std::uint64_t>> grown(const Inputs& in,
                                                         const std::vector<std::string>& endings);

}  // namespace kvd::doctor
