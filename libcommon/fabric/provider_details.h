// What this host offers for KV transfer, in full, and why the rest is missing: for people and for
// the checks of kvd-probe. Workers choose by fabric.h alone.
//
// Calling thread: any; each call asks libfabric anew (milliseconds, more with RDMA devices).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "fabric/fabric.h"

namespace kvd::fabric {

// One provider at one domain and address. Numbers are what the provider says of itself; what kvd
// then relies on is in `capabilities`.
struct ProviderDetails {
  ProviderInfo info;
  Capabilities capabilities;
  bool rma_write = false;
  bool rma_read = false;
  bool remote_cq_data = false;        // the provider says so; kvd may know better (capabilities)
  bool hmem = false;                  // FI_HMEM: registers memory of devices
  std::optional<bool> dmabuf;         // FI_MR_DMABUF; nothing: only trying can tell
  std::vector<std::string> mr_modes;  // demands on registrations: "virt_addr", "allocated", ...
  std::uint64_t max_message_bytes = 0;
  std::uint64_t inject_bytes = 0;
  std::uint64_t cq_data_bytes = 0;
  std::uint64_t tx_queue = 0;     // operations
  std::uint64_t max_regions = 0;  // 0: the provider names no limit
  std::uint64_t iov_limit = 0;
  std::uint64_t rma_iov_limit = 0;
  std::string progress;  // of data: "auto" or "manual"
  // Of the NIC, where the provider tells it: 0 and "" where not.
  std::uint64_t link_bits_per_s = 0;
  std::string link_state;   // "up", "down"
  std::string pci_address;  // "0000:3b:00.0"
};

enum class MissingReason {
  kFiltered,      // an environment variable excludes it
  kNoDevice,      // the host has no NIC for it
  kNoPermission,  // a NIC is there, this process may not use it
  kNotInstalled,  // a usable NIC is there, this libfabric does not offer it
};
std::string_view to_string(MissingReason reason);

struct MissingProvider {
  std::string name;  // transport name
  MissingReason reason = MissingReason::kNoDevice;
  std::string message;  // one line with the remedy
};

// Every transport of provider_preference() that is here, at every domain and address, best first,
// each once.
std::vector<ProviderDetails> list_providers();
// The others of provider_preference(). `fi_provider`: the value of libfabric's own filter, the
// variable FI_PROVIDER; empty when not set.
std::vector<MissingProvider> missing_providers(const std::vector<ProviderDetails>& found,
                                               const std::string& fi_provider);
// libfabric's providers that are here and that kvd never uses ("sockets", "udp", "shm", ...).
std::vector<std::string> unused_providers();
// Whether a filter in the form of FI_PROVIDER ("tcp,net", "^net") leaves out `libfabric_name`.
bool is_filtered(std::string_view fi_provider, std::string_view libfabric_name);
// "1.17"
std::string libfabric_version();
// Whether a variable of libfabric's has the value that every kvd process sets where it has none.
bool is_own_setting(std::string_view name, std::string_view value);

}  // namespace kvd::fabric
