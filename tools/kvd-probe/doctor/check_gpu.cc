// Ways from a NIC into the memory of a GPU. What only CUDA or NVML can tell is kUnknown here: kvd
// asks neither without its CUDA engine.
#include <algorithm>

#include "kvd-probe/doctor/check_list.h"

namespace kvd::doctor {
namespace {

constexpr const char* kNoGpu = "no GPU with a driver";
constexpr const char* kNoNvidia = "no NVIDIA GPU with its driver";

std::vector<const Gpu*> driven_gpus(const Inputs& in, bool nvidia_only) {
  std::vector<const Gpu*> out;
  for (const Gpu& gpu : in.host.gpus) {
    const bool nvidia = gpu.vendor == "NVIDIA" && gpu.pci.driver == "nvidia";
    if (nvidia || (!nvidia_only && gpu.pci.driver == "amdgpu")) out.push_back(&gpu);
  }
  return out;
}

std::string name_of(const Gpu& gpu) {
  return (gpu.model.empty() ? gpu.vendor + " GPU" : gpu.model) + " at " + gpu.pci.address;
}

// The module that serves legacy peer memory: EFA has one of its own.
std::string peermem_module(const Tree& tree) {
  for (const char* name : {"nvidia_peermem", "efa_nv_peermem", "nv_peer_mem"}) {
    if (!tree.list(std::string("sys/module/") + name).empty()) return name;
  }
  return "";
}

std::string driver_line(const Tree& tree) {
  const std::vector<std::string> lines = lines_of(tree.read("proc/driver/nvidia/version").text);
  return lines.empty() ? "" : lines.front();
}

enum class Dmabuf { kPossible, kNot, kUnknown };

// What the host must bring; whether the GPU's driver exports the memory only CUDA tells. `why` says
// what lacks, or what cannot be read.
Dmabuf dmabuf_of(const Inputs& in, const Gpu& gpu, std::string* why) {
  if (in.host.kernel.empty()) {
    *why = "the kernel's version cannot be read";
    return Dmabuf::kUnknown;
  }
  if (!in.host.kernel_at_least(5, 12)) {
    *why = "Linux " + in.host.kernel + " is older than 5.12";
    return Dmabuf::kNot;
  }
  if (gpu.vendor == "AMD") return Dmabuf::kPossible;
  const std::string line = driver_line(in.tree);
  if (line.empty()) {
    *why = "/proc/driver/nvidia/version cannot be read";
    return Dmabuf::kUnknown;
  }
  if (line.find("Open Kernel Module") != std::string::npos) return Dmabuf::kPossible;
  *why = "the driver is closed: " + line;
  return Dmabuf::kNot;
}

constexpr const char* kAskDriver = "modinfo -F license nvidia; uname -r";

bool has_nic(const Inputs& in, Verdict* out) {
  if (in.host.has_rdma()) return true;
  out->skip("no RDMA device: KV leaves GPUs through host memory");
  return false;
}

// Of checks that need NVML or CUDA.
void ask(const Inputs& in, const char* what, const char* command, Verdict* out) {
  if (driven_gpus(in, true).empty()) return out->skip(kNoNvidia);
  out->unknown(what, command);
}

}  // namespace

void check_peermem(const Inputs& in, Verdict* out) {
  if (!has_nic(in, out)) return;
  const std::string module = peermem_module(in.tree);
  for (const Gpu* gpu : driven_gpus(in, true)) {
    if (gpu->blackwell.value_or(false)) continue;  // bw-peermem
    const std::string what = name_of(*gpu);
    std::string why;
    const Dmabuf dmabuf = dmabuf_of(in, *gpu, &why);
    if (!module.empty()) {
      out->pass(what + ": module " + module + " is loaded");
    } else if (dmabuf == Dmabuf::kPossible) {
      out->pass(what + ": no peer memory module, dmabuf serves instead");
    } else if (dmabuf == Dmabuf::kUnknown) {
      out->unknown(what + ": no peer memory module, and " + why, kAskDriver);
    } else {
      out->fail(what + ": neither nvidia_peermem nor efa_nv_peermem is loaded, and no dmabuf");
    }
  }
  if (out->outcome() == Outcome::kSkip) out->skip("no NVIDIA GPU before Blackwell");
}

void check_dmabuf(const Inputs& in, Verdict* out) {
  if (!has_nic(in, out)) return;
  const std::string module = peermem_module(in.tree);
  for (const Gpu* gpu : driven_gpus(in, false)) {
    std::string why;
    const Dmabuf dmabuf = dmabuf_of(in, *gpu, &why);
    if (dmabuf == Dmabuf::kPossible) {
      out->pass(name_of(*gpu) + ": Linux " + in.host.kernel +
                (gpu->vendor == "AMD" ? ", amdgpu" : ", open kernel modules"));
      continue;
    }
    const std::string what = name_of(*gpu) + ": " + why;
    if (dmabuf == Dmabuf::kUnknown) {
      out->unknown(what, kAskDriver);
      continue;
    }
    // With the legacy path this is only the lack of a second one.
    !module.empty() && !gpu->blackwell.value_or(true) ? out->pass(what + "; " + module + " serves")
                                                      : out->fail(what);
  }
  if (out->outcome() == Outcome::kSkip) out->skip(kNoGpu);
}

void check_bw_peermem(const Inputs& in, Verdict* out) {
  if (!has_nic(in, out)) return;
  const std::string module = peermem_module(in.tree);
  for (const Gpu* gpu : driven_gpus(in, true)) {
    const std::string what = name_of(*gpu);
    if (!gpu->blackwell) {
      out->unknown(what + ": its compute capability is not known here",
                   "nvidia-smi --query-gpu=compute_cap --format=csv");
      continue;
    }
    if (!*gpu->blackwell) continue;
    std::string why;
    const Dmabuf dmabuf = dmabuf_of(in, *gpu, &why);
    if (dmabuf == Dmabuf::kPossible) {
      out->pass(what + ": dmabuf is possible");
    } else if (dmabuf == Dmabuf::kUnknown) {
      out->unknown(what + ": " + why, kAskDriver);
    } else {
      out->fail(what + ": " + (module.empty() ? "no peer memory" : "only " + module) + "; " + why);
    }
  }
  if (out->outcome() == Outcome::kSkip) out->skip("no Blackwell GPU");
}

void check_hmem(const Inputs& in, Verdict* out) {
  if (driven_gpus(in, false).empty()) return out->skip(kNoGpu);
  if (!has_nic(in, out)) return;
  if (!in.providers) return out->unknown("libfabric was not asked", "kvd-probe list");
  for (const ProviderFact& fact : *in.providers) {
    if (!fact.rdma()) continue;
    const std::string what = fact.name + " at " + fact.domain;
    fact.hmem ? out->pass(what + " registers device memory")
              : out->fail(what + " has RMA, but not FI_HMEM");
  }
  if (out->outcome() == Outcome::kSkip) out->skip("no provider with RDMA");
}

void check_gpu_reg(const Inputs& in, Verdict* out) {
  ask(in, "this build registers no GPU memory: only a registration of the pool can tell",
      "nvidia-smi -q -d MEMORY; and a build with CUDA", out);
}

void check_bar1(const Inputs& in, Verdict* out) {
  const std::vector<const Gpu*> gpus = driven_gpus(in, true);
  if (gpus.empty()) return out->skip(kNoNvidia);
  if (peermem_module(in.tree).empty())
    return out->skip("no peer memory module: dmabuf maps itself");
  for (const Gpu* gpu : gpus) {
    if (gpu->bar1_bytes == 0) {
      out->unknown(name_of(*gpu) + ": its resources cannot be read", "nvidia-smi -q -d MEMORY");
      continue;
    }
    const std::string what = name_of(*gpu) + ": BAR1 has " + std::to_string(gpu->bar1_bytes >> 20) +
                             " MiB, the pool " + std::to_string(in.settings.pool_bytes >> 20);
    gpu->bar1_bytes < in.settings.pool_bytes ? out->fail(what) : out->pass(what);
  }
}

void check_topo(const Inputs& in, Verdict* out) {
  if (!has_nic(in, out)) return;
  std::vector<std::pair<std::string, int>> nics;
  for (const RdmaDevice& device : in.host.rdma) {
    nics.emplace_back(device.name, device.pci.numa_node);
  }
  for (const CxiDevice& device : in.host.cxi) nics.emplace_back(device.name, device.pci.numa_node);
  std::string all;
  for (const auto& [name, node] : nics) {
    all += (all.empty() ? "" : ", ") + name + " on node " + std::to_string(node);
  }
  for (const Gpu* gpu : driven_gpus(in, false)) {
    const int node = gpu->pci.numa_node;
    const std::string what = name_of(*gpu) + " is on node " + std::to_string(node) + "; " + all;
    const bool near =
        std::any_of(nics.begin(), nics.end(), [&](const auto& nic) { return nic.second == node; });
    if (node < 0 && in.host.numa_nodes != 1) {
      out->unknown(what, "nvidia-smi topo -m");
    } else {
      near || in.host.numa_nodes == 1 ? out->pass(what) : out->warn(what);
    }
  }
  if (out->outcome() == Outcome::kSkip) out->skip(kNoGpu);
}

void check_acs(const Inputs& in, Verdict* out) {
  if (driven_gpus(in, false).empty()) return out->skip(kNoGpu);
  if (!has_nic(in, out)) return;
  out->unknown("whether bridges redirect peer traffic stands in registers that only root reads",
               "sudo lspci -vvv | grep -i ACSCtl");
}

void check_gpu_throttle(const Inputs& in, Verdict* out) {
  ask(in, "the reasons for lower clocks are NVML's to tell", "nvidia-smi -q -d PERFORMANCE", out);
}

void check_gpu_mode(const Inputs& in, Verdict* out) {
  ask(in, "MIG, compute and confidential modes are NVML's to tell",
      "nvidia-smi -q | grep -iE 'mig|compute mode|cc '", out);
}

void check_nvl_fabric(const Inputs& in, Verdict* out) {
  ask(in, "the state of the NVLink fabric is NVML's to tell", "nvidia-smi -q | grep -A3 Fabric",
      out);
}

void check_pod_ipc(const Inputs& in, Verdict* out) {
  ask(in, "whether GPUs reach each other is CUDA's to tell", "nvidia-smi topo -p2p rw", out);
}

void check_gdr_order(const Inputs& in, Verdict* out) {
  ask(in, "the order of writes from NICs is CUDA's to tell (GPU_DIRECT_RDMA_WRITES_ORDERING)",
      "a build with CUDA", out);
}

}  // namespace kvd::doctor
