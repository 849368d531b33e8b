#include "peer/pages_sender.h"

#include <cstring>

#include "base/rng.h"
#include "probe/pattern.h"
#include "transfer/wire.h"

namespace kvd::tools {
namespace {

// Claims no order between writes, so that KvSender asks for the delivery of each page and posts the
// record alone after the last.
class UnorderedDomain final : public fabric::Domain {
 public:
  explicit UnorderedDomain(fabric::Domain* domain)
      : domain_(domain), capabilities_(domain->capabilities()) {
    capabilities_.write_after_write = false;
  }
  const fabric::Capabilities& capabilities() const override { return capabilities_; }
  Result<std::unique_ptr<fabric::Endpoint>> open_endpoint() override {
    return domain_->open_endpoint();
  }
  Result<std::unique_ptr<fabric::MemoryRegion>> register_memory(
      std::byte* data, std::uint64_t bytes, bool remote_write,
      fabric::Endpoint* endpoint) override {
    return domain_->register_memory(data, bytes, remote_write, endpoint);
  }

 private:
  fabric::Domain* domain_;
  fabric::Capabilities capabilities_;
};

}  // namespace

PagesSender::PagesSender(const SenderSpec& spec, fabric::Domain* domain,
                         control::Messenger* messenger, const Clock* clock, Sent sent)
    : spec_(spec),
      sent_(std::move(sent)),
      messenger_(messenger),
      clock_(clock),
      rng_(secure_random_u64()),
      unordered_(spec.isolated ? std::make_unique<UnorderedDomain>(domain) : nullptr),
      domain_(spec.isolated ? unordered_.get() : domain) {}

PagesSender::~PagesSender() = default;

Status PagesSender::open() {
  const bool shared = domain_->capabilities().shared_sources;
  auto buffer = device::HostBuffer::allocate(
      spec_.pool_bytes(), shared ? device::Backing::kShared : device::Backing::kPrivate);
  if (!buffer.ok()) return buffer.status();
  buffer_ = std::move(*buffer);
  std::memset(buffer_.data(), 0x5a, buffer_.size());  // no page fault is measured
  pool_ = std::make_unique<kv::PagePool>(spec_.layout, buffer_.data(),
                                         static_cast<std::uint32_t>(spec_.pool_pages()));
  Rng places(spec_.seed + 1);
  sets_ = std::make_unique<PageSets>(pool_.get(), spec_.sets, spec_.pages_each, spec_.open,
                                     spec_.fragmentation, &places, clock_->now());
  auto region = domain_->register_memory(buffer_.data(), buffer_.size(), false, nullptr);
  if (!region.ok()) return region.status();
  source_region_ = std::move(*region);
  const std::string provider = domain_->capabilities().provider;
  sender_ = std::make_unique<transfer::KvSender>(transfer_options(spec_, provider), pool_.get(),
                                                 messenger_, std::vector<fabric::Domain*>{domain_},
                                                 clock_, &rng_, nullptr,
                                                 static_cast<transfer::SenderHost*>(this));
  plain_ =
      std::make_unique<probe::PlainWriter>(domain_, buffer_.data(), pool_->memory_bytes(), clock_);
  return plain_->open();
}

Status PagesSender::connect(const PlainPlace& place) {
  return plain_->connect(place.address, place.region, place.bytes);
}

void PagesSender::describe(proto::Described* out) const {
  out->role = "prefill";
  out->fingerprint = transfer_options(spec_, "").fingerprint;
  out->layout = transfer::to_info(spec_.layout);
  out->providers = {domain_->capabilities().provider};
  out->load = load_now();
  out->scope = fabric::local_scope();
}

Status PagesSender::start_plain(const probe::PlainOrder& order) {
  KVD_RETURN_IF_ERROR(plain_->start(order));
  plain_running_ = true;
  return {};
}

bool PagesSender::step() {
  if (plain_running_) {
    const bool busy = plain_->step();
    if (plain_->running()) return busy;
    plain_running_ = false;
    plain_ended_ = clock_->now();
    return true;
  }
  // KvSender must not be called from inside its own calls: jobs wait for this turn.
  taken_.swap(jobs_);
  for (const Job& job : taken_) {
    if (fill_) {
      for (std::uint32_t i = 0; i < job.pages.size(); ++i) {
        probe::fill_pattern(pool_->page(job.pages[i]), spec_.layout.page_bytes(), job.room.value,
                            i);
      }
    }
    compute(job);
  }
  const bool busy = !taken_.empty();
  taken_.clear();
  return sender_->poll() || busy;
}

void PagesSender::compute(const Job& job) {
  for (const kv::LayerGroup& group : job.groups)
    sender_->layers_ready(job.room, group, 0, job.tokens);
  // After the groups: KvSender counts from here, too.
  computed_[job.room] = {job.started, clock_->now()};
  SampledToken first;
  first.id = 1;
  sender_->computed(job.room, first, Duration{0}, Duration{0});
}

void PagesSender::start_compute(transfer::PrefillJob job) {
  jobs_.push_back({job.room, static_cast<std::uint32_t>(job.prompt.size()),
                   fill_ ? std::move(job.pages) : std::vector<PageIndex>(), std::move(job.groups),
                   clock_->now()});
}

void PagesSender::room_over(RoomId room, const transfer::SenderOutcome& outcome) {
  sets_->rotate(clock_->now());
  const auto it = computed_.find(room);
  if (it == computed_.end()) return;
  if (outcome.status.ok()) {
    SentTimes times;
    times.room = room.value;
    times.started_ns = it->second.first.ns;
    times.computed_ns = it->second.second.ns;
    times.transfer_total_ns = outcome.transfer_total.count();
    times.transfer_exposed_ns = outcome.transfer_exposed.count();
    times.bytes = outcome.bytes;
    times.writes = outcome.writes;
    times.pieces = outcome.pieces;
    sent_(times);
  }
  computed_.erase(it);
}

proto::Load PagesSender::load_now() const {
  proto::Load out;
  out.running = static_cast<std::uint32_t>(jobs_.size());
  out.free_pages = pool_->counts().free;
  out.total_pages = pool_->page_count();
  return out;
}

void PagesSender::wait_fds(std::vector<int>* out) const {
  if (plain_running_) {
    out->push_back(plain_->endpoint().wait_fd());
  } else {
    sender_->wait_fds(out);
  }
}

bool PagesSender::may_wait() {
  if (!jobs_.empty()) return false;
  return plain_running_ ? plain_->may_wait() : sender_->may_wait();
}

TimePoint PagesSender::next_deadline() const {
  constexpr Duration kRetry{1'000'000};  // room in the send queue has no descriptor
  return plain_running_ ? clock_->now() + kRetry : sender_->next_deadline();
}

}  // namespace kvd::tools
