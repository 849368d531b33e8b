// Prefill and decode workers around the daemons' own KvSender and KvReceiver, over simulated fabric
// and channel and a clock that only the world moves. One seed, one run.
//
// Every page carries a pattern that depends on its request, so the world sees at once when a byte
// lands where it may not: free pages hold a canary that must never change; a leased page holds the
// canary or its own request's pattern; a committed page must be whole, and stay so until its
// sequence ends. violations() lists what went wrong; empty is good.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/rng.h"
#include "control/messenger.h"
#include "control/sim_channel.h"
#include "fabric/sim/sim_fabric.h"
#include "kv/page_pool.h"
#include "transfer/kv_receiver.h"
#include "transfer/kv_sender.h"

namespace kvd::sim {

kv::KvLayout small_layout();  // 4 KiB pages, one layer group
kv::KvLayout wide_layout();   // 512 KiB pages, several layer groups

struct WorldOptions {
  kv::KvLayout layout = small_layout();
  std::uint32_t prefill_pages = 32, decode_pages = 48, slots = 8;
  std::uint32_t chunk = 80;       // tokens a step of the engine
  Duration chunk_time{200'000};   // of one layer group of one chunk
  Duration cancel_time{300'000};  // until a cancelled engine lets go; 0: at once
  double engine_fails = 0;
  Duration sequence_time{1'000'000};  // how long a committed request keeps its pages
  transfer::TransferOptions transfer;
  fabric::SimFaults fabric;
  control::SimChannelFaults channel;
};

class World;

// The prefill process at one address; restart() gives it a new incarnation.
class Prefill final : public transfer::SenderHost {
 public:
  Prefill(World* world, std::string name);
  ~Prefill() override;
  void start();
  void kill();
  bool alive() const { return sender != nullptr; }
  void tick();
  TimePoint next() const;

  void start_compute(const transfer::PrefillJob& job) override;
  void cancel_compute(RoomId room) override;
  void room_over(RoomId room, const transfer::SenderOutcome& outcome) override;
  proto::Load load() override { return {}; }

  const std::string name, address;
  std::string host;  // of the current incarnation
  std::unique_ptr<kv::PagePool> pool;
  std::unique_ptr<control::Channel> channel;
  std::unique_ptr<control::Messenger> messenger;
  std::unique_ptr<fabric::Domain> domain;
  std::unique_ptr<transfer::KvSender> sender;
  std::string fingerprint = "model";
  bool stopped = false;  // SIGSTOP
  std::map<RoomId, transfer::SenderOutcome> outcomes;

 private:
  struct Job {
    transfer::PrefillJob job;
    TimePoint due;
    std::uint32_t done = 0;  // tokens of earlier chunks
    std::size_t group = 0;
    bool cancelled = false;
  };
  void advance(Job* job);

  World* world_;
  std::vector<std::byte> memory_;
  std::map<RoomId, Job> jobs_;
};

enum class Outcome { kOpen, kCommitted, kFailed, kAborted, kRefused, kLost };

struct Request {
  std::uint64_t id = 0;
  std::vector<TokenId> prompt;
  std::string prefill;
  Outcome outcome = Outcome::kOpen;
  int reports = 0;
  Status why;
  bool retryable = false;
  transfer::CommittedRoom committed;
  bool timed = false;  // RoomDone came
};

class Decode final : public transfer::ReceiverHost {
 public:
  Decode(World* world, std::string name);
  ~Decode() override;
  void start();
  void kill();
  bool alive() const { return receiver != nullptr; }
  void tick();
  TimePoint next() const;

  // Reserves pages and opens the room; waits in line while there are no pages.
  std::uint64_t request(const std::string& prefill, std::uint32_t tokens, Duration timeout,
                        RoomId room = {});
  void abort(std::uint64_t id);
  void check_landings();
  void check_all();
  bool ready(const std::string& prefill) const;

  void on_committed(transfer::CommittedRoom room) override;
  void on_failed(std::uint64_t request, Status why, bool retryable) override;
  void on_timings(std::uint64_t request, const transfer::RoomTimings& timings) override;
  void on_pages_freed() override;
  proto::Load load() override { return {}; }

  const std::string name, address;
  std::string host;
  std::unique_ptr<kv::PagePool> pool;
  std::unique_ptr<control::Channel> channel;
  std::unique_ptr<control::Messenger> messenger;
  std::unique_ptr<fabric::Domain> domain;
  std::unique_ptr<transfer::KvReceiver> receiver;
  std::set<std::string> prefills;
  std::string fingerprint = "model";
  bool stopped = false;
  std::map<std::uint64_t, Request> requests;

 private:
  struct Lease {
    std::uint64_t request = 0;
    bool committed = false;
    std::vector<PageIndex> pages;
  };
  struct Waiting {
    std::uint64_t request = 0;
    TimePoint since, deadline;
    RoomId room;
  };
  struct Sequence {
    std::uint64_t request = 0;
    kv::LeaseId lease;
    TimePoint end;
  };
  void open_waiting();
  void check_first_words();
  void check_slots();
  void fill_canary(PageIndex page);
  void check_canary(PageIndex page, const char* when);
  void check_prompt(const Request& request, const std::vector<PageIndex>& pages, const char* when);
  void freed(kv::LeaseId lease);

  World* world_;
  std::vector<std::byte> memory_;
  std::vector<std::byte> slots_seen_;      // the slots as they were at the last look
  std::map<std::uint64_t, Lease> leases_;  // by lease id
  std::vector<Waiting> waiting_;
  std::vector<Sequence> sequences_;
};

class World {
 public:
  World(std::uint64_t seed, WorldOptions options);
  ~World();

  Prefill& add_prefill();
  Decode& add_decode();  // linked to every prefill there is
  // One event, or the clock moves to the next one. False when nothing will ever happen again.
  bool step();
  void run(Duration time);
  // Until `done`, at most for `limit`; false when it did not come.
  bool run_until(const std::function<bool()>& done, Duration limit = Duration(20'000'000'000));
  bool links_ready();
  // Everything over: no rooms, no quarantine, all pages free.
  bool quiet();
  void check_end();
  void violation(std::string text);
  const std::vector<std::string>& violations() const { return violations_; }
  // Runs `action` once the clock is there.
  void at(TimePoint due, std::function<void()> action);

  WorldOptions options;
  ManualClock clock;
  Rng rng;
  fabric::SimFabric fabric;
  control::SimNetwork network;
  std::vector<std::unique_ptr<Prefill>> prefills;
  std::vector<std::unique_ptr<Decode>> decodes;
  std::uint64_t next_request = 1;
  std::uint64_t next_incarnation = 1;

 private:
  void tick();

  std::multimap<TimePoint, std::function<void()>> script_;
  std::vector<std::string> violations_;
};

}  // namespace kvd::sim
