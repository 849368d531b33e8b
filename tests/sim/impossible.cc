#include "sim/impossible.h"

namespace kvd::sim {
namespace {

// Lists with a space before and behind each word; "*" is any.
struct Rule {
  std::string_view role, phases, events, why;
};

constexpr std::string_view kNotTransferring = " Bootstrapping WaitingForInput ";
constexpr Rule kRules[] = {
    {"sender", " Bootstrapping Transferring ", " sources ", "only a room that waits leases them"},
    {"sender", " Bootstrapping Transferring ", " writing ", "told of the first write only"},
    {"sender", kNotTransferring, " commit drained ", "nothing was written"},
    {"sender", " WaitingForInput Transferring ", " allocate ", "decode sends it once"},
    {"sender", " Transferring ", " drained ", "a drain begins with the failure"},
    {"sender", " Success ", "*", "forgotten when the record has completed"},
    {"sender", " Failed/pending ", " allocate sources writing ", "all of it came before"},
    {"sender", " Failed/proven ", " allocate ", "without Allocate a room that fails is forgotten"},
    {"sender", " Failed/proven ", " sources writing commit drained fail link-end ",
     "over: only decode's abort may still come"},
    {"sender", " Failed/unproven ", "*", "its link has ended, nothing finds it any more"},
    {"receiver", " Transferring Failed/pending ", " allocate ",
     "a slot is leased for a room that is opened, or waits"},
    {"receiver", kNotTransferring, " commit bad-commit ", "it has no slot"},
    {"receiver", " Bootstrapping ", " fail fail-unproven ", "prefill sends RoomRefused instead"},
    {"receiver", " Bootstrapping WaitingForInput Transferring ", " drained unproven ",
     "prefill answers aborts only"},
    {"receiver", " WaitingForInput ", " opened refused ", "prefill sends one of them"},
    {"receiver", " Success Failed/proven ", "*", "forgotten at once"},
    {"receiver", " Failed/pending ", " abort give-up ", "over for whoever asked"},
    {"receiver", " Failed/unproven ",
     " opened refused allocate commit bad-commit abort give-up fail fail-unproven drained "
     "unproven ",
     "its link ends at once, then only a fence is told"},
};

bool in(std::string_view list, std::string_view word) {
  if (list == "*") return true;
  for (std::size_t at = list.find(word); at != std::string_view::npos;
       at = list.find(word, at + 1)) {
    if (at > 0 && list[at - 1] == ' ' && list[at + word.size()] == ' ') return true;
  }
  return false;
}

}  // namespace

std::string_view why_impossible(std::string_view cell) {
  const std::size_t first = cell.find(' '), last = cell.rfind(' ');
  if (first == std::string_view::npos || first == last) return {};
  const std::string_view role = cell.substr(0, first), event = cell.substr(last + 1);
  const std::string_view phase = cell.substr(first + 1, last - first - 1);
  for (const Rule& rule : kRules) {
    if (rule.role == role && in(rule.phases, phase) && in(rule.events, event)) return rule.why;
  }
  return {};
}

}  // namespace kvd::sim
