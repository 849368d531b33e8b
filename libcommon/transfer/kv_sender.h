// KvSender: the prefill side of every link and room of one worker. It accepts links (Register),
// opens rooms, takes source pages, has the prompt computed, writes pages as layers finish, commits,
// and proves drains. The protocol is kvd-protocol.7; the states are room/.
//
// Calling thread: the event loop's, for everything here and every call of SenderHost. Not
// reentrant: SenderHost must not call back into KvSender from inside a call of it... except
// compute_stopped() and compute_failed() from cancel_compute()/start_compute(), which are queued
// until poll().
//
// Time, randomness, channel and fabric are injected: the simulation drives this very class.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/ids.h"
#include "base/metrics.h"
#include "base/rng.h"
#include "base/sampling.h"
#include "base/status.h"
#include "control/messenger.h"
#include "fabric/fabric.h"
#include "kv/layout.h"
#include "kv/page_pool.h"
#include "proto/link_messages.h"
#include "transfer/options.h"

namespace kvd::transfer {

// A prompt to compute. Source pages stay valid and unmoved until SenderHost::room_over(room).
struct PrefillJob {
  RoomId room;
  std::vector<TokenId> prompt;
  SamplingParams sampling;
  std::uint32_t choice = 0;
  std::vector<PageIndex> pages;        // pages_for(prompt), last page zeroed
  std::vector<kv::LayerGroup> groups;  // report layers_ready once per group and chunk; empty with
                                       // --no-stream: only computed()
};

// The end of a room as prefill saw it, for metrics, the log and the standalone HTTP half.
struct SenderOutcome {
  Status status;  // ok: committed
  std::uint32_t prompt_tokens = 0;
  std::uint64_t bytes = 0, writes = 0;
  std::uint64_t pieces = 0;  // of its page writes, remote side
  Duration queue{0}, compute{0}, transfer_total{0}, transfer_exposed{0};
  std::string provider;
};

class SenderHost {
 public:
  virtual ~SenderHost() = default;
  virtual void start_compute(PrefillJob job) = 0;
  // Stop computing `room`; answer with compute_stopped(room) once its pages are no longer touched.
  virtual void cancel_compute(RoomId room) = 0;
  virtual void room_over(RoomId room, const SenderOutcome& outcome) = 0;
  virtual proto::Load load() = 0;
};

class KvSender {
 public:
  // All pointers must outlive it. `domains` are this worker's providers. `metrics` may be null.
  KvSender(TransferOptions options, kv::PagePool* pool, control::Messenger* messenger,
           std::vector<fabric::Domain*> domains, const Clock* clock, Rng* rng, Metrics* metrics,
           SenderHost* host);
  ~KvSender();
  KvSender(const KvSender&) = delete;
  KvSender& operator=(const KvSender&) = delete;

  // Standalone: the router's HTTP half of `room` arrived (before or after decode's OpenRoom). The
  // two prompts must be equal. kResourceExhausted when the table of waiting halves is full.
  Status expect(RoomId room, std::vector<TokenId> prompt, SamplingParams sampling,
                TimePoint deadline);
  // Standalone: the HTTP half went away; the room is aborted.
  void abandon(RoomId room);

  // From the engine. Tokens [token_begin, token_end) of the prompt have K and V of layers
  // [group.begin, group.end) in the source pages.
  void layers_ready(RoomId room, kv::LayerGroup group, std::uint32_t token_begin,
                    std::uint32_t token_end);
  // All layers of all tokens are there and the first token is drawn.
  void computed(RoomId room, const SampledToken& first, Duration queued, Duration compute);
  void compute_failed(RoomId room, Status why);
  void compute_stopped(RoomId room);

  // True if the message was one of ours: Register, OpenRoom, Allocate, Abort, Heartbeat...
  bool on_message(const control::Received& message);
  // Makes progress: completions, posts, heartbeats, deadlines. Returns true if anything happened.
  bool poll();
  // When poll() must be called even if no descriptor is ready.
  TimePoint next_deadline() const;
  // Descriptors of endpoints; may_wait() false: poll() again instead of waiting.
  void wait_fds(std::vector<int>* out) const;
  bool may_wait();

  // No new rooms; existing ones finish.
  void drain();
  bool idle() const;  // no rooms and nothing waiting for a proof
  std::size_t rooms() const;
  std::size_t waiting() const;  // rooms without source pages, or without decode's

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace kvd::transfer
