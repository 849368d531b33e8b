// What libfabric offers for one of kvd's transport names.
#pragma once

#include <rdma/fabric.h>
#include <rdma/fi_domain.h>

#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "fabric/fabric.h"

namespace kvd::fabric::ofi {

struct FreeInfo {
  void operator()(fi_info* info) const { fi_freeinfo(info); }
};
using InfoPtr = std::unique_ptr<fi_info, FreeInfo>;

// One libfabric offer and what kvd may rely on there.
struct Offer {
  InfoPtr info;  // exactly one entry, ready for fi_fabric and fi_domain
  Capabilities capabilities;
  std::string address;  // printable source address
  bool bbr = false;     // paces the connections
};

// "call: reason", the reason in libfabric's words; `rc` is a negative fi_errno.
std::string describe(const char* call, long rc);

// Whether peers can be told `source_address`: one address of this host, not a wildcard. kNoProvider
// says what to give instead. Only providers with IP addresses need it.
Status check_source(const std::string& provider, const std::string& source_address);

// libfabric's names for one transport. `net` of 1.17 became `tcp` in 1.18 and speaks the same
// protocol. Empty: no transport of libfabric.
std::vector<const char*> libfabric_names(const std::string& provider);

// What kvd asks of a provider; empty pointer when memory is out.
InfoPtr make_hints(const std::string& provider, const char* libfabric_name,
                   const std::string& device, std::uint64_t tx_op_flags);

// Every usable offer of `provider`, one for each domain and address, best first.
std::vector<Offer> find_all_offers(const std::string& provider);

// Every usable offer of `provider`, best first. Empty: not here, or not at this address.
std::vector<Offer> find_offers(const std::string& provider, const std::string& source_address,
                               const std::string& device);

}  // namespace kvd::fabric::ofi
