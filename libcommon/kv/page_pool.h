// The pages of one worker and who may write them.
//
// Invariants: a page is in exactly one state: free, leased (one room, after its commit its
// sequence, may write it), sealed (immutable, shared, counted) or quarantined (its lease ended
// without proof that no write is on its way). A page leaves quarantine only by release() with a
// Proof; no timer frees a page. free + leased + sealed + quarantined == page_count always.
//
// Calling thread: the event loop's only. The memory itself is read and written by the engine and by
// peers for as long as the lease lasts; the pool never touches it.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/clock.h"
#include "base/ids.h"
#include "base/status.h"
#include "device/host_buffer.h"
#include "kv/layout.h"

namespace kvd::kv {

using LeaseId = Id<struct LeaseTag, std::uint64_t>;

// Why nobody can write a leased page any more. Each release names one; DESIGN 6 "Leases".
enum class Proof {
  kNeverExposed,    // no peer was ever told of the pages (local sequence, or OpenRoom refused)
  kSequenceDone,    // committed: the room drained; its sequence has finished with the pages
  kDrained,         // prefill acknowledged `drained` for this room and epoch
  kEndpointClosed,  // the endpoint the peer writes through and its region are closed, CQ drained
                    // (TCP)
  kRegionClosed,    // the peer's own region is closed, on a NIC for which that is established
  kCopyReturned,    // `local`: decode's own copy has returned
  kSourceDone,  // prefill: engine gave the page up, every write from it completed or its endpoint
                // is closed
};
std::string_view to_string(Proof proof);

// A run of neighbouring pages [first, first + count).
struct PageRun {
  PageIndex first = 0;
  std::uint32_t count = 0;
  bool operator==(const PageRun&) const = default;
};
std::vector<PageRun> to_runs(std::span<const PageIndex> pages);

struct PageCounts {
  std::uint32_t free = 0, leased = 0, sealed = 0, quarantined = 0;
};

// What `kvd-probe leaks` shows of one lease.
struct LeaseInfo {
  LeaseId id;
  RoomId room;       // 0 for a local sequence
  Incarnation peer;  // who may still write; 0 if nobody was told
  bool quarantined = false;
  TimePoint since;  // when it entered this state
  std::vector<PageRun> runs;
  std::string missing;  // the proof that is waited for, when quarantined
};

class PagePool {
 public:
  // Takes `page_count` pages of `layout` at `memory` (page_count * page_bytes long at least). The
  // memory must outlive the pool.
  PagePool(KvLayout layout, std::byte* memory, std::uint32_t page_count);

  const KvLayout& layout() const { return layout_; }
  std::uint32_t page_count() const { return page_count_; }
  std::byte* page(PageIndex index) const {
    return memory_ + std::uint64_t{index} * layout_.page_bytes();
  }
  std::byte* memory() const { return memory_; }
  std::uint64_t memory_bytes() const { return std::uint64_t{page_count_} * layout_.page_bytes(); }

  // All or nothing; the first run of so many pages where there is one, else the longest there are,
  // in order of address: neighbours on both sides travel in one write. Of many thousand free runs
  // only the first 4096 are looked at, when they have enough pages. kResourceExhausted when not
  // free now (never possible when count > page_count: the caller checks that first).
  Result<LeaseId> lease(std::uint32_t count, TimePoint now);
  // The pages of a lease in sequence order. Valid until the lease is released.
  std::span<const PageIndex> pages(LeaseId lease) const;
  // Names the room and peer that may write; before the pages are told to anybody.
  void assign(LeaseId lease, RoomId room, Incarnation peer);
  // The lease ends, the proof is missing. `missing` says which one is waited for.
  void quarantine(LeaseId lease, std::string missing, TimePoint now);
  bool is_quarantined(LeaseId lease) const;
  // Back to the free list. The lease id is dead afterwards.
  void release(LeaseId lease, Proof proof);

  PageCounts counts() const { return counts_; }
  // Quarantined pages by peer: whom to fence when a reservation starves.
  std::unordered_map<Incarnation, std::uint32_t> quarantined_by_peer() const;
  std::vector<LeaseInfo> leases() const;
  // Age of the oldest lease, 0 if none.
  Duration oldest_lease(TimePoint now) const;

 private:
  struct Lease {
    RoomId room;
    Incarnation peer;
    bool quarantined = false;
    TimePoint since;
    TimePoint leased_at;
    std::string missing;
    std::vector<PageIndex> pages;
  };

  KvLayout layout_;
  std::byte* memory_;
  std::uint32_t page_count_;
  // Runs of free pages in order of address, until one has `count` pages, whose rest is not looked
  // at, or some thousand together have them.
  std::vector<PageRun> free_runs(std::uint32_t count) const;
  // For so many pages, of which enough are free: in order of address, the last may have more.
  std::vector<PageRun> choose(std::uint32_t count) const;

  // A bit for each page: a pool of 2 GiB in small pages is searched in some microseconds.
  std::vector<std::uint64_t> free_;
  std::size_t first_word_ = 0;  // no page is free in the words before it
  PageCounts counts_;
  std::uint64_t next_lease_ = 1;
  std::unordered_map<LeaseId, Lease> leases_;
};

}  // namespace kvd::kv
