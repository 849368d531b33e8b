#include "kv/page_pool.h"

#include <algorithm>

namespace kvd::kv {

std::string_view to_string(Proof proof) {
  switch (proof) {
    case Proof::kNeverExposed:
      return "never_exposed";
    case Proof::kSequenceDone:
      return "sequence_done";
    case Proof::kDrained:
      return "drained";
    case Proof::kEndpointClosed:
      return "endpoint_closed";
    case Proof::kRegionClosed:
      return "region_closed";
    case Proof::kCopyReturned:
      return "copy_returned";
    case Proof::kSourceDone:
      return "source_done";
  }
  return "unknown";
}

std::vector<PageRun> to_runs(std::span<const PageIndex> pages) {
  std::vector<PageRun> runs;
  for (const PageIndex page : pages) {
    if (!runs.empty() && runs.back().first + runs.back().count == page) {
      ++runs.back().count;
    } else {
      runs.push_back({page, 1});
    }
  }
  return runs;
}

PagePool::PagePool(KvLayout layout, std::byte* memory, std::uint32_t page_count)
    : layout_(std::move(layout)),
      memory_(memory),
      page_count_(page_count),
      free_(page_count, true) {
  KVD_CHECK(layout_.validate().ok());
  counts_.free = page_count;
}

Result<LeaseId> PagePool::lease(std::uint32_t count, TimePoint now) {
  KVD_CHECK(count > 0);
  if (count > counts_.free) {
    return Status(StatusCode::kResourceExhausted, std::to_string(count) + " pages wanted, " +
                                                      std::to_string(counts_.free) + " free");
  }
  // First a single run that is long enough (next fit), else the free pages in order of address,
  // which are as few runs as a sweep can find.
  std::vector<PageIndex> pages;
  pages.reserve(count);
  std::uint32_t run = 0;
  for (std::uint32_t step = 0; step < page_count_ && run < count; ++step) {
    const std::uint32_t page = (search_from_ + step) % page_count_;
    if (page == 0) run = 0;
    run = free_[page] ? run + 1 : 0;
    if (run == count) {
      for (std::uint32_t i = 0; i < count; ++i) pages.push_back(page + 1 - count + i);
    }
  }
  for (std::uint32_t page = 0; pages.size() < count; ++page) {
    if (free_[page]) pages.push_back(page);
  }
  for (const PageIndex page : pages) free_[page] = false;
  search_from_ = (pages.back() + 1) % page_count_;
  counts_.free -= count;
  counts_.leased += count;
  const LeaseId id{next_lease_++};
  Lease& lease = leases_[id];
  lease.since = lease.leased_at = now;
  lease.pages = std::move(pages);
  return id;
}

std::span<const PageIndex> PagePool::pages(LeaseId lease) const {
  const auto it = leases_.find(lease);
  KVD_CHECK(it != leases_.end());
  return it->second.pages;
}

void PagePool::assign(LeaseId lease, RoomId room, Incarnation peer) {
  const auto it = leases_.find(lease);
  KVD_CHECK(it != leases_.end());
  it->second.room = room;
  it->second.peer = peer;
}

void PagePool::quarantine(LeaseId lease, std::string missing, TimePoint now) {
  const auto it = leases_.find(lease);
  KVD_CHECK(it != leases_.end());
  Lease& entry = it->second;
  entry.missing = std::move(missing);
  if (entry.quarantined) return;
  entry.quarantined = true;
  entry.since = now;
  const auto count = static_cast<std::uint32_t>(entry.pages.size());
  counts_.leased -= count;
  counts_.quarantined += count;
}

bool PagePool::is_quarantined(LeaseId lease) const {
  const auto it = leases_.find(lease);
  KVD_CHECK(it != leases_.end());
  return it->second.quarantined;
}

void PagePool::release(LeaseId lease, Proof proof) {
  const auto it = leases_.find(lease);
  KVD_CHECK(it != leases_.end());
  const Lease& entry = it->second;
  // A quarantined page needs a proof about the peer; that its own sequence is done proves nothing.
  KVD_CHECK(!entry.quarantined || (proof != Proof::kNeverExposed && proof != Proof::kSequenceDone));
  KVD_CHECK(proof != Proof::kNeverExposed || !entry.peer);
  const auto count = static_cast<std::uint32_t>(entry.pages.size());
  for (const PageIndex page : entry.pages) {
    KVD_CHECK(!free_[page]);
    free_[page] = true;
  }
  (entry.quarantined ? counts_.quarantined : counts_.leased) -= count;
  counts_.free += count;
  leases_.erase(it);
}

std::unordered_map<Incarnation, std::uint32_t> PagePool::quarantined_by_peer() const {
  std::unordered_map<Incarnation, std::uint32_t> out;
  for (const auto& [id, lease] : leases_) {
    if (lease.quarantined) out[lease.peer] += static_cast<std::uint32_t>(lease.pages.size());
  }
  return out;
}

std::vector<LeaseInfo> PagePool::leases() const {
  std::vector<LeaseInfo> out;
  out.reserve(leases_.size());
  for (const auto& [id, lease] : leases_) {
    out.push_back({id, lease.room, lease.peer, lease.quarantined, lease.since, to_runs(lease.pages),
                   lease.missing});
  }
  std::sort(out.begin(), out.end(),
            [](const LeaseInfo& a, const LeaseInfo& b) { return a.id < b.id; });
  return out;
}

Duration PagePool::oldest_lease(TimePoint now) const {
  Duration oldest{0};
  for (const auto& [id, lease] : leases_) oldest = std::max(oldest, now - lease.leased_at);
  return oldest;
}

}  // namespace kvd::kv
