#include "peer/page_sets.h"

#include <algorithm>
#include <numeric>

#include "base/check.h"

namespace kvd::tools {

std::uint64_t PageSets::pages_needed(std::uint32_t sets, std::uint32_t pages_per_set,
                                     double fragmentation) {
  // A page that nobody gets stands behind each run: free sets next to each other stay apart.
  const std::uint64_t most_runs = fragmentation > 0 ? pages_per_set : 1;
  return sets * (pages_per_set + most_runs);
}

// The sets take turns in random order; each takes a run.
std::vector<std::vector<PageIndex>> PageSets::deal(std::uint32_t sets, double fragmentation,
                                                   Rng* rng) const {
  std::vector<std::vector<PageIndex>> out(sets);
  std::vector<std::uint32_t> order(sets);
  std::iota(order.begin(), order.end(), 0u);
  PageIndex next = 0;
  while (!order.empty()) {
    for (std::size_t i = order.size() - 1; i > 0; --i)
      std::swap(order[i], order[rng->below(i + 1)]);
    for (const std::uint32_t set : order) {
      std::vector<PageIndex>& pages = out[set];
      do {
        pages.push_back(next++);
      } while (pages.size() < pages_per_set_ && !(rng->uniform() < fragmentation));
      ++next;
    }
    std::erase_if(order, [&](std::uint32_t set) { return out[set].size() == pages_per_set_; });
  }
  return out;
}

PageSets::PageSets(kv::PagePool* pool, std::uint32_t sets, std::uint32_t pages_per_set,
                   std::uint32_t open, double fragmentation, Rng* rng, TimePoint now)
    : pool_(pool), pages_per_set_(pages_per_set) {
  KVD_CHECK(open < sets && pool->counts().free == pool->page_count() &&
            pool->page_count() >= pages_needed(sets, pages_per_set, fragmentation));
  const auto dealt = deal(sets, fragmentation, rng);
  std::vector<kv::LeaseId> single(pool->page_count());
  for (std::uint32_t i = 0; i < pool->page_count(); ++i) {
    const kv::LeaseId lease = *pool->lease(1, now);
    single[pool->pages(lease).front()] = lease;
  }
  for (const std::vector<PageIndex>& pages : dealt) {
    for (const PageIndex page : pages) {
      pool->release(single[page], kv::Proof::kNeverExposed);
      single[page] = {};
    }
    closed_.push_back(*pool->lease(pages_per_set, now));
  }
  for (const kv::LeaseId lease : single) {
    if (lease) gaps_.push_back(lease);
  }
  for (std::uint32_t i = 0; i < open; ++i) {
    pool->release(closed_.front(), kv::Proof::kNeverExposed);
    closed_.pop_front();
  }
}

PageSets::~PageSets() {
  for (const kv::LeaseId lease : closed_) pool_->release(lease, kv::Proof::kNeverExposed);
  for (const kv::LeaseId lease : gaps_) pool_->release(lease, kv::Proof::kNeverExposed);
}

void PageSets::rotate(TimePoint now) {
  if (pool_->counts().free < pages_per_set_) return;  // requests shorter than a set share it
  closed_.push_back(*pool_->lease(pages_per_set_, now));
  pool_->release(closed_.front(), kv::Proof::kNeverExposed);
  closed_.pop_front();
}

}  // namespace kvd::tools
