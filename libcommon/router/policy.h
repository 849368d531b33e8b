// Which pair of workers gets a request. Pure: no I/O, clock, threads or logging; the Rng is
// injected.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/ids.h"
#include "base/rng.h"
#include "base/status.h"

namespace kvd::router {

// What the router knows of a worker now. Only usable ones (alive, not draining, breaker closed,
// right model) are offered to a policy.
struct Candidate {
  std::string address;  // control address: the worker's name
  std::uint32_t queue = 0, running = 0, free_pages = 0, total_pages = 0;
  std::uint32_t assigned = 0;  // requests this router has there now
};

struct Pair {
  std::size_t prefill = 0, decode = 0;  // indices into the spans
};

class RoutingPolicy {
 public:
  virtual ~RoutingPolicy() = default;
  virtual std::string_view name() const = 0;
  // Nothing when either span is empty. Candidates named in `tried` (pairs "P>D") are avoided while
  // others are left.
  virtual std::optional<Pair> pick(std::span<const Candidate> prefills,
                                   std::span<const Candidate> decodes,
                                   std::span<const std::string> tried) = 0;
};

// "random", "round-robin". kInvalidArgument lists the names. `rng` must outlive the policy.
Result<std::unique_ptr<RoutingPolicy>> make_policy(std::string_view name, Rng* rng);
std::span<const std::string_view> policy_names();

}  // namespace kvd::router
