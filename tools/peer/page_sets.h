// Which pages the next requests get. A pool that serves a model for hours is in pieces; a new one
// is not. This keeps all pages of a pool leased except those of a few sets, and opens another set
// for each request that ends: every request gets the places that the fragmentation asks for, and
// different ones each time.
//
// Fragmentation 0: each set is one run of pages. 1: no two pages of a set are neighbours. Between:
// the share of the places inside a set at which a run ends.
//
// Calling thread: the pool's.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "base/rng.h"
#include "kv/page_pool.h"

namespace kvd::tools {

class PageSets {
 public:
  // Pages that a pool needs for `sets` sets.
  static std::uint64_t pages_needed(std::uint32_t sets, std::uint32_t pages_per_set,
                                    double fragmentation);
  // The pool must be all free. `open`: sets that are free at any time, at least as many as requests
  // hold at once; fewer than `sets`.
  PageSets(kv::PagePool* pool, std::uint32_t sets, std::uint32_t pages_per_set, std::uint32_t open,
           double fragmentation, Rng* rng, TimePoint now);
  ~PageSets();
  PageSets(const PageSets&) = delete;
  PageSets& operator=(const PageSets&) = delete;

  // A request's pages have just gone back to the pool: closes as many as a set has, opens another.
  void rotate(TimePoint now);

 private:
  std::vector<std::vector<PageIndex>> deal(std::uint32_t sets, double fragmentation,
                                           Rng* rng) const;

  kv::PagePool* pool_;
  std::uint32_t pages_per_set_;
  std::deque<kv::LeaseId> closed_;
  std::vector<kv::LeaseId> gaps_;
};

}  // namespace kvd::tools
