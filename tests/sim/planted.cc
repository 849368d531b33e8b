#include "transfer/planted.h"

#include <utility>
#include <vector>

namespace kvd::transfer::planted {
namespace {

Defect chosen = Defect::kNone;

struct Open {
  std::unique_ptr<fabric::MemoryRegion> region;  // goes first
  std::unique_ptr<fabric::Endpoint> endpoint;
};
std::vector<Open> open;

}  // namespace

bool choose(std::string_view name) {
  constexpr std::pair<std::string_view, Defect> kNames[] = {
      {"timer-frees", Defect::kTimerFrees},          {"drained-early", Defect::kDrainedEarly},
      {"error-is-drained", Defect::kErrorIsDrained}, {"slot-early", Defect::kSlotEarly},
      {"pages-early", Defect::kPagesEarly},          {"link-resumed", Defect::kLinkResumed},
  };
  for (const auto& [known, defect] : kNames) {
    if (known == name) chosen = defect;
  }
  return chosen != Defect::kNone;
}

bool is(Defect defect) { return chosen == defect; }

void close_later(std::unique_ptr<fabric::Endpoint> endpoint,
                 std::unique_ptr<fabric::MemoryRegion> region) {
  open.push_back({std::move(region), std::move(endpoint)});
}

void close_now() { open.clear(); }

}  // namespace kvd::transfer::planted
