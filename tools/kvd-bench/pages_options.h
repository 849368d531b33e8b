// What `kvd-bench pages` is told.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "kv/layout.h"
#include "kvd-bench/pages_shape.h"
#include "transfer/options.h"

namespace kvd::tools {

struct PagesOptions {
  std::string shape = "SmolLM2-135M", model_config, tokens;
  std::uint64_t page_bytes = 0;  // 0: of the shape
  std::optional<std::uint32_t> pages;
  std::uint32_t tp = 1, page_size = 32;
  bool groups = false;  // as streamed; else whole pages
  double fragmentation = 0;

  std::string peer;  // HOST:PORT of a kvd-probe serve; empty: the sender is started here
  std::string keys;
  std::string provider, device;
  std::string fabric_addr;  // empty: loopback; with a peer the address that the way to it begins at
  std::uint32_t concurrency = 4;
  std::optional<double> rate;    // requests a second, open loop
  std::uint64_t pool_bytes = 0;  // 0: chosen
  transfer::Digest digest = transfer::Digest::kSample;
  bool spin = false;
  std::vector<int> pin;  // sender's CPU, receiver's CPU

  Duration max_time{60'000'000'000}, timeout{30'000'000'000}, dead_after{2'000'000'000};
  std::uint32_t least_pairs = 30, most_pairs = 200;
  double tight = 0.01;  // half the width of the ratio's confidence interval, of the ratio
  std::uint64_t seed = 1;
  bool csv = false, ndjson = false;

  // While a peer is waited for.
  std::function<bool()> stop;                      // true: give up; may be null
  std::function<void(const std::string&)> notice;  // what is waited for; may be null
};

// What the options come to; `check_pages` makes it.
struct PagesPlan {
  PagesOptions options;
  ModelShape shape;
  kv::KvLayout layout;
  TokenLengths tokens;
  std::uint32_t pages_each = 0;  // of the longest request
  std::uint32_t sets = 0;        // sets of pages in each pool
  std::uint32_t pool_pages = 0;
  std::uint32_t requests_a_round = 0;
};
Result<PagesPlan> check_pages(const PagesOptions& options);

}  // namespace kvd::tools
