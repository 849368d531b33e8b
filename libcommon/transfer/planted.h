// Defects that the simulation must find. They exist only in builds with KVD_PLANTED_DEFECTS (the
// test program kvd_sim_planted, which plants one of them at a time); without it each stands behind
// `if constexpr (kBuilt)` and leaves nothing in the object files.
#pragma once

#include <memory>
#include <string_view>

#include "fabric/fabric.h"

namespace kvd::transfer::planted {

enum class Defect {
  kNone,
  kTimerFrees,      // an abort that is not answered in time frees the pages, instead of fencing
  kDrainedEarly,    // drained is sent before the queue is purged and what was posted has landed
  kErrorIsDrained,  // the error of a write counts as its end
  kSlotEarly,       // an aborted room's slot is freed while its peer may write there
  kPagesEarly,      // pages are freed when a link ends, its endpoint closes later
  kLinkResumed,     // after an error the link goes on over the same endpoint, and repeats itself
};

#ifdef KVD_PLANTED_DEFECTS
inline constexpr bool kBuilt = true;
#else
inline constexpr bool kBuilt = false;
#endif

// By name ("timer-frees", "drained-early", ...); false when there is none of it.
bool choose(std::string_view name);
bool is(Defect defect);
// kPagesEarly: closed when a link is set up the next time.
void close_later(std::unique_ptr<fabric::Endpoint> endpoint,
                 std::unique_ptr<fabric::MemoryRegion> region);
void close_now();

}  // namespace kvd::transfer::planted
