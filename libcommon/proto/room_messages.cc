#include "proto/room_messages.h"

#include <algorithm>

#include "proto/codec.h"
#include "proto/commit_record.h"

namespace kvd::proto {

template <typename V>
void fields(V& v, Is<SamplingParams> auto& m) {
  v.must("max_tokens", m.max_tokens, Uint{1, Bounds::kMaxTokens});
  v.must("temperature", m.temperature, Real{0.0F, 1000.0F});
  v.may("top_k", m.top_k, Uint{});
  v.may("top_p", m.top_p, Real{0.0F, 1.0F});
  v.may("min_p", m.min_p, Real{0.0F, 1.0F});
  v.may("repetition_penalty", m.repetition_penalty, Real{0.0F, 1000.0F, true});
  v.must("seed", m.seed, Uint{});
  v.may("stop", m.stop, Texts{kMaxStopStrings, kMaxStopBytes});
  v.may("stop_token_ids", m.stop_token_ids, TokenBin{4096});
  v.may("ignore_eos", m.ignore_eos, Flag{});
  v.may("logprobs", m.logprobs, Flag{});
  v.may("top_logprobs", m.top_logprobs, Uint{0, kMaxTopLogprobs});
}

template <typename V>
void fields(V& v, Is<Allocate> auto& m) {
  v.must("runs", m.runs, Runs{Bounds::kMaxRuns});
  v.must("slot", m.slot, Uint{0, (1u << kSlotBits) - 1});
  v.must("generation", m.generation, Uint{0, (1u << kGenerationBits) - 1});
}
static Status validate(const Allocate& m) {
  if (m.runs.empty()) return invalid_argument("runs is empty");
  const auto before = [](const PageRunInfo& a, const PageRunInfo& b) { return a.first < b.first; };
  std::vector<PageRunInfo> sorted = m.runs;
  // As a pool gives them they are in order already.
  if (!std::is_sorted(sorted.begin(), sorted.end(), before)) {
    std::sort(sorted.begin(), sorted.end(), before);
  }
  std::uint64_t end = 0, pages = 0;
  for (const PageRunInfo& run : sorted) {
    if (run.count == 0) return invalid_argument("a run has no pages");
    if (run.first < end) return invalid_argument("a page is named twice");
    end = std::uint64_t{run.first} + run.count;
    if (end > (std::uint64_t{1} << 32)) return invalid_argument("a run goes beyond the last page");
    pages += run.count;
  }
  // A page holds at least one token of the prompt.
  if (pages > Bounds::kMaxTokens) return invalid_argument("more pages than a prompt can fill");
  return {};
}

template <typename V>
void fields(V& v, Is<OpenRoom> auto& m) {
  v.must("request", m.request, Uint{});
  v.must("prompt", m.prompt, TokenBin{Bounds::kMaxTokens, 1});
  v.must("sampling", m.sampling, Map{});
  v.may("choice", m.choice, Uint{});
  v.must("timeout_ms", m.timeout_ms, Uint{0, std::uint64_t{1} << 40});
  v.may("runs", m.allocate.runs, Runs{Bounds::kMaxRuns});
  v.may("slot", m.allocate.slot, Uint{0, (1u << kSlotBits) - 1});
  v.may("generation", m.allocate.generation, Uint{0, (1u << kGenerationBits) - 1});
}
static Status validate(const OpenRoom& m) {
  return m.allocate.runs.empty() ? Status() : validate(m.allocate);
}

template <typename V>
void fields(V& v, Is<RoomDone> auto& m) {
  v.must("transfer_total_ns", m.transfer_total_ns, Uint{});
  v.must("transfer_exposed_ns", m.transfer_exposed_ns, Uint{});
  v.must("commit_posted_ns", m.commit_posted_ns, Uint{});
  v.must("bytes", m.bytes, Uint{});
  v.must("writes", m.writes, Uint{});
}
static Status validate(const RoomDone&) { return {}; }

template <typename V>
void fields(V& v, Is<EndedRoom> auto& m) {
  v.must("room", m.room, Uint{1, std::uint64_t{INT64_MAX}});
  fields(v, m.done);
}

template <typename V>
void fields(V& v, Is<RoomOpened> auto& m) {
  v.must("request", m.request, Uint{});
  v.may("allocated", m.allocated, Flag{});
  v.may("waited_ns", m.waited_ns, Uint{});
  v.may("done", m.done, Maps{RoomOpened::kMaxDone});
}
static Status validate(const RoomOpened&) { return {}; }

template <typename V>
void fields(V& v, Is<RoomRefused> auto& m) {
  v.must("request", m.request, Uint{});
  v.must("code", m.code, Text{64, 1});
  v.may("text", m.text, Prose{});
}
static Status validate(const RoomRefused&) { return {}; }

template <typename V>
void fields(V& v, Is<Abort> auto& m) {
  v.may("reason", m.reason, Prose{});
}
static Status validate(const Abort&) { return {}; }

template <typename V>
void fields(V&, Is<AbortDrained> auto&) {}
static Status validate(const AbortDrained&) { return {}; }

template <typename V>
void fields(V& v, Is<AbortUnproven> auto& m) {
  v.may("text", m.text, Prose{});
}
static Status validate(const AbortUnproven&) { return {}; }

template <typename V>
void fields(V& v, Is<RoomFailed> auto& m) {
  v.must("drained", m.drained, Flag{});
  v.must("code", m.code, Text{64, 1});
  v.may("text", m.text, Prose{});
}
static Status validate(const RoomFailed&) { return {}; }

template <typename V>
void fields(V& v, Is<Committed> auto& m) {
  v.must("slot", m.slot, Uint{0, (1u << kSlotBits) - 1});
  v.must("generation", m.generation, Uint{0, (1u << kGenerationBits) - 1});
}
static Status validate(const Committed&) { return {}; }

KVD_PROTO_MESSAGE(OpenRoom);
KVD_PROTO_MESSAGE(RoomOpened);
KVD_PROTO_MESSAGE(RoomRefused);
KVD_PROTO_MESSAGE(Allocate);
KVD_PROTO_MESSAGE(Abort);
KVD_PROTO_MESSAGE(AbortDrained);
KVD_PROTO_MESSAGE(AbortUnproven);
KVD_PROTO_MESSAGE(RoomFailed);
KVD_PROTO_MESSAGE(Committed);
KVD_PROTO_MESSAGE(RoomDone);

}  // namespace kvd::proto
