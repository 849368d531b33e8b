// Prefill and decode workers around the daemons' own KvSender and KvReceiver, over simulated fabric
// and channel and a clock that only the world moves. One seed, one run.
//
// Every page carries a pattern that depends on its request, and the world looks at every byte that
// lands: it must be the pattern of the request whose lease the page has, and that lease must not be
// committed; a slot must be leased, and a record be of its lease. Free pages hold a canary, which
// is checked when they are leased and at the end; a committed page must be whole, and stay so until
// its sequence ends. violations() lists what went wrong; empty is good.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
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
kv::KvLayout tiny_layout();   // 2 KiB pages, one layer group

struct WorldOptions {
  kv::KvLayout layout = small_layout();
  std::uint32_t prefill_pages = 32, decode_pages = 48, slots = 8;
  std::uint32_t chunk = 80;       // tokens a step of the engine
  Duration chunk_time{200'000};   // of one layer group of one chunk
  Duration cancel_time{300'000};  // until a cancelled engine lets go; 0: at once
  double engine_fails = 0;
  Duration sequence_time{1'000'000};  // how long a committed request keeps its pages
  // Only workers that have something to do get a turn, and one whose writes stand still looks at
  // them less and less often: many times faster. Whoever calls a worker from outside must not.
  bool only_due = false;
  // Both sides name `local` first; decode has it, and prefill then refuses it.
  bool local_is_refused = false;
  bool only_local_in_common = false;  // then prefill says that it has nothing else
  transfer::TransferOptions transfer;
  fabric::SimFaults fabric;
  control::SimChannelFaults channel;
};

// Where a request is, as faults meet it.
enum class Step : std::uint8_t {
  kWaiting,    // for pages
  kOpening,    // OpenRoom went; the engine has not begun
  kComputing,  // the engine has begun, nothing was written
  kWriting,    // layers stream
  kClosing,    // computed: the last pages and the record are on their way
  kDraining,   // over for its client, its pages quarantined
  kDecoding,   // committed
  kOver,
};
constexpr std::size_t kSteps = 7;  // kOver is none

// What the fabric is called: "sim", or "local" where the target copies; after `local_is_refused`.
std::vector<std::string> providers_of(const WorldOptions& options);
transfer::TransferOptions transfer_options(const WorldOptions& options,
                                           const std::string& fingerprint);

class World;

// When a worker is to have a turn: WorldOptions::only_due.
struct Turn {
  TimePoint next{0};
  bool woken = true;
  // Of a worker that runs; a stopped one has a turn once it goes on.
  bool due(World* world, const std::string& host, bool stopped);
};

// The prefill process at one address; restart() gives it a new incarnation.
class Prefill final : public transfer::SenderHost {
 public:
  Prefill(World* world, std::string name);
  ~Prefill() override;
  void start();
  void kill();
  bool alive() const { return sender != nullptr; }
  bool due();  // there is something to do
  void tick();
  TimePoint next();

  void start_compute(transfer::PrefillJob job) override;
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
  TimePoint next_due(bool moved);

  World* world_;
  std::vector<std::byte> memory_;
  std::map<RoomId, Job> jobs_;
  Turn turn_;
  int still_ = 0;  // turns since something moved
};

enum class Outcome { kOpen, kCommitted, kFailed, kAborted, kRefused, kLost };

struct Request {
  std::uint64_t id = 0;
  std::vector<TokenId> prompt;
  std::string prefill;
  Outcome outcome = Outcome::kOpen;
  Step step = Step::kWaiting;
  int reports = 0;
  Status why;
  bool retryable = false;
  transfer::CommittedRoom committed;
  bool timed = false;  // prefill's timings came
  transfer::RoomTimings timings;
};

class Decode final : public transfer::ReceiverHost {
 public:
  Decode(World* world, std::string name);
  ~Decode() override;
  void start();
  void kill();
  bool alive() const { return receiver != nullptr; }
  bool due();
  void tick();
  TimePoint next();

  // Reserves pages and opens the room; waits in line while there are no pages.
  std::uint64_t request(const std::string& prefill, std::uint32_t tokens, Duration timeout,
                        RoomId room = {});
  void abort(std::uint64_t id);
  // Of what just landed anywhere: every byte of it in our memory must be where its room may write.
  // A stale piece may be anything, but only where a room may write.
  void check_landing(const fabric::SimFabric::Landing& landing);
  void check_all();
  // Everything over; where nothing is a fence, what no proof covers may stay.
  bool quiet() const;
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
  std::unique_ptr<fabric::Domain> domain, other_domain;
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
  struct Owner {  // of a page
    std::uint64_t lease = 0;
    std::uint32_t ordinal = 0;
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
  TimePoint next_due() const;
  void open_waiting();
  void open(const Waiting& waiting, kv::LeaseId lease);
  void fence_for(const Waiting& waiting, std::uint32_t pages);
  bool may_write(PageIndex page) const;
  bool may_land(PageIndex page, const std::byte* at, const std::byte* end) const;
  void check_slot(std::uint32_t slot);
  void fill_canary(PageIndex page);
  void check_canary(PageIndex page, const char* when);
  void check_prompt(const Request& request, const std::vector<PageIndex>& pages, const char* when);
  void freed(kv::LeaseId lease);

  World* world_;
  std::vector<std::byte> memory_;
  std::map<std::uint64_t, Lease> leases_;  // by lease id
  std::vector<Owner> owners_;              // by page
  // Slot and generation that the record of a room without a name landed in.
  std::map<RoomId, std::pair<std::uint32_t, std::uint32_t>> records_;
  Turn turn_;
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
  // Closing a link is a proof on this fabric.
  bool fenced_by_close() const {
    return options.fabric.endpoint_close_is_fence || !options.fabric.land_after_region_close;
  }
  // Everything over: no rooms, no quarantine, all pages free.
  bool quiet();
  void check_end();
  void violation(std::string text);
  const std::vector<std::string>& violations() const { return violations_; }
  // Runs `action` once the clock is there.
  void at(TimePoint due, std::function<void()> action);
  // The request `id` has come to `step`.
  void enter(std::uint64_t id, Step step);
  // Drops the connections of `host` and looks at what landed with that.
  void drop_connections(const std::string& host);

  WorldOptions options;
  ManualClock clock;
  Rng rng;
  fabric::SimFabric fabric;
  control::SimNetwork network;
  std::vector<std::unique_ptr<Prefill>> prefills;
  std::vector<std::unique_ptr<Decode>> decodes;
  std::uint64_t next_request = 1;
  std::uint64_t next_incarnation = 1;
  std::uint64_t opened = 0;  // rooms
  std::uint64_t fenced = 0;  // links, because a reservation starved
  std::function<void(Step)> on_step;

 private:
  void tick();
  void check_landed();

  std::map<std::uint64_t, Decode*> owner_;  // by request
  std::multimap<TimePoint, std::function<void()>> script_;
  friend class Decode;
  std::vector<std::string> violations_;
};

}  // namespace kvd::sim
