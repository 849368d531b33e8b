#include "kv/page_pool.h"

#include <catch2/catch.hpp>
#include <ctime>
#include <set>

#include "base/rng.h"

using namespace kvd;
using kv::LeaseId;
using kv::PagePool;
using kv::Proof;

namespace {

constexpr TimePoint kNow{1000};
const kv::KvLayout kTiny{1, 1, 8, 32, 2, "bf16"};

std::uint32_t total(const PagePool& pool) {
  const auto c = pool.counts();
  return c.free + c.leased + c.sealed + c.quarantined;
}

}  // namespace

TEST_CASE("page pool: a lease is all or nothing") {
  PagePool pool(kTiny, nullptr, 8);
  const auto a = pool.lease(5, kNow);
  REQUIRE(a.ok());
  CHECK(pool.counts().leased == 5);
  const auto refused = pool.lease(4, kNow);
  CHECK(refused.status().code() == StatusCode::kResourceExhausted);
  CHECK(pool.counts().free == 3);
  pool.release(*a, Proof::kNeverExposed);
  CHECK(pool.counts().free == 8);
}

TEST_CASE("page pool: a quarantined page is not leased again until a proof releases it") {
  PagePool pool(kTiny, nullptr, 4);
  const auto lease = pool.lease(4, kNow);
  pool.assign(*lease, RoomId{7}, Incarnation{9});
  pool.quarantine(*lease, "drained", kNow);
  CHECK(pool.counts().quarantined == 4);
  CHECK_FALSE(pool.lease(1, kNow + std::chrono::hours(24)).ok());
  CHECK(pool.quarantined_by_peer().at(Incarnation{9}) == 4);
  const auto infos = pool.leases();
  REQUIRE(infos.size() == 1);
  CHECK(infos[0].room == RoomId{7});
  CHECK(infos[0].missing == "drained");
  pool.release(*lease, Proof::kDrained);
  CHECK(pool.counts().free == 4);
  CHECK(pool.leases().empty());
}

TEST_CASE("page pool: neighbouring pages are preferred, scattered ones used when there is no run") {
  PagePool pool(kTiny, nullptr, 8);
  std::vector<LeaseId> ones;
  for (int i = 0; i < 8; ++i) ones.push_back(*pool.lease(1, kNow));
  for (const std::size_t i : {1, 4, 5, 6, 3}) pool.release(ones[i], Proof::kNeverExposed);
  const auto run = pool.lease(4, kNow);
  CHECK(kv::to_runs(pool.pages(*run)) == std::vector<kv::PageRun>{{3, 4}});
  pool.release(*run, Proof::kSequenceDone);
  const auto scattered = pool.lease(5, kNow);
  CHECK(kv::to_runs(pool.pages(*scattered)) == std::vector<kv::PageRun>{{1, 1}, {3, 4}});
}

TEST_CASE("page pool: no page is ever in two leases and none is lost") {
  constexpr std::uint32_t kPages = 200;  // some words of its bits
  PagePool pool(kTiny, nullptr, kPages);
  Rng rng(42);
  std::vector<LeaseId> leases;
  for (int step = 0; step < 20000; ++step) {
    if (rng.chance(0.55)) {
      const auto lease = pool.lease(1 + static_cast<std::uint32_t>(rng.below(9)), kNow);
      if (lease.ok()) {
        leases.push_back(*lease);
        if (rng.chance(0.3)) pool.quarantine(*lease, "drained", kNow);
      }
    } else if (!leases.empty()) {
      const std::size_t i = rng.below(leases.size());
      pool.release(leases[i], Proof::kDrained);
      leases.erase(leases.begin() + static_cast<std::ptrdiff_t>(i));
    }
    REQUIRE(total(pool) == kPages);
  }
  std::set<PageIndex> seen;
  std::size_t pages = 0;
  for (const LeaseId lease : leases) {
    for (const PageIndex page : pool.pages(lease)) {
      CHECK(page < kPages);
      seen.insert(page);
      ++pages;
    }
  }
  CHECK(seen.size() == pages);
  CHECK(pages + pool.counts().free == kPages);
}

TEST_CASE("page pool: the oldest lease has an age") {
  PagePool pool(kTiny, nullptr, 4);
  CHECK(pool.oldest_lease(kNow).count() == 0);
  const auto a = pool.lease(1, kNow);
  const auto b = pool.lease(1, kNow + Duration(50));
  CHECK(pool.oldest_lease(kNow + Duration(80)).count() == 80);
  pool.release(*a, Proof::kNeverExposed);
  CHECK(pool.oldest_lease(kNow + Duration(80)).count() == 30);
  pool.release(*b, Proof::kNeverExposed);
}

TEST_CASE("page pool: scattered pages come from the longest runs, in order of address") {
  PagePool pool(kTiny, nullptr, 256);
  std::vector<LeaseId> ones;
  for (int i = 0; i < 256; ++i) ones.push_back(*pool.lease(1, kNow));
  const auto free = [&](PageIndex first, std::uint32_t count) {
    for (std::uint32_t i = 0; i < count; ++i) pool.release(ones[first + i], Proof::kNeverExposed);
  };
  free(1, 1);
  free(10, 3);
  free(60, 8);  // over the end of a word
  free(127, 2);
  free(200, 3);
  const auto lease = pool.lease(12, kNow);
  CHECK(kv::to_runs(pool.pages(*lease)) == std::vector<kv::PageRun>{{10, 3}, {60, 8}, {200, 1}});
  const auto rest = pool.lease(5, kNow);
  CHECK(kv::to_runs(pool.pages(*rest)) == std::vector<kv::PageRun>{{1, 1}, {127, 2}, {201, 2}});
}

TEST_CASE("page pool: of runs of any length the longest are taken, in order of address") {
  constexpr std::uint32_t kPages = 20'000;
  PagePool pool(kTiny, nullptr, kPages);
  std::vector<LeaseId> ones;
  for (std::uint32_t i = 0; i < kPages; ++i) ones.push_back(*pool.lease(1, kNow));
  for (const kv::PageRun run :
       {kv::PageRun{10, 1100}, {2000, 2000}, {5000, 1023}, {7000, 3000}, {12'000, 1100}}) {
    for (std::uint32_t i = 0; i < run.count; ++i) {
      pool.release(ones[run.first + i], Proof::kNeverExposed);
    }
  }
  const auto lease = pool.lease(5500, kNow);
  CHECK(kv::to_runs(pool.pages(*lease)) ==
        std::vector<kv::PageRun>{{10, 1100}, {2000, 2000}, {7000, 2400}});
  const auto rest = pool.lease(1200, kNow);
  CHECK(kv::to_runs(pool.pages(*rest)) == std::vector<kv::PageRun>{{5000, 1023}, {12'000, 177}});
}

TEST_CASE("page pool: a lease from a large pool in pieces looks at some thousand of them") {
  constexpr std::uint32_t kPages = 40'000;
  PagePool pool(kTiny, nullptr, kPages);
  std::vector<LeaseId> ones;
  for (std::uint32_t i = 0; i < kPages; ++i) ones.push_back(*pool.lease(1, kNow));
  for (std::uint32_t i = 0; i < kPages; i += 2) pool.release(ones[i], Proof::kNeverExposed);
  // A run of three within reach is found, one behind 4096 runs is not.
  for (const std::uint32_t page : {8001u, 30'001u}) {
    pool.release(ones[page], Proof::kNeverExposed);
  }
  const auto lease = pool.lease(10, kNow);
  const auto runs = kv::to_runs(pool.pages(*lease));
  REQUIRE(runs.size() == 8);
  CHECK(runs.back() == kv::PageRun{8000, 3});
  // More pages than so many runs have: as many as it takes, all of them if need be.
  CHECK(pool.lease(6000, kNow).ok());
  CHECK(pool.lease(pool.counts().free, kNow).ok());
  CHECK(pool.counts().free == 0);
}

TEST_CASE("page pool: a run that ends a word, fills one, or is the whole pool is one run") {
  for (const std::uint32_t pages : {63u, 64u, 65u, 128u, 200u}) {
    PagePool pool(kTiny, nullptr, pages);
    const auto all = pool.lease(pages, kNow);
    CHECK(kv::to_runs(pool.pages(*all)) == std::vector<kv::PageRun>{{0, pages}});
    pool.release(*all, Proof::kNeverExposed);
    const auto most = pool.lease(pages - 1, kNow);
    CHECK(kv::to_runs(pool.pages(*most)).size() == 1);
    CHECK(pool.counts().free == 1);
  }
}

TEST_CASE("page pool: pages that were in use before are leased before those that never were") {
  PagePool pool(kTiny, nullptr, 64);
  const auto a = pool.lease(8, kNow);
  const auto b = pool.lease(8, kNow);
  pool.release(*a, Proof::kNeverExposed);
  const auto again = pool.lease(6, kNow);
  CHECK(kv::to_runs(pool.pages(*again)) == std::vector<kv::PageRun>{{0, 6}});
  // The two that are left are too few for one run.
  const auto other = pool.lease(3, kNow);
  CHECK(kv::to_runs(pool.pages(*other)) == std::vector<kv::PageRun>{{16, 3}});
  pool.release(*b, Proof::kNeverExposed);
  const auto joined = pool.lease(10, kNow);
  CHECK(kv::to_runs(pool.pages(*joined)) == std::vector<kv::PageRun>{{6, 10}});
}

TEST_CASE("page pool: a page of a large pool is leased as fast as one of a small pool") {
  constexpr std::uint32_t kPages = 1u << 22, kPart = 1u << 12;
  const auto cpu_ns = [] {
    timespec ts{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
    return static_cast<double>(ts.tv_sec) * 1e9 + static_cast<double>(ts.tv_nsec);
  };
  const auto time_of_part = [&](PagePool* pool) {
    const double before = cpu_ns();
    for (std::uint32_t i = 0; i < kPart; ++i) (void)*pool->lease(1, kNow);
    return cpu_ns() - before;
  };
  PagePool small(kTiny, nullptr, kPart), large(kTiny, nullptr, kPages);
  const double all = time_of_part(&small);
  CHECK(time_of_part(&large) < 8 * all);  // the first: the run behind them is long
  REQUIRE(large.lease(kPages - 2 * kPart, kNow).ok());
  CHECK(time_of_part(&large) < 8 * all);  // the last: behind many that are taken
  CHECK(large.counts().free == 0);
}
