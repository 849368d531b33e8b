// The providers that a process offers to its peers: one open domain for each, best first.
//
// Any thread; the domains belong to one.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "fabric/fabric.h"
#include "node/options.h"

namespace kvd::node {

// The address that peers write to: --fabric-addr, else the host of --listen. kInvalidArgument when
// that names no interface.
Result<std::string> fabric_source(const std::string& fabric_addr, const std::string& listen);

struct ProviderOptions {
  std::string provider;  // --provider, empty: all that are here
  std::string device;    // --device
  std::string source;    // address of this host
  bool require_rdma = false;
};

class ProviderSet {
 public:
  // A provider that cannot be opened is logged and left out. When none is left:
  // kNoProvider, or kInvalidArgument where `provider` is no name of one.
  static Result<ProviderSet> open(const ProviderOptions& options);

  const std::vector<std::string>& names() const { return names_; }
  std::vector<fabric::Domain*> domains() const;
  bool offers(std::string_view provider) const;
  void drop(std::string_view provider);
  // What Described.scope tells: empty without `local`.
  std::string scope() const;

 private:
  std::vector<std::unique_ptr<fabric::Domain>> domains_;
  std::vector<std::string> names_;
};

}  // namespace kvd::node
