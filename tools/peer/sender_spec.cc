#include "peer/sender_spec.h"

#include <algorithm>

#include "base/units.h"
#include "peer/page_sets.h"
#include "transfer/digest.h"

namespace kvd::tools {
namespace {

constexpr std::uint64_t kMostPoolPages = 1u << 20;  // each is looked at while the pool is opened
constexpr std::uint32_t kMostSets = 4096, kMostPageSize = 4096;

Status check_numbers(const proto::PagesProbe& p) {
  const auto bad = [](const char* name, std::uint64_t value) {
    return invalid_argument("pages: " + std::string(name) + " " + std::to_string(value) +
                            " is out of bounds");
  };
  if (p.page_size > kMostPageSize) return bad("page_size", p.page_size);
  if (p.sets < 2 || p.sets > kMostSets) return bad("sets", p.sets);
  if (p.open == 0 || p.open >= p.sets) return bad("open", p.open);
  if (p.pages == 0) return bad("pages", p.pages);
  if (p.timeout_ms == 0) return bad("timeout_ms", p.timeout_ms);
  if (p.digest.empty()) return invalid_argument("pages: no digest");
  return {};
}

}  // namespace

std::uint64_t SenderSpec::pool_pages() const {
  return PageSets::pages_needed(sets, pages_each, fragmentation);
}

proto::PagesProbe to_probe(const SenderSpec& spec) {
  proto::PagesProbe out;
  out.model = spec.model.substr(0, 64);
  out.layers = spec.layout.layers;
  out.kv_heads = spec.layout.kv_heads;
  out.head_dim = spec.layout.head_dim;
  out.page_size = spec.layout.page_size;
  out.pages = spec.pages_each;
  out.sets = spec.sets;
  out.open = spec.open;
  out.fragmentation = static_cast<float>(spec.fragmentation);
  out.seed = spec.seed;
  out.digest = transfer::to_string(spec.digest);
  out.groups = spec.groups;
  out.isolated = spec.isolated;
  out.timeout_ms = static_cast<std::uint32_t>(
      std::clamp<std::int64_t>(spec.timeout.count() / 1'000'000, 1, proto::ProbeBounds::kMs));
  return out;
}

Result<SenderSpec> checked_spec(const proto::PagesProbe& p, std::uint64_t available) {
  KVD_RETURN_IF_ERROR(check_numbers(p));
  SenderSpec out;
  out.model = p.model;
  out.layout.layers = p.layers;
  out.layout.kv_heads = p.kv_heads;
  out.layout.head_dim = p.head_dim;
  out.layout.page_size = p.page_size;
  if (const Status valid = out.layout.validate(); !valid.ok()) return valid;
  out.pages_each = p.pages;
  out.sets = p.sets;
  out.open = p.open;
  out.fragmentation = p.fragmentation;
  out.seed = p.seed;
  out.digest = p.digest == "full"  ? transfer::Digest::kFull
               : p.digest == "off" ? transfer::Digest::kOff
                                   : transfer::Digest::kSample;
  out.groups = p.groups;
  out.isolated = p.isolated;
  out.timeout = std::chrono::milliseconds(p.timeout_ms);
  if (out.pool_pages() > kMostPoolPages) {
    return invalid_argument("pages: a pool of " + std::to_string(out.pool_pages()) +
                            " pages; a peer takes " + std::to_string(kMostPoolPages) + " at most");
  }
  const std::uint64_t bytes = out.pool_bytes();
  // A quarter is left for what else the host does.
  const std::uint64_t most = std::min(kMostPeerPoolBytes, available - available / 4);
  if (bytes > most) {
    return invalid_argument("a pool of " + format_bytes(bytes) + " is asked for, and " +
                            format_bytes(most) +
                            " can be given: lower --kv-memory, --concurrency or the request's "
                            "length");
  }
  return out;
}

transfer::TransferOptions transfer_options(const SenderSpec& spec, const std::string& provider) {
  transfer::TransferOptions out;
  out.model = spec.model;
  out.fingerprint = "bench:" + spec.model;
  out.providers = {provider};
  out.stream = spec.groups;
  out.digest = spec.digest;
  // As many as have pages in the smallest requests, and those whose end is still on its way.
  out.max_rooms = static_cast<std::uint32_t>(
      std::clamp<std::uint64_t>(std::uint64_t{4} * spec.open * spec.pages_each, 16, out.max_rooms));
  // Verification and a busy host may hold a loop up; nothing here tests liveness.
  out.dead_after = spec.timeout;
  out.drain_timeout = spec.timeout;
  return out;
}

}  // namespace kvd::tools
