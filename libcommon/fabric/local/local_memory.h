// What a domain's connections may read from and what an endpoint's peer may write to.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace kvd::fabric::local {

// A memfd of this process that its writes may read from; the descriptor is the HostBuffer's.
struct Source {
  std::byte* data = nullptr;
  std::uint64_t bytes = 0;
  int fd = -1;
  std::uint32_t registrations = 0;
};
using SourceTable = std::vector<Source>;

// Memory here that the peer of one endpoint may write to, by its key.
struct TargetRegion {
  std::uint64_t key = 0, base = 0, bytes = 0;
  std::byte* data = nullptr;
};
using TargetTable = std::vector<TargetRegion>;

}  // namespace kvd::fabric::local
