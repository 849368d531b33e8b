#include "fabric/write_pipeline.h"

#include <algorithm>
#include <cstring>
#include <map>

#include "contract/world.h"

namespace kvd::fabric::contract {
namespace {

// Passes everything on, notes what was posted, and counts what is in flight.
class Watched final : public Endpoint {
 public:
  explicit Watched(Endpoint* inner) : inner_(inner) {}
  FabricAddress address() const override { return inner_->address(); }
  Result<PeerHandle> insert(const FabricAddress& peer) override { return inner_->insert(peer); }
  Status write(PeerHandle peer, const WriteRequest& request) override {
    if (refuse_with.has_value()) return *refuse_with;
    const Status status = inner_->write(peer, request);
    if (status.ok()) {
      posted.push_back(request.remote[0].address);
      std::uint64_t bytes = 0;
      for (const LocalPiece& piece : request.local) bytes += piece.bytes;
      sizes_[request.context] = bytes;
      bytes_ += bytes;
      max_ops = std::max(max_ops, sizes_.size());
      max_bytes = std::max(max_bytes, bytes_);
    }
    return status;
  }
  Status read(PeerHandle peer, std::byte* into, const RemotePiece& from,
              std::uint64_t context) override {
    return inner_->read(peer, into, from, context);
  }
  std::size_t poll(std::span<Completion> out) override {
    const std::size_t count = inner_->poll(out);
    for (std::size_t i = 0; i < count; ++i) {
      const auto it = sizes_.find(out[i].context);
      if (it == sizes_.end()) continue;
      bytes_ -= it->second;
      sizes_.erase(it);
    }
    return count;
  }
  void keep_moving() override { inner_->keep_moving(); }
  int wait_fd() const override { return inner_->wait_fd(); }
  bool may_wait() override { return inner_->may_wait(); }

  std::optional<Status> refuse_with;
  std::vector<std::uint64_t> posted;  // remote addresses, in order
  std::size_t max_ops = 0;
  std::uint64_t max_bytes = 0;

 private:
  Endpoint* inner_;
  std::map<std::uint64_t, std::uint64_t> sizes_;
  std::uint64_t bytes_ = 0;
};

struct Bench {
  Bench(const std::string& provider, std::size_t bytes)
      : world(make_world(provider)),
        link(world.get(), bytes),
        watched(link.sender.get()),
        pipeline(&watched, link.peer, link.capabilities(), &clock, std::chrono::seconds(2)) {}

  QueuedWrite make(std::uint64_t offset, const Bytes& source, std::uint64_t tag,
                   bool urgent = false) const {
    return {.local = {{source.data(), source.size()}},
            .remote = {link.at(offset, source.size())},
            .tag = tag,
            .urgent = urgent};
  }
  void turn() {
    std::array<Completion, 16> batch;
    pipeline.pump();
    const std::size_t count = watched.poll(batch);
    for (std::size_t i = 0; i < count; ++i) {
      if (auto result = pipeline.on_completion(batch[i])) results.push_back(*result);
    }
    (void)link.receiver->poll(batch);
  }
  bool until(const std::function<bool()>& done) {
    return run_until(
        *world, [&] { turn(); }, done);
  }

  std::unique_ptr<World> world;
  Link link;
  ManualClock clock;
  Watched watched;
  WritePipeline pipeline;
  std::vector<WriteResult> results;
};

}  // namespace

TEST_CASE("write pipeline: everything lands, in order, within the limits of the provider") {
  const std::string provider = GENERATE(from_range(present()));
  const std::size_t bytes = GENERATE(4096, 256 * 1024);
  INFO(provider << ", writes of " << bytes);
  constexpr std::size_t kWrites = 300;
  Bench bench(provider, kWrites * bytes);
  const Bytes source = pattern(bytes, 1);
  for (std::size_t i = 0; i < kWrites; ++i) {
    QueuedWrite write = bench.make(i * bytes, source, i);
    write.delivery_complete = i + 1 == kWrites;
    bench.pipeline.enqueue(1, std::move(write));
  }
  CHECK(bench.pipeline.queued(1) == kWrites);
  CHECK_FALSE(bench.pipeline.idle());
  REQUIRE(bench.until([&] { return bench.pipeline.idle(); }));
  const Capabilities& limits = bench.link.capabilities();
  CHECK(bench.watched.max_ops <= limits.max_inflight_ops);
  CHECK(bench.watched.max_bytes <= limits.max_inflight_bytes);
  // One of the two limits was really reached.
  CHECK((bench.watched.max_ops == limits.max_inflight_ops ||
         bench.watched.max_bytes == limits.max_inflight_bytes));
  CHECK(std::is_sorted(bench.watched.posted.begin(), bench.watched.posted.end()));
  CHECK(bench.pipeline.health().ok());
  CHECK(bench.pipeline.writes_completed() == kWrites);
  CHECK(bench.pipeline.bytes_completed() == kWrites * bytes);
  REQUIRE(bench.results.size() == kWrites);
  for (std::size_t i = 0; i < kWrites; ++i) {
    REQUIRE(std::memcmp(bench.link.memory.data() + i * bytes, source.data(), bytes) == 0);
  }
}

TEST_CASE("write pipeline: rooms take turns, one write each, whoever queued first") {
  Bench bench("sim", 1u << 20);
  const Bytes source = pattern(64, 1);
  for (std::uint64_t i = 0; i < 100; ++i) bench.pipeline.enqueue(1, bench.make(i * 64, source, i));
  for (std::uint64_t stream = 2; stream <= 4; ++stream) {
    for (std::uint64_t i = 0; i < 10; ++i) {
      bench.pipeline.enqueue(stream, bench.make(stream * 100'000 + i * 64, source, i));
    }
  }
  bench.pipeline.pump();
  REQUIRE(bench.watched.posted.size() == 64);
  for (std::size_t i = 0; i < 40; ++i) {
    const std::uint64_t offset = bench.watched.posted[i] - bench.link.remote.base;
    const std::uint64_t stream = offset < 100'000 ? 1 : offset / 100'000;
    CHECK(stream == i % 4 + 1);
    CHECK(offset % 100'000 == (i / 4) * 64);
  }
  CHECK(bench.pipeline.inflight(2) == 10);
  REQUIRE(bench.until([&] { return bench.pipeline.idle(); }));
  CHECK(bench.results.size() == 130);
  CHECK(bench.pipeline.inflight(2) == 0);
}

TEST_CASE("write pipeline: an urgent write goes before other rooms', after its own room's") {
  Bench bench("sim", 1u << 20);
  const Bytes source = pattern(64, 1);
  for (std::uint64_t i = 0; i < 3; ++i) {
    bench.pipeline.enqueue(1, bench.make(i * 64, source, i));
    bench.pipeline.enqueue(2, bench.make(1000 + i * 64, source, i));
  }
  bench.pipeline.enqueue(3, bench.make(2000, source, 0, true));
  bench.pipeline.enqueue(2, bench.make(3000, source, 3, true));
  bench.pipeline.pump();
  std::vector<std::uint64_t> offsets;
  for (const std::uint64_t address : bench.watched.posted) {
    offsets.push_back(address - bench.link.remote.base);
  }
  CHECK(offsets == std::vector<std::uint64_t>{2000, 0, 1000, 64, 1064, 128, 1128, 3000});
  REQUIRE(bench.until([&] { return bench.pipeline.idle(); }));
}

TEST_CASE("write pipeline: an urgent write neither waits for large ones nor makes them wait") {
  constexpr std::size_t kBytes = 1u << 20;
  Bench bench("sim", 17 * kBytes);
  const Bytes large = pattern(kBytes, 1), small = pattern(64, 2);
  const Capabilities& limits = bench.link.capabilities();
  const std::size_t full = limits.max_inflight_bytes / kBytes;
  REQUIRE(limits.max_inflight_bytes % kBytes == 0);
  REQUIRE(full < limits.max_inflight_ops);
  REQUIRE(full + 1 <= 16);
  for (std::uint64_t i = 0; i <= full; ++i) {
    bench.pipeline.enqueue(1, bench.make(i * kBytes, large, i));
  }
  bench.pipeline.pump();
  CHECK(bench.pipeline.inflight(1) == full);
  bench.pipeline.enqueue(2, bench.make(16 * kBytes, small, 0, true));
  bench.pipeline.pump();
  CHECK(bench.pipeline.inflight(2) == 1);
  CHECK(bench.pipeline.inflight(1) == full);
  // Before the urgent one has completed, the last large one goes in the first's place.
  REQUIRE(bench.until([&] { return !bench.results.empty(); }));
  bench.pipeline.pump();
  CHECK(bench.pipeline.queued(1) == 0);
  REQUIRE(bench.until([&] { return bench.pipeline.idle(); }));
  CHECK(bench.pipeline.bytes_completed() == (full + 1) * kBytes + 64);
}

TEST_CASE("write pipeline: a purge drops what waits and lets what is posted complete") {
  Bench bench("sim", 1u << 20);
  const Bytes source = pattern(64, 1);
  for (std::uint64_t i = 0; i < 100; ++i) {
    bench.pipeline.enqueue(1 + i % 2, bench.make(i * 64, source, i));
  }
  bench.pipeline.pump();  // 64 fit
  CHECK(bench.pipeline.inflight(1) == 32);
  CHECK(bench.pipeline.purge(1) == 18);
  CHECK(bench.pipeline.purge(1) == 0);
  CHECK(bench.pipeline.purge(77) == 0);
  CHECK(bench.pipeline.queued(1) == 0);
  CHECK(bench.pipeline.inflight(1) == 32);
  REQUIRE(bench.until([&] { return bench.pipeline.idle(); }));
  CHECK(bench.results.size() == 82);
  CHECK(std::count_if(bench.results.begin(), bench.results.end(),
                      [](const WriteResult& r) { return r.stream == 1; }) == 32);
  // A purged stream can be used again.
  bench.pipeline.enqueue(1, bench.make(0, source, 500));
  REQUIRE(bench.until([&] { return bench.pipeline.idle(); }));
  CHECK(bench.results.back().tag == 500);
}

TEST_CASE("write pipeline: EAGAIN is borne until its deadline and then breaks it") {
  Bench bench("sim", 1u << 20);
  const Bytes source = pattern(64, 1);
  bench.pipeline.enqueue(1, bench.make(0, source, 1));
  bench.watched.refuse_with = Status(StatusCode::kAgain, "not now");
  bench.pipeline.pump();
  bench.clock.advance(std::chrono::milliseconds(1999));
  bench.pipeline.pump();
  CHECK(bench.pipeline.health().ok());
  SECTION("in time") {
    bench.watched.refuse_with.reset();
    REQUIRE(bench.until([&] { return bench.pipeline.idle(); }));
    CHECK(bench.pipeline.health().ok());
    // The next refusal has a deadline of its own.
    bench.watched.refuse_with = Status(StatusCode::kAgain, "not now");
    bench.pipeline.enqueue(1, bench.make(0, source, 2));
    bench.clock.advance(std::chrono::seconds(10));
    bench.pipeline.pump();
    CHECK(bench.pipeline.health().ok());
  }
  SECTION("too late") {
    bench.clock.advance(std::chrono::milliseconds(2));
    bench.pipeline.pump();
    CHECK(bench.pipeline.health().code() == StatusCode::kDeadline);
    bench.watched.refuse_with.reset();
    bench.pipeline.pump();
    CHECK(bench.watched.posted.empty());
    CHECK(bench.pipeline.purge(1) == 1);
    CHECK(bench.pipeline.idle());
  }
}

TEST_CASE("write pipeline: while something completes EAGAIN does not count") {
  Bench bench("sim", 1u << 20);
  const Bytes source = pattern(64, 1);
  for (std::uint64_t i = 0; i < 3; ++i) bench.pipeline.enqueue(1, bench.make(i * 64, source, i));
  bench.pipeline.pump();
  REQUIRE(bench.watched.posted.size() == 3);
  bench.pipeline.enqueue(1, bench.make(4096, source, 9));
  bench.watched.refuse_with = Status(StatusCode::kAgain, "not now");
  bench.pipeline.pump();
  bench.clock.advance(std::chrono::milliseconds(1500));
  REQUIRE(run_until(
      *bench.world, [&] { bench.turn(); }, [&] { return !bench.results.empty(); }));
  bench.clock.advance(std::chrono::milliseconds(1500));
  bench.pipeline.pump();
  CHECK(bench.pipeline.health().ok());
}

TEST_CASE("write pipeline: an error completion or a failed post breaks it for good") {
  Bench bench("sim", 1u << 20);
  const Bytes source = pattern(64, 1);
  SECTION("completion") {
    QueuedWrite bad = bench.make(0, source, 1);
    bad.remote[0].key ^= 1;
    bad.delivery_complete = true;
    bench.pipeline.enqueue(1, std::move(bad));
    REQUIRE(bench.until([&] { return !bench.results.empty(); }));
    CHECK_FALSE(bench.results[0].status.ok());
  }
  SECTION("post") {
    bench.watched.refuse_with = unavailable("gone");
    bench.pipeline.enqueue(1, bench.make(0, source, 1));
    bench.pipeline.pump();
    bench.watched.refuse_with.reset();
    CHECK(bench.pipeline.queued(1) == 1);
  }
  SECTION("a write above what may ever be in flight") {
    const Bytes big = pattern(5u << 20, 1);
    bench.pipeline.enqueue(1, bench.make(0, big, 1));
    bench.pipeline.pump();
    CHECK(bench.pipeline.health().code() == StatusCode::kInvalidArgument);
  }
  CHECK_FALSE(bench.pipeline.health().ok());
  const std::size_t posted = bench.watched.posted.size();
  bench.pipeline.enqueue(2, bench.make(64, source, 2));
  for (int i = 0; i < 10; ++i) bench.turn();
  CHECK(bench.watched.posted.size() == posted);
  CHECK(bench.pipeline.purge(2) == 1);
}

TEST_CASE("write pipeline: two on one endpoint do not take each other's completions") {
  Bench bench("sim", 1u << 20);
  WritePipeline second(&bench.watched, bench.link.peer, bench.link.capabilities(), &bench.clock,
                       std::chrono::seconds(2));
  const Bytes source = pattern(64, 1);
  bench.pipeline.enqueue(1, bench.make(0, source, 1));
  second.enqueue(1, bench.make(64, source, 2));
  bench.pipeline.pump();
  second.pump();
  std::size_t first_got = 0, second_got = 0;
  REQUIRE(run_until(
      *bench.world,
      [&] {
        std::array<Completion, 4> batch;
        const std::size_t count = bench.watched.poll(batch);
        for (std::size_t i = 0; i < count; ++i) {
          const bool first = bench.pipeline.on_completion(batch[i]).has_value();
          const bool other = second.on_completion(batch[i]).has_value();
          CHECK(first != other);
          first_got += first ? 1 : 0;
          second_got += other ? 1 : 0;
        }
      },
      [&] { return first_got + second_got == 2; }));
  CHECK(first_got == 1);
  CHECK(second_got == 1);
}

TEST_CASE("write pipeline: completions that are not its own are left alone") {
  Bench bench("sim", 4096);
  CHECK_FALSE(bench.pipeline.on_completion({.kind = CompletionKind::kWrite, .context = 1}));
  CHECK_FALSE(bench.pipeline.on_completion({.kind = CompletionKind::kRemoteData, .data = 1}));
  CHECK_FALSE(bench.pipeline.on_completion({.kind = CompletionKind::kFault}));
  CHECK(bench.pipeline.idle());
}

}  // namespace kvd::fabric::contract
