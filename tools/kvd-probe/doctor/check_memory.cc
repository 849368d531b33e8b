// What limits memory that NICs reach.
#include <algorithm>

#include "kvd-probe/doctor/check_list.h"

namespace kvd::doctor {
namespace {

constexpr const char* kNoRdma = "no RDMA device: tcp pins no memory";

// "Max locked memory  8388608  8388608  bytes": the soft limit.
std::string soft_limit(const std::string& limits, const std::string& name) {
  for (const std::string& line : lines_of(limits)) {
    if (!line.starts_with(name)) continue;
    const std::vector<std::string> words = words_of(line.substr(name.size()));
    if (!words.empty()) return words.front();
  }
  return "";
}

bool may_lock(const std::string& status) {
  constexpr std::uint64_t kIpcLock = 1ull << 14;
  for (const std::string& line : lines_of(status)) {
    if (!line.starts_with("CapEff:")) continue;
    const std::vector<std::string> words = words_of(line);
    return words.size() == 2 && (number_of("0x" + words[1]).value_or(0) & kIpcLock) != 0;
  }
  return false;
}

bool is_set(const Inputs& in, const std::string& name) {
  return in.environment && in.environment->contains(name);
}

bool huge_pages(const Tree& tree) {
  const bool always =
      tree.read("sys/kernel/mm/transparent_hugepage/enabled").text.find("[always]") !=
      std::string::npos;
  return always || number_of(tree.read("proc/sys/vm/nr_hugepages").text).value_or(0) > 0;
}

// Of a line "mlx5_0 hca_handle=2 hca_object=2000"; nothing for "max".
std::optional<std::uint64_t> limit_of(const std::string& line, const std::string& name) {
  for (const std::string& word : words_of(line)) {
    if (word.starts_with(name)) return number_of(std::string_view(word).substr(name.size()));
  }
  return std::nullopt;
}

// Bytes of "size=65536k" among the options of a mount; nothing without one.
std::optional<std::uint64_t> size_option(const std::string& options) {
  std::size_t begin = options.find("size=");
  if (begin == std::string::npos) return std::nullopt;
  begin += 5;
  const auto number = number_of(std::string_view(options).substr(begin));
  if (!number || *number > 1ull << 50) return std::nullopt;
  const std::size_t unit = options.find_first_not_of("0123456789", begin);
  const char letter = unit == std::string::npos ? ',' : options[unit];
  const int shift = letter == 'k' ? 10 : letter == 'm' ? 20 : letter == 'g' ? 30 : 0;
  if (letter == '%' || *number > 1ull << (62 - shift)) return std::nullopt;
  return *number << shift;
}

}  // namespace

void check_memlock(const Inputs& in, Verdict* out) {
  if (!in.host.has_rdma()) return out->skip(kNoRdma);
  const std::string soft = soft_limit(in.tree.read("proc/self/limits").text, "Max locked memory");
  if (soft.empty()) return out->unknown("/proc/self/limits tells no limit", "ulimit -l");
  const auto bytes = number_of(soft);
  const std::string what = "limit " + soft + (bytes ? " bytes" : "") + ", pool " +
                           std::to_string(in.settings.pool_bytes) + " bytes";
  if (soft == "unlimited" || (bytes && *bytes >= in.settings.pool_bytes)) return out->pass(what);
  if (!bytes) return out->unknown(what, "ulimit -l");
  if (may_lock(in.tree.read("proc/self/status").text)) {
    return out->pass(what + ", which CAP_IPC_LOCK overrides");
  }
  out->fail(what);
}

void check_rdma_cgroup(const Inputs& in, Verdict* out) {
  if (!in.host.has_rdma()) return out->skip("no RDMA device");
  const std::string path = cgroup_path(in.tree) + "/rdma.max";
  const Text max = in.tree.read(path);
  if (max.access == Access::kAbsent) return out->skip("no RDMA controller in this cgroup");
  if (!max.ok()) return out->unknown("/" + path + " cannot be read", "sudo cat /" + path);
  // A handle a process; objects are queues, registrations and protection domains, some for each
  // peer.
  constexpr std::uint64_t kFewestObjects = 256;
  for (const std::string& line : lines_of(max.text)) {
    const auto handles = limit_of(line, "hca_handle="), objects = limit_of(line, "hca_object=");
    const bool few = (handles && *handles == 0) || (objects && *objects < kFewestObjects);
    few ? out->fail("rdma.max: " + line) : out->pass("rdma.max: " + line);
  }
  if (out->outcome() == Outcome::kSkip) out->pass("rdma.max names no limit");
}

void check_map_count(const Inputs& in, Verdict* out) {
  if (!in.host.has_rdma() && in.host.gpus.empty()) return out->skip("no RDMA device and no GPU");
  const auto count = number_of(in.tree.read("proc/sys/vm/max_map_count").text);
  if (!count) return out->unknown("vm.max_map_count cannot be read", "sysctl vm.max_map_count");
  const std::string what = "vm.max_map_count " + std::to_string(*count);
  *count <= 65530 ? out->warn(what) : out->pass(what);
}

void check_fork_huge(const Inputs& in, Verdict* out) {
  if (in.host.rdma.empty()) return out->skip("no verbs device");
  if (!in.environment) return out->skip("a recorded tree without an environment");
  const bool fork_safe = is_set(in, "RDMAV_FORK_SAFE") || is_set(in, "IBV_FORK_SAFE");
  if (!fork_safe) return out->pass("RDMAV_FORK_SAFE is not set");
  if (is_set(in, "RDMAV_HUGEPAGES_SAFE")) return out->pass("RDMAV_HUGEPAGES_SAFE is set too");
  if (in.host.kernel_at_least(5, 12)) {
    return out->pass("Linux " + in.host.kernel + " copies pinned pages on fork by itself");
  }
  huge_pages(in.tree) ? out->warn("RDMAV_FORK_SAFE without RDMAV_HUGEPAGES_SAFE, huge pages are on")
                      : out->pass("huge pages are off");
}

void check_shm(const Inputs& in, Verdict* out) {
  // What Docker gives a container, and too little for anyone.
  constexpr std::uint64_t kDockersDefault = 64ull << 20;
  const Text mounts = in.tree.read("proc/self/mounts");
  if (!mounts.ok()) return out->unknown("/proc/self/mounts cannot be read", "df /dev/shm");
  for (const std::string& line : lines_of(mounts.text)) {
    const std::vector<std::string> words = words_of(line);
    if (words.size() < 4 || words[1] != "/dev/shm") continue;
    const auto size = size_option(words[3]);
    if (!size) return out->pass("/dev/shm takes the kernel's default, half of the memory");
    const std::string what = "/dev/shm has " + std::to_string(*size >> 20) + " MiB";
    return *size <= kDockersDefault ? out->warn(what) : out->pass(what);
  }
  out->skip("/dev/shm is not mounted");
}

void check_numa_bal(const Inputs& in, Verdict* out) {
  const Text mode = in.tree.read("proc/sys/kernel/numa_balancing");
  if (mode.access == Access::kAbsent) return out->skip("this kernel balances no NUMA memory");
  if (!mode.ok()) {
    return out->unknown("kernel.numa_balancing cannot be read", "sysctl kernel.numa_balancing");
  }
  if (in.host.numa_nodes == 1) return out->pass("one NUMA node");
  const std::string what = "kernel.numa_balancing " + mode.text + ", " +
                           std::to_string(in.host.numa_nodes) + " NUMA nodes";
  mode.text == "0" ? out->pass(what) : out->warn(what);
}

}  // namespace kvd::doctor
