#include "kv/page_pool.h"

#include <algorithm>
#include <bit>
#include <functional>
#include <numeric>

namespace kvd::kv {

namespace {

// Calls `with(word, bits)` for each word of a bitmap of pages that holds some of the run.
template <typename With>
void for_words(PageRun run, With with) {
  while (run.count > 0) {
    const std::uint32_t bit = run.first % 64, count = std::min(run.count, 64 - bit);
    with(run.first / 64, (~std::uint64_t{0} >> (64 - count)) << bit);
    run.first += count;
    run.count -= count;
  }
}

// The run that starts with the first of `pages`; they need not be in order.
PageRun first_run(std::span<const PageIndex> pages) {
  PageRun run{pages.front(), 1};
  while (run.count < pages.size() && pages[run.count] == run.first + run.count) ++run.count;
  return run;
}

// Runs that are looked at before a lease takes the best of them, when they hold enough pages: a
// large pool in single pages would otherwise be gone through for each lease.
constexpr std::size_t kMostRuns = 4096;

// The length such that the longer runs have fewer than `count` pages and, with those of just this
// length, enough. `longer`: the pages of the longer ones.
std::uint32_t shortest_kept(const std::vector<PageRun>& runs, std::uint32_t count,
                            std::uint64_t* longer) {
  constexpr std::uint32_t kBuckets = 1024;  // pages by the length of their run; few are longer
  std::vector<std::uint64_t> pages(kBuckets, 0);
  std::vector<std::uint32_t> lengths;
  for (const PageRun& run : runs) {
    if (run.count < kBuckets) {
      pages[run.count] += run.count;
    } else {
      lengths.push_back(run.count);
    }
  }
  std::sort(lengths.begin(), lengths.end(), std::greater<>());
  *longer = 0;
  for (std::size_t i = 0; i < lengths.size();) {
    std::uint64_t same = 0;
    const std::uint32_t length = lengths[i];
    for (; i < lengths.size() && lengths[i] == length; ++i) same += length;
    if (*longer + same >= count) return length;
    *longer += same;
  }
  std::uint32_t length = kBuckets - 1;
  while (length > 1 && *longer + pages[length] < count) *longer += pages[length--];
  return length;
}

// Of runs in order of address that together have `count` pages at least: the longest, still in
// order; as many as are needed.
void keep_longest(std::vector<PageRun>* runs, std::uint32_t count) {
  std::uint64_t longer = 0;
  const std::uint32_t shortest = shortest_kept(*runs, count, &longer);
  std::uint64_t wanted = count - longer;  // of runs that are just as long as `shortest`
  std::erase_if(*runs, [&](const PageRun& run) {
    if (run.count > shortest) return false;
    if (run.count < shortest || wanted == 0) return true;
    wanted -= std::min<std::uint64_t>(wanted, run.count);
    return false;
  });
}

}  // namespace

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
  while (!pages.empty()) {
    runs.push_back(first_run(pages));
    pages = pages.subspan(runs.back().count);
  }
  return runs;
}

PagePool::PagePool(KvLayout layout, std::byte* memory, std::uint32_t page_count)
    : layout_(std::move(layout)),
      memory_(memory),
      page_count_(page_count),
      free_((page_count + 63) / 64, ~std::uint64_t{0}) {
  KVD_CHECK(layout_.validate().ok());
  if (page_count % 64 != 0) free_.back() = (std::uint64_t{1} << (page_count % 64)) - 1;
  counts_.free = page_count;
}

std::vector<PageRun> PagePool::free_runs(std::uint32_t count) const {
  std::vector<PageRun> out;
  std::uint64_t pages = 0;
  auto page = static_cast<PageIndex>(first_word_ * 64);
  while (page < page_count_) {
    // To the next free page, then to the next taken one; each step skips the rest of its word.
    const std::uint64_t word = free_[page / 64] >> (page % 64);
    if (word == 0) {
      std::size_t next = page / 64 + 1;
      while (next < free_.size() && free_[next] == 0) ++next;
      page = static_cast<PageIndex>(next * 64);
      continue;
    }
    page += static_cast<PageIndex>(std::countr_zero(word));
    const PageIndex first = page;
    while (page < page_count_ && page - first < count) {
      const auto ones = static_cast<PageIndex>(std::countr_one(free_[page / 64] >> (page % 64)));
      page += ones;
      if (ones == 0 || page % 64 != 0) break;
    }
    out.push_back({first, page - first});
    pages += page - first;
    if (page - first >= count || (out.size() >= kMostRuns && pages >= count)) break;
  }
  return out;
}

std::vector<PageRun> PagePool::choose(std::uint32_t count) const {
  // First fit: a page that was in use before is in the caches and has memory behind it. The first
  // use of 32 pages of 720 KiB costs 50 ms of page faults on a virtual machine.
  std::vector<PageRun> runs = free_runs(count);
  if (runs.back().count >= count) return {runs.back()};
  keep_longest(&runs, count);
  return runs;
}

Result<LeaseId> PagePool::lease(std::uint32_t count, TimePoint now) {
  KVD_CHECK(count > 0);
  if (count > counts_.free) {
    return Status(StatusCode::kResourceExhausted, std::to_string(count) + " pages wanted, " +
                                                      std::to_string(counts_.free) + " free");
  }
  std::vector<PageIndex> pages(count);
  std::uint32_t taken = 0;
  for (PageRun run : choose(count)) {
    run.count = std::min(run.count, count - taken);
    for_words(run, [&](std::size_t word, std::uint64_t bits) { free_[word] &= ~bits; });
    const auto begin = pages.begin() + taken;
    std::iota(begin, begin + run.count, run.first);
    taken += run.count;
  }
  KVD_CHECK(taken == count);
  while (first_word_ < free_.size() && free_[first_word_] == 0) ++first_word_;
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
  for (std::span<const PageIndex> pages = entry.pages; !pages.empty();) {
    const PageRun run = first_run(pages);
    for_words(run, [&](std::size_t word, std::uint64_t bits) {
      KVD_CHECK((free_[word] & bits) == 0);
      free_[word] |= bits;
    });
    first_word_ = std::min<std::size_t>(first_word_, run.first / 64);
    pages = pages.subspan(run.count);
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
