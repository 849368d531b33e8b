// Has every pair of peers measured, round after round, by the end that dials.
//
// Calling thread: the one that calls, which blocks.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "kvd-probe/mesh_result.h"

namespace kvd::tools {

struct MeshOptions {
  std::vector<std::string> peers;  // control addresses, as they reach each other
  std::string provider;            // of every pair, empty: the best that both have
  std::uint64_t bytes = 1u << 20;  // of a write, for the bandwidth
  Duration time{500'000'000};      // of a pair
  Duration timeout{30'000'000'000}, dead_after{2'000'000'000};
  std::string keys;
  std::function<bool()> stop;
  std::function<void(const std::string&)> notice;
  std::function<void(std::size_t)> progress;  // pairs that are done
};

// Peers that do not answer, and their pairs, have an error; the rest is measured. Errors: kInvalid-
// Argument (addresses, keys); kFailed when interrupted, with `result` as far as it came.
Status run_mesh(const MeshOptions& options, MeshResult* result);

}  // namespace kvd::tools
