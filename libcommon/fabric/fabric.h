// The data plane's only door: providers, domain, endpoint, memory region, remote writes.
//
// Three implementations pass one contract suite (tests/contract): `ofi/` (libfabric), `local/` (two
// processes of one host) and `sim/` (seeded simulation). Nothing above this header knows which one
// it has, except by Capabilities.
//
// Calling thread: one thread owns a Domain and everything made from it (the event loop).
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/status.h"

namespace kvd::fabric {

// What a provider really does; kvd-protocol.7 has the table of who established each.
struct Capabilities {
  std::string provider;  // kvd's transport name: "tcp", "tcp;ofi_rxm", "verbs;ofi_rxm", "efa",
                         // "cxi", "local", "sim"
  std::string libfabric_name;      // what libfabric calls it here ("net"), for humans
  bool write_after_write = false;  // writes of one endpoint to one peer land in order
  bool remote_cq_data = false;     // a write can signal the target's CQ
  bool delivery_complete =
      false;  // FI_DELIVERY_COMPLETE proves the bytes are in the target's memory
  bool endpoint_per_peer = false;  // TCP: closing the endpoint fences exactly one peer
  bool endpoint_close_fences =
      false;  // nothing lands after the target's endpoint is closed (measured)
  bool region_close_fences =
      false;                    // nothing lands after the target's region is closed (established)
  bool target_copies = false;   // the target pulls: it alone writes to its memory
  bool shared_sources = false;  // sources lie in shared memory (device::Backing::kShared) and are
                                // registered before a peer is inserted
  bool remote_read = true;      // Endpoint::read works
  bool rdma = false;            // bytes move without a CPU copy on either side
  bool emulated = false;        // the provider only emulates RMA; never silent
  std::uint32_t iov_limit = 1;  // local pieces a write
  std::uint32_t rma_iov_limit = 1;           // remote pieces a write
  std::uint64_t max_write_bytes = 1u << 20;  // never above 4 MiB on TCP, else 1 MiB
  // Longer ones may be posted, and move slower. Not below a unit of the digest.
  std::uint64_t best_write_bytes = std::numeric_limits<std::uint64_t>::max();
  // What a packet carries where packets are paced: a short one behind another waits for a timer.
  // 0: they are not, or it is not known.
  std::uint64_t packet_bytes = 0;
  std::uint32_t max_inflight_ops = 64;
  std::uint64_t max_inflight_bytes = 4u << 20;
};

// An address that a peer can insert: opaque bytes of the provider (fi_getname), at most 256.
using FabricAddress = std::string;
// A peer inserted into an endpoint's address vector.
using PeerHandle = std::uint64_t;

struct LocalPiece {
  const std::byte* address = nullptr;
  std::uint64_t bytes = 0;
};
// `offset` is relative to the region's base where Capabilities of the target said so: the remote
// side tells `base` with its region, and base + offset goes on the wire.
struct RemotePiece {
  std::uint64_t address = 0;  // RemoteRegion::base + offset
  std::uint64_t bytes = 0;
  std::uint64_t key = 0;
};

// One RMA write. The pieces are only read during the call of Endpoint::write; the memory they name
// must stay untouched until the completion with this `context`, or until the endpoint is closed.
struct WriteRequest {
  std::span<const LocalPiece> local{};
  std::span<const RemotePiece> remote{};  // same total length
  std::uint64_t context = 0;              // comes back in the Completion
  bool delivery_complete = false;         // complete only when the bytes are in the target's memory
  std::optional<std::uint64_t> remote_data{};  // signalled to the target's CQ with the last byte
};

enum class CompletionKind {
  kWrite,       // one of our writes ended; `status` says how
  kRemoteData,  // a peer's write with remote_data has landed here
  kFault,       // the endpoint is broken (status); everything on it is suspect
};
struct Completion {
  CompletionKind kind = CompletionKind::kWrite;
  std::uint64_t context = 0;  // kWrite
  std::uint64_t data = 0;     // kRemoteData
  Status status{};            // of kWrite and kFault
};

// What a peer needs to write here. Sent only over an accepted control channel.
struct RemoteRegion {
  std::uint64_t base = 0;
  std::uint64_t bytes = 0;
  std::uint64_t key = 0;
};

// A registration of memory. Destroying it makes the key dead for new writes; that is a fence only
// where Capabilities::region_close_fences. Destroy before the endpoint's domain.
class MemoryRegion {
 public:
  virtual ~MemoryRegion() = default;
  virtual RemoteRegion remote() const = 0;
};

// Whether a side's bytes go into a socket, and a peer's out of it, only in calls of the endpoint.
inline bool takes_by_looks(const Capabilities& capabilities) {
  return !capabilities.rdma && !capabilities.target_copies;
}

// How often a side that is being written to calls poll() before its loop does anything else, while
// nothing has completed. At a look `net` and rxm over TCP take what is there of one write, and say
// nothing of it: a tour of the loop for each would cost a tenth of the time of one of 16 KiB. A NIC
// needs no look, and where the target copies one look does all it may.
inline int looks_for_data(const Capabilities& capabilities) {
  return takes_by_looks(capabilities) ? 4 : 1;
}

// One endpoint with a completion queue and an event queue of its own. Destroying it closes the
// endpoint and drains its queue: on TCP nothing lands through it afterwards.
class Endpoint {
 public:
  virtual ~Endpoint() = default;
  virtual FabricAddress address() const = 0;
  // Makes `peer` writable. Does not connect and does not wait.
  virtual Result<PeerHandle> insert(const FabricAddress& peer) = 0;
  // kAgain: no room now, call poll() and try again (it may last for ever: callers set a deadline).
  // Any other error: nothing was posted.
  virtual Status write(PeerHandle peer, const WriteRequest& request) = 0;
  // Reads one piece (kvd-probe only, where Capabilities::remote_read; else kNoProvider).
  virtual Status read(PeerHandle peer, std::byte* into, const RemotePiece& from,
                      std::uint64_t context) = 0;
  // Makes progress and reaps at most out.size() completions; never blocks.
  virtual std::size_t poll(std::span<Completion> out) = 0;
  // One look: takes some of what lies in its sockets, where only calls do that, and reaps nothing:
  // between the parts of what keeps a thread from poll() for long (some 10 us), as a peer stops
  // when nobody takes its bytes, under bbr soonest. May be called while completions are handled.
  virtual void keep_moving() {}
  // The descriptor that becomes readable when poll() has work, or -1 (then the caller polls by
  // time).
  virtual int wait_fd() const = 0;
  // True when it is safe to block on wait_fd() now (fi_trywait). Makes progress. Call it after
  // poll() gave nothing, for every endpoint of the loop, right before blocking.
  virtual bool may_wait() = 0;
};

class Domain {
 public:
  virtual ~Domain() = default;
  virtual const Capabilities& capabilities() const = 0;
  // Errors: kNoProvider, kResourceExhausted.
  virtual Result<std::unique_ptr<Endpoint>> open_endpoint() = 0;
  // `remote_write`: peers may write with the key. Each call gives a registration of its own with
  // its own random key (where the application chooses keys). On providers that bind regions to
  // endpoints `endpoint` is the one that peers will write through; may be null for local sources.
  // With endpoint_per_peer a region that peers write to names its endpoint: the key opens no other.
  virtual Result<std::unique_ptr<MemoryRegion>> register_memory(std::byte* data,
                                                                std::uint64_t bytes,
                                                                bool remote_write,
                                                                Endpoint* endpoint) = 0;
};

// One provider as `list` shows it and as peers negotiate it.
struct ProviderInfo {
  std::string name;  // transport name as in Capabilities::provider
  std::string libfabric_name;
  std::string domain;   // "lo", "mlx5_0"
  std::string address;  // printable source address
  bool rdma = false;
};

// Options that choose and shape a domain.
struct DomainOptions {
  std::string provider;  // transport name; must be one that available_providers() lists
  std::string
      source_address;  // --fabric-addr: address of the interface (no port); loopback by default
  std::string device;  // --device: domain name, empty for any
};

// Names this build knows, best first (DESIGN 6 "Provider for a pair").
std::span<const std::string_view> provider_preference();
// What is here and usable for KV at this address, best first. Never lists sockets, udp or shm
// < 2.6.
std::vector<ProviderInfo> available_providers(const std::string& source_address,
                                              const std::string& device);
// The first of `ours` (in preference order) that `theirs` has too; kIncompatible names both lists.
Result<std::string> choose_provider(std::span<const std::string> ours,
                                    std::span<const std::string> theirs, bool require_rdma);
// Where `local` reaches, as a worker tells it to its peers: host (its boot), network namespace,
// user.
std::string local_scope();
// Ok when `local` may be tried with a worker that told this; else which of the three differs.
Status check_local_scope(const std::string& theirs);
// Why `provider` cannot be used here, and what to do: one line (kNoProvider; a name that is none:
// kInvalidArgument).
Status explain_missing(const std::string& provider);
// Opens fabric and domain. Errors: as explain_missing(), with the reason and the remedy.
Result<std::unique_ptr<Domain>> open_domain(const DomainOptions& options);

}  // namespace kvd::fabric
