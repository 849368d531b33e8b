#include "fabric/ofi/ofi_endpoint.h"

#include <netinet/in.h>
#include <poll.h>
#include <rdma/fi_errno.h>
#include <sys/uio.h>

#include <algorithm>
#include <cstring>

#include "base/log.h"
#include "base/rng.h"
#include "base/units.h"
#include "fabric/ofi/send_buffer.h"

namespace kvd::fabric::ofi {
namespace {

constexpr std::size_t kMaxAddressBytes = 256;
constexpr std::size_t kMaxPieces = 16;
constexpr std::size_t kMaxOps = 1024;
// poll() never blocks and never starves its caller: so many reads of the CQ a call.
constexpr int kRoundsPerPoll = 8;
constexpr int kTries = 8;  // to find a short connection to a new peer

void close_fid(const char* what, fid* object) {
  const int rc = fi_close(object);
  if (rc != 0)
    log_warn("libfabric did not close", {{"object", what}, {"reason", describe("fi_close", rc)}});
}

Status open_error(const Capabilities& capabilities, const char* call, long rc) {
  const bool full = rc == -FI_EMFILE || rc == -FI_ENOMEM || rc == -FI_ENOSPC;
  return Status(full ? StatusCode::kResourceExhausted : StatusCode::kNoProvider,
                capabilities.provider + ": " + describe(call, rc) +
                    (full ? " (raise the open files limit, ulimit -n)" : ""));
}

std::uint16_t family_of(const FabricAddress& address) {
  sockaddr any{};
  std::memcpy(&any, address.data(), std::min(address.size(), sizeof any));
  return any.sa_family;
}

}  // namespace

Result<std::unique_ptr<Endpoint>> OfiEndpoint::open(std::shared_ptr<DomainHandle> domain) {
  auto endpoint = std::make_unique<OfiEndpoint>();
  endpoint->domain_ = std::move(domain);
  KVD_RETURN_IF_ERROR(endpoint->open_queues());
  KVD_RETURN_IF_ERROR(endpoint->enable());
  return std::unique_ptr<Endpoint>(std::move(endpoint));
}

Status OfiEndpoint::open_queues() {
  const Capabilities& capabilities = domain_->fabric->offer.capabilities;
  fi_info* info = domain_->fabric->offer.info.get();
  fi_eq_attr eq_attr{};
  eq_attr.wait_obj = FI_WAIT_NONE;
  int rc = fi_eq_open(domain_->fabric->fabric, &eq_attr, &eq_, this);
  if (rc != 0) return open_error(capabilities, "fi_eq_open", rc);
  fi_av_attr av_attr{};
  av_attr.type =
      info->domain_attr->av_type == FI_AV_UNSPEC ? FI_AV_TABLE : info->domain_attr->av_type;
  rc = fi_av_open(domain_->domain, &av_attr, &av_, this);
  if (rc != 0) return open_error(capabilities, "fi_av_open", rc);
  KVD_RETURN_IF_ERROR(open_cq());
  // Last of all: `net` cannot close an endpoint that no address vector was bound to.
  rc = fi_endpoint(domain_->domain, info, &ep_, this);
  return rc == 0 ? Status() : open_error(capabilities, "fi_endpoint", rc);
}

Status OfiEndpoint::open_cq() {
  const Capabilities& capabilities = domain_->fabric->offer.capabilities;
  fi_cq_attr attr{};
  attr.format = FI_CQ_FORMAT_DATA;
  // Twice what may be in flight, and room for the peer's signals.
  attr.size = std::max<std::size_t>(4 * std::size_t{capabilities.max_inflight_ops}, 512);
  int rc = 0;
  if (capabilities.libfabric_name == "net") {
    // fi_trywait of `net` does nothing, so the CQ's own descriptor would stay readable for ever
    // after the first completion. A wait set's fi_wait(0) does reset it.
    fi_wait_attr wait_attr{};
    wait_attr.wait_obj = FI_WAIT_FD;
    rc = fi_wait_open(domain_->fabric->fabric, &wait_attr, &wait_);
    if (rc != 0) return open_error(capabilities, "fi_wait_open", rc);
    attr.wait_obj = FI_WAIT_SET;
    attr.wait_set = wait_;
    rc = fi_cq_open(domain_->domain, &attr, &cq_, this);
    if (rc == 0 && fi_control(&wait_->fid, FI_GETWAIT, &wait_fd_) != 0) wait_fd_ = -1;
  } else {
    attr.wait_obj = FI_WAIT_FD;
    rc = fi_cq_open(domain_->domain, &attr, &cq_, this);
    if (rc == 0) {
      if (fi_control(&cq_->fid, FI_GETWAIT, &wait_fd_) != 0) wait_fd_ = -1;
    } else {
      attr.wait_obj = FI_WAIT_NONE;
      rc = fi_cq_open(domain_->domain, &attr, &cq_, this);
    }
  }
  return rc == 0 ? Status() : open_error(capabilities, "fi_cq_open", rc);
}

Status OfiEndpoint::enable() {
  const Capabilities& capabilities = domain_->fabric->offer.capabilities;
  struct Binding {
    const char* what;
    fid* object;
    std::uint64_t flags;
  };
  for (const Binding& binding :
       {Binding{"fi_ep_bind(av)", &av_->fid, 0}, Binding{"fi_ep_bind(eq)", &eq_->fid, 0},
        Binding{"fi_ep_bind(cq)", &cq_->fid, FI_TRANSMIT | FI_RECV}}) {
    const int rc = fi_ep_bind(ep_, binding.object, binding.flags);
    if (rc != 0) return open_error(capabilities, binding.what, rc);
  }
  int rc = fi_enable(ep_);
  if (rc != 0) return open_error(capabilities, "fi_enable", rc);
  enabled_ = true;

  const std::size_t ops = std::clamp<std::size_t>(domain_->info().tx_attr->size, 64, kMaxOps);
  ops_.resize(ops);
  free_ops_.reserve(ops);
  for (Op& op : ops_) free_ops_.push_back(&op);
  receives_.resize(kReceives);
  if (domain_->needs(FI_MR_LOCAL)) {
    rc = fi_mr_reg(domain_->domain, receives_.data(), kReceives * sizeof(Receive), FI_RECV, 0,
                   secure_random_u64() & 0xffffffff, 0, &receive_mr_, nullptr);
    if (rc != 0) return open_error(capabilities, "fi_mr_reg", rc);
  }
  for (Receive& receive : receives_) {
    rc = post_receive(&receive);
    if (rc != 0) return open_error(capabilities, "fi_recv", rc);
  }
  char name[kMaxAddressBytes];
  std::size_t length = sizeof name;
  rc = fi_getname(&ep_->fid, name, &length);
  if (rc != 0 || length > sizeof name) return open_error(capabilities, "fi_getname", rc);
  address_.assign(name, length);
  return {};
}

OfiEndpoint::~OfiEndpoint() {
  for (OfiRegion* region : bound_) region->close();
  if (enabled_) {
    // Connection requests that are already here are taken in, lest their sockets outlive the
    // listener.
    fi_cq_data_entry entries[kCqEntries];
    for (int round = 0; round < 4; ++round) (void)fi_cq_read(cq_, entries, kCqEntries);
  }
  // The endpoint first: from here on nothing lands. Closing the CQ drops what it still holds; it is
  // not read again, because reading would make progress on behalf of an endpoint that is gone.
  if (ep_ != nullptr) close_fid("endpoint", &ep_->fid);
  if (receive_mr_ != nullptr) close_fid("receive buffers", &receive_mr_->fid);
  if (cq_ != nullptr) close_fid("completion queue", &cq_->fid);
  if (wait_ != nullptr) close_fid("wait set", &wait_->fid);
  if (av_ != nullptr) close_fid("address vector", &av_->fid);
  if (eq_ != nullptr) close_fid("event queue", &eq_->fid);
}

int OfiEndpoint::bind(fid_mr* mr, OfiRegion* region) {
  int rc = fi_mr_bind(mr, &ep_->fid, 0);
  if (rc == 0) rc = fi_mr_enable(mr);
  if (rc == 0) bound_.push_back(region);
  return rc;
}

void OfiEndpoint::forget(OfiRegion* region) { std::erase(bound_, region); }

int OfiEndpoint::post_receive(Receive* receive) {
  void* descriptor = receive_mr_ != nullptr ? fi_mr_desc(receive_mr_) : nullptr;
  return static_cast<int>(fi_recv(ep_, receive->bytes.data(), kReceiveBytes, descriptor,
                                  FI_ADDR_UNSPEC, &receive->scratch));
}

OfiEndpoint::Op* OfiEndpoint::take_op(std::uint64_t context) {
  if (free_ops_.empty()) return nullptr;
  Op* op = free_ops_.back();
  free_ops_.pop_back();
  op->context = context;
  return op;
}

void OfiEndpoint::give_back(Op* op) { free_ops_.push_back(op); }

OfiEndpoint::Op* OfiEndpoint::op_of(void* op_context) {
  auto* op = static_cast<Op*>(op_context);
  return op >= ops_.data() && op < ops_.data() + ops_.size() ? op : nullptr;
}

OfiEndpoint::Receive* OfiEndpoint::receive_of(void* op_context) {
  auto* receive = static_cast<Receive*>(op_context);
  const bool ours = receive >= receives_.data() && receive < receives_.data() + receives_.size();
  return ours ? receive : nullptr;
}

Result<PeerHandle> OfiEndpoint::insert(const FabricAddress& peer) {
  // fi_av_insert reads a fixed number of bytes: a short address from a peer must not get there.
  const Capabilities& capabilities = domain_->fabric->offer.capabilities;
  if (peer.size() != address_.size()) {
    return invalid_argument(capabilities.provider + ": a peer's address must have " +
                            std::to_string(address_.size()) + " bytes, this one has " +
                            std::to_string(peer.size()));
  }
  const std::uint32_t format = domain_->info().addr_format;
  const bool sockaddrs =
      format == FI_SOCKADDR || format == FI_SOCKADDR_IN || format == FI_SOCKADDR_IN6;
  if (sockaddrs && family_of(peer) != family_of(address_)) {
    return invalid_argument(capabilities.provider +
                            ": a peer's address is of another family than --fabric-addr");
  }
  fi_addr_t handle = FI_ADDR_UNSPEC;
  const int inserted = fi_av_insert(av_, peer.data(), 1, &handle, 0, nullptr);
  if (inserted != 1) {
    return invalid_argument(capabilities.provider + ": " +
                            describe("fi_av_insert", inserted < 0 ? inserted : -FI_EINVAL));
  }
  if (domain_->fabric->offer.bbr) new_peers_.push_back({peer});
  return PeerHandle{handle};
}

Status OfiEndpoint::posted(const char* call, long rc, Op* op) {
  if (rc != -FI_EAGAIN) {
    refusal_ = Refusal::kNone;
  } else if (refusal_ != Refusal::kRefusedAgain) {
    refusal_ = refusal_ == Refusal::kRetryOwed ? Refusal::kRefusedAgain : Refusal::kRefused;
  }
  if (rc == 0) return {};
  give_back(op);
  if (rc == -FI_EAGAIN) return {StatusCode::kAgain, describe(call, rc)};
  return unavailable(domain_->fabric->offer.capabilities.provider + ": " + describe(call, rc));
}

Status OfiEndpoint::write(PeerHandle peer, const WriteRequest& request) {
  const Capabilities& capabilities = domain_->fabric->offer.capabilities;
  if (request.local.empty() || request.local.size() > capabilities.iov_limit ||
      request.remote.empty() || request.remote.size() > capabilities.rma_iov_limit ||
      (request.remote_data && !capabilities.remote_cq_data)) {
    return invalid_argument("a write has more pieces, or asks for more, than " +
                            capabilities.provider + " can carry");
  }
  // Filled as far as they are used.
  std::array<iovec, kMaxPieces> local;
  std::array<void*, kMaxPieces> descriptors{};
  std::array<fi_rma_iov, kMaxPieces> remote;
  std::uint64_t local_bytes = 0, remote_bytes = 0;
  for (std::size_t i = 0; i < request.local.size(); ++i) {
    const LocalPiece& piece = request.local[i];
    local[i] = {const_cast<std::byte*>(piece.address), piece.bytes};
    local_bytes += piece.bytes;
    if (domain_->needs(FI_MR_LOCAL) &&
        !domain_->find_descriptor(piece.address, piece.bytes, &descriptors[i])) {
      return invalid_argument("the source of a write is not registered with " +
                              capabilities.provider);
    }
  }
  for (std::size_t i = 0; i < request.remote.size(); ++i) {
    const RemotePiece& piece = request.remote[i];
    remote[i] = {piece.address, piece.bytes, piece.key};
    remote_bytes += piece.bytes;
  }
  if (local_bytes == 0 || local_bytes != remote_bytes ||
      local_bytes > capabilities.max_write_bytes) {
    return invalid_argument("a write of " + format_bytes(local_bytes) + " to " +
                            format_bytes(remote_bytes) + " cannot be posted");
  }
  Op* op = take_op(request.context);
  if (op == nullptr) return {StatusCode::kAgain, "every operation of the endpoint is in flight"};
  fi_msg_rma message{};
  message.msg_iov = local.data();
  message.desc = descriptors.data();
  message.iov_count = request.local.size();
  message.addr = peer;
  message.rma_iov = remote.data();
  message.rma_iov_count = request.remote.size();
  message.context = &op->scratch;
  message.data = request.remote_data.value_or(0);
  // The level goes with the call: `net` ignores the defaults of the endpoint.
  std::uint64_t flags = FI_COMPLETION;
  if (request.delivery_complete) flags |= FI_DELIVERY_COMPLETE;
  if (request.remote_data) flags |= FI_REMOTE_CQ_DATA;
  return posted("fi_writemsg", fi_writemsg(ep_, &message, flags), op);
}

Status OfiEndpoint::read(PeerHandle peer, std::byte* into, const RemotePiece& from,
                         std::uint64_t context) {
  if (into == nullptr || from.bytes == 0) return invalid_argument("a read of nothing");
  void* descriptor = nullptr;
  if (domain_->needs(FI_MR_LOCAL) && !domain_->find_descriptor(into, from.bytes, &descriptor)) {
    return invalid_argument("the target of a read is not registered with " +
                            domain_->fabric->offer.capabilities.provider);
  }
  Op* op = take_op(context);
  if (op == nullptr) return {StatusCode::kAgain, "every operation of the endpoint is in flight"};
  iovec local{into, from.bytes};
  fi_rma_iov remote{from.address, from.bytes, from.key};
  fi_msg_rma message{};
  message.msg_iov = &local;
  message.desc = &descriptor;
  message.iov_count = 1;
  message.addr = peer;
  message.rma_iov = &remote;
  message.rma_iov_count = 1;
  message.context = &op->scratch;
  return posted("fi_readmsg", fi_readmsg(ep_, &message, FI_COMPLETION), op);
}

bool OfiEndpoint::on_entry(const fi_cq_data_entry& entry, Completion* out) {
  // The context of a remote write is not ours to follow: flags decide first.
  const bool local = (entry.flags & (FI_WRITE | FI_READ)) != 0 &&
                     (entry.flags & (FI_REMOTE_WRITE | FI_REMOTE_READ)) == 0;
  if (local) {
    Op* op = op_of(entry.op_context);
    if (op == nullptr) return false;
    *out = Completion{.kind = CompletionKind::kWrite, .context = op->context};
    give_back(op);
    if (!new_peers_.empty()) shorten_new_peers();
    return true;
  }
  if ((entry.flags & FI_RECV) != 0) {
    if (Receive* receive = receive_of(entry.op_context); receive != nullptr) {
      (void)post_receive(receive);
    }
  }
  if ((entry.flags & FI_REMOTE_CQ_DATA) == 0 || (entry.flags & FI_SEND) != 0) return false;
  *out = Completion{.kind = CompletionKind::kRemoteData, .data = entry.data};
  return true;
}

// The first round trips may have met a busy processor: some more are waited for.
void OfiEndpoint::shorten_new_peers() {
  for (NewPeer& peer : new_peers_) {
    peer.tries = shorten_send_buffers(peer.address) != 0 ? kTries : peer.tries + 1;
  }
  std::erase_if(new_peers_, [](const NewPeer& peer) { return peer.tries >= kTries; });
}

bool OfiEndpoint::on_error(Completion* out) {
  fi_cq_err_entry error{};
  const ssize_t rc = fi_cq_readerr(cq_, &error, 0);
  if (rc <= 0) return false;
  const std::string& provider = domain_->fabric->offer.capabilities.provider;
  const bool remote = (error.flags & (FI_REMOTE_WRITE | FI_REMOTE_READ)) != 0;
  Op* op = remote ? nullptr : op_of(error.op_context);
  if (op != nullptr) {
    *out = Completion{.kind = CompletionKind::kWrite, .context = op->context};
    out->status = Status(StatusCode::kFailed, provider + ": " + describe("write", error.err));
    give_back(op);
    return true;
  }
  if (Receive* receive = remote ? nullptr : receive_of(error.op_context); receive != nullptr) {
    (void)post_receive(receive);
    return false;
  }
  *out = Completion{.kind = CompletionKind::kFault};
  out->status = Status(StatusCode::kFailed, provider + ": " + describe("peer's write", error.err));
  return true;
}

// RDMA providers tell of internal errors here, and abort() where nobody listens (efa). TCP writes
// nothing.
bool OfiEndpoint::on_event(Completion* out) {
  std::uint32_t event = 0;
  std::array<std::byte, 256> data;
  const ssize_t rc = fi_eq_read(eq_, &event, data.data(), data.size(), 0);
  if (rc != -FI_EAVAIL) return false;
  fi_eq_err_entry error{};
  if (fi_eq_readerr(eq_, &error, 0) <= 0) return false;
  *out = Completion{.kind = CompletionKind::kFault};
  out->status = Status(StatusCode::kFailed, domain_->fabric->offer.capabilities.provider + ": " +
                                                describe("event", error.err));
  return true;
}

std::size_t OfiEndpoint::poll(std::span<Completion> out) {
  if (refusal_ == Refusal::kRefusedAgain) {
    if (!descriptor_is_readable()) return 0;
    refusal_ = Refusal::kRefused;
  }
  std::size_t count = 0;
  fi_cq_data_entry entries[kCqEntries];
  for (int round = 0; round < kRoundsPerPoll && count < out.size() && !cq_broken_; ++round) {
    const std::size_t room = std::min(kCqEntries, out.size() - count);
    const ssize_t got = fi_cq_read(cq_, entries, room);
    if (got > 0) {
      for (ssize_t i = 0; i < got; ++i) {
        if (on_entry(entries[i], &out[count])) ++count;
      }
      // Less than asked for: the queue is empty. Each read costs TCP providers system calls.
      if (got < static_cast<ssize_t>(room)) break;
    } else if (got == -FI_EAVAIL) {
      if (on_error(&out[count])) ++count;
    } else {
      if (got < 0 && got != -FI_EAGAIN && got != -FI_EINTR) {
        cq_broken_ = true;
        out[count] = Completion{.kind = CompletionKind::kFault};
        out[count++].status =
            Status(StatusCode::kFailed, domain_->fabric->offer.capabilities.provider + ": " +
                                            describe("fi_cq_read", got));
      }
      break;
    }
  }
  if (domain_->fabric->offer.capabilities.rdma && count < out.size() && on_event(&out[count])) {
    ++count;
  }
  return count;
}

// fi_cq(3): a count of 0 drives progress. Not after a refusal: poll() says why.
void OfiEndpoint::keep_moving() {
  const Capabilities& capabilities = domain_->fabric->offer.capabilities;
  if (capabilities.rdma || cq_broken_ || refusal_ == Refusal::kRefusedAgain) return;
  (void)fi_cq_read(cq_, nullptr, 0);  // an error is read by poll()
}

bool OfiEndpoint::descriptor_is_readable() const {
  pollfd entry{.fd = wait_fd_, .events = POLLIN, .revents = 0};
  return ::poll(&entry, 1, 0) != 0;
}

bool OfiEndpoint::may_wait() {
  if (wait_fd_ < 0) return true;
  if (refusal_ == Refusal::kRefusedAgain) return !descriptor_is_readable();
  if (!provider_may_wait()) return false;
  if (refusal_ == Refusal::kRefused) {
    refusal_ = Refusal::kRetryOwed;
    return false;
  }
  refusal_ = Refusal::kNone;
  return true;
}

bool OfiEndpoint::provider_may_wait() {
  if (wait_ != nullptr) return fi_wait(wait_, 0) == -FI_ETIMEDOUT;
  fid* queue = &cq_->fid;
  return fi_trywait(domain_->fabric->fabric, &queue, 1) == 0;
}

}  // namespace kvd::fabric::ofi
