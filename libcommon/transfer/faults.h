// Faults and canaries that tests put into a worker. They exist only in builds with KVD_TEST_FAULTS,
// whose programs are never installed: without it each call stands behind `if constexpr (kBuilt)`
// and leaves nothing in the object files. tests/faults/ implements them and says what controls
// them.
//
// Calling thread: the event loop's.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/clock.h"
#include "base/ids.h"
#include "fabric/write_pipeline.h"
#include "kv/page_pool.h"
#include "room/room.h"

namespace kvd::transfer::faults {

#ifdef KVD_TEST_FAULTS
inline constexpr bool kBuilt = true;
#else
inline constexpr bool kBuilt = false;
#endif

// Stops this process (SIGSTOP) when the step is the one that the test waits for.
void at_step(room::Role role, room::RoomState state, room::Event event);
void at_write(std::uint64_t completed_writes);  // sender: of one room

// Sender: loses, swaps or changes page writes of a room before they are queued.
void tamper(RoomId room, const kv::PagePool& pool, std::vector<fabric::QueuedWrite>* writes);

// Receiver: pages that nobody may write any more get a pattern; a changed one is logged as an
// error.
void freed(const kv::PagePool& pool, std::span<const PageIndex> pages);
void leased(const kv::PagePool& pool, std::span<const PageIndex> pages);  // checks them, once
void watch(const kv::PagePool& pool, TimePoint now);  // checks all, now and then
void check_all(const kv::PagePool& pool);             // and says how many

// Receiver: true when pages are to be released at once and endpoints left open, as if there were no
// leases. What must show stale bytes.
bool unfenced();
void keep_open(std::unique_ptr<fabric::Endpoint> endpoint,
               std::unique_ptr<fabric::MemoryRegion> region);
void poll_kept_open();
void close_kept_open();

}  // namespace kvd::transfer::faults
