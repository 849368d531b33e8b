#include "kvd-probe/doctor/facts.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <set>
#include <thread>

#include "fabric/provider_details.h"
#include "kvd-probe/doctor/net_query.h"

namespace kvd::doctor {
namespace {

using fabric::ProviderDetails;

constexpr std::size_t kWriteBytes = 64 << 10;
constexpr std::uint64_t kContext = 7;

std::string provider_lines(const std::vector<ProviderDetails>& all) {
  std::set<std::string> seen;
  std::string out;
  for (const ProviderDetails& details : all) {
    std::string line = details.info.name + " " + details.info.domain;
    if (!seen.insert(line).second) continue;
    if (details.hmem) line += " hmem";
    if (details.capabilities.emulated) line += " emulated";
    if (details.max_regions != 0) line += " regions=" + std::to_string(details.max_regions);
    out += line + "\n";
  }
  return out;
}

struct Side {
  std::unique_ptr<fabric::Endpoint> endpoint;
  std::vector<std::byte> memory = std::vector<std::byte>(kWriteBytes);
  std::unique_ptr<fabric::MemoryRegion> region;
};

Status open_side(fabric::Domain& domain, bool target, Side* side) {
  auto endpoint = domain.open_endpoint();
  if (!endpoint.ok()) return endpoint.status();
  side->endpoint = std::move(*endpoint);
  auto region = domain.register_memory(side->memory.data(), side->memory.size(), target,
                                       side->endpoint.get());
  if (!region.ok()) return region.status();
  side->region = std::move(*region);
  return {};
}

// Posts until it is taken and polls both ends until it is complete.
Status carry(Side& from, Side& to, fabric::PeerHandle peer, bool delivery) {
  const fabric::RemoteRegion remote = to.region->remote();
  const std::array<fabric::LocalPiece, 1> local = {{{from.memory.data(), kWriteBytes}}};
  const std::array<fabric::RemotePiece, 1> pieces = {{{remote.base, kWriteBytes, remote.key}}};
  const fabric::WriteRequest request{
      .local = local, .remote = pieces, .context = kContext, .delivery_complete = delivery};
  const SteadyClock clock;
  const TimePoint deadline = clock.now() + kWriteDeadline;
  bool posted = false;
  std::array<fabric::Completion, 8> done;
  while (clock.now() < deadline) {
    if (!posted) {
      const Status status = from.endpoint->write(peer, request);
      if (!status.ok() && status.code() != StatusCode::kAgain) return status;
      posted = status.ok();
    }
    for (Side* side : {&to, &from}) {
      const std::size_t n = side->endpoint->poll(done);
      for (std::size_t i = 0; i < n; ++i) {
        if (!done[i].status.ok()) return done[i].status;
        if (side == &from && done[i].kind == fabric::CompletionKind::kWrite) {
          return from.memory == to.memory ? Status()
                                          : Status(StatusCode::kCorrupted, "other bytes arrived");
        }
      }
    }
    std::this_thread::yield();
  }
  return {StatusCode::kDeadline, "no completion within 2 s"};
}

Status write_to_self(const ProviderDetails& details) {
  auto domain = fabric::open_domain({.provider = details.info.name,
                                     .source_address = details.info.address,
                                     .device = details.info.domain});
  if (!domain.ok()) return domain.status();
  Side to, from;
  KVD_RETURN_IF_ERROR(open_side(**domain, true, &to));
  KVD_RETURN_IF_ERROR(open_side(**domain, false, &from));
  for (std::size_t i = 0; i < kWriteBytes; ++i) {
    from.memory[i] = static_cast<std::byte>(i * 131 + i / 251 + 1);
  }
  const auto peer = from.endpoint->insert(to.endpoint->address());
  if (!peer.ok()) return peer.status();
  return carry(from, to, *peer, (*domain)->capabilities().delivery_complete);
}

// Once for each provider and domain, at its first address.
std::string self_writes(const std::vector<ProviderDetails>& all) {
  std::set<std::string> seen;
  std::string out;
  for (const ProviderDetails& details : all) {
    // `local` carries between processes only.
    if (details.info.name == "local") continue;
    const std::string place = details.info.name + " " + details.info.domain;
    if (!seen.insert(place).second) continue;
    const Status status = write_to_self(details);
    out += details.info.name + (status.ok() ? " ok" : " failed") + " at " + details.info.domain +
           (details.info.address.empty() ? "" : " " + details.info.address) + ": " +
           (status.ok() ? std::to_string(kWriteBytes) + " bytes written and compared"
                        : status.message()) +
           "\n";
  }
  return out;
}

}  // namespace

Facts collect_facts(const Host& host, const std::map<std::string, std::string>& environment) {
  Facts out = collect_statistics(host);
  const std::vector<ProviderDetails> all = fabric::list_providers();
  out["kvd/providers"] = provider_lines(all);
  out["kvd/self-write"] = self_writes(all);
  std::string variables;
  for (const auto& [name, value] : environment) {
    if (fabric::is_own_setting(name, value)) continue;
    // A variable with a line break would pass for two.
    std::string line = name + "=" + value;
    std::replace(line.begin(), line.end(), '\n', ' ');
    variables += line + "\n";
  }
  out["kvd/environment"] = variables;
  for (const NetDevice& device : host.net) {
    if (!device.physical) continue;
    if (const std::string text = offloads_of(device.name); !text.empty()) {
      out["kvd/offloads/" + device.name] = text;
    }
    if (const std::string text = flow_control_of(device.name); !text.empty()) {
      out["kvd/dcb/" + device.name] = text;
    }
  }
  return out;
}

Facts collect_statistics(const Host& host) {
  Facts out;
  for (const NetDevice& device : host.net) {
    if (!device.physical) continue;
    if (const std::string text = statistics_of(device.name); !text.empty()) {
      out["kvd/statistics/" + device.name] = text;
    }
  }
  return out;
}

}  // namespace kvd::doctor
