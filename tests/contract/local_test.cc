// The `local` transport against peers that do not play by its rules, and against the end of a peer.
// The rest of it is what every provider must do.
#include <fcntl.h>
#include <linux/memfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "contract/local_peers.h"
#include "device/host_buffer.h"

namespace kvd::fabric::contract {
namespace {

int open_memfd(std::size_t bytes, int seals) {
  const int fd = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  REQUIRE(ftruncate(fd, static_cast<off_t>(bytes)) == 0);
  REQUIRE(fcntl(fd, F_ADD_SEALS, seals) == 0);
  return fd;
}

}  // namespace

TEST_CASE("local: an entry that no kvd would put ends the connection, and nothing is copied") {
  if (!has_local()) return;
  const std::string what = GENERATE(
      as<std::string>{}, "no segment", "too many segments", "no bytes", "unknown source",
      "source out of range", "source wraps around", "foreign key", "behind the region",
      "address wraps around", "more than 1 MiB", "more than the ring holds", "second segment bad");
  INFO(what);
  Decode decode;
  RawPrefill prefill(decode);
  REQUIRE(prefill.greet().ok());
  Entry& entry = prefill.put();
  if (what == "no segment") entry.segments = 0;
  if (what == "too many segments") entry.segments = local::kMaxSegments + 1;
  if (what == "no bytes") entry.segment[0].bytes = 0;
  if (what == "unknown source") entry.segment[0].source = 1;
  if (what == "source out of range") entry.segment[0].offset = kLocalBytes - 4095;
  if (what == "source wraps around") entry.segment[0].offset = ~std::uint64_t{0} - 100;
  if (what == "foreign key") entry.segment[0].key ^= 1;
  if (what == "behind the region") entry.segment[0].address = kLocalBytes - 4095;
  if (what == "address wraps around") entry.segment[0].address = ~std::uint64_t{0} - 100;
  if (what == "more than 1 MiB") {
    entry.segments = 17;
    for (std::uint32_t i = 0; i < 17; ++i) {
      entry.segment[i] = entry.segment[0];
      entry.segment[i].bytes = kLocalBytes;
    }
  }
  if (what == "more than the ring holds") prefill.ring->posted = local::kDepth + 1;
  if (what == "second segment bad") {
    entry.segments = 2;
    entry.segment[1] = entry.segment[0];
    entry.segment[1].key ^= 1;
  }
  const auto seen = poll_some(*decode.endpoint);
  REQUIRE(seen.size() == 1);
  CHECK(seen[0].kind == CompletionKind::kFault);
  CHECK_FALSE(seen[0].status.ok());
  CHECK(decode.memory == Bytes(kLocalBytes));
}

TEST_CASE("local: a copy under which the epoch ended is void and signals nothing") {
  if (!has_local()) return;
  Decode decode;
  RawPrefill prefill(decode);
  REQUIRE(prefill.greet().ok());
  prefill.put();
  auto seen = poll_some(*decode.endpoint);
  REQUIRE(seen.size() == 1);
  CHECK(seen[0].kind == CompletionKind::kRemoteData);
  CHECK(seen[0].data == 5);
  // What prefill does before it reuses pages that were not acknowledged.
  prefill.put();
  prefill.ring->epoch = 8;
  std::memset(prefill.source_map.data(), 0x22, kLocalBytes);
  seen = poll_some(*decode.endpoint);
  REQUIRE(seen.size() == 1);
  CHECK(seen[0].kind == CompletionKind::kFault);
}

TEST_CASE("local: an endpoint that closes makes what its peer has not copied void") {
  if (!has_local()) return;
  auto world = make_world("local");
  Link link(world.get(), kLocalBytes);
  REQUIRE(link.post(pattern(64, 1), 0, 1, true).ok());
  REQUIRE(link.until([&] { return link.completed(1); }));
  const Bytes source = pattern(4096, 2);
  const LocalPiece from{source.data(), source.size()};
  const RemotePiece to = link.at(0, source.size());
  REQUIRE(link.sender
              ->write(link.peer,
                      {.local = {&from, 1}, .remote = {&to, 1}, .context = 2, .remote_data = 9})
              .ok());
  link.sender.reset();
  const auto seen = poll_some(*link.receiver);
  REQUIRE(seen.size() == 1);
  CHECK(seen[0].kind == CompletionKind::kFault);
}

TEST_CASE("local: memory that its owner could still shorten or change hands of is refused") {
  if (!has_local()) return;
  const std::string what = GENERATE(as<std::string>{}, "unsealed source", "source may shrink",
                                    "source writable", "source may grow", "source is a file",
                                    "ring too small", "no source", "other version");
  INFO(what);
  Decode decode;
  RawPrefill prefill(decode);
  int odd = -1;
  if (what == "unsealed source") odd = open_memfd(kLocalBytes, 0);
  if (what == "source may shrink") odd = open_memfd(kLocalBytes, F_SEAL_GROW | F_SEAL_FUTURE_WRITE);
  if (what == "source may grow") {
    odd = open_memfd(kLocalBytes, F_SEAL_SHRINK | F_SEAL_FUTURE_WRITE);
  }
  if (what == "source writable") odd = open_memfd(kLocalBytes, F_SEAL_SHRINK | F_SEAL_GROW);
  if (what == "source is a file") odd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
  if (what == "ring too small")
    odd = open_memfd(4096, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE);
  if (what == "other version") ++prefill.hello.version;
  if (what == "ring too small") {
    REQUIRE(prefill.greet({odd, prefill.source_fd.get()}).ok());
  } else if (what == "no source") {
    REQUIRE(prefill.greet({prefill.ring_fd.get()}).ok());
  } else {
    REQUIRE(prefill.greet({prefill.ring_fd.get(), odd < 0 ? prefill.source_fd.get() : odd}).ok());
  }
  if (odd >= 0) close(odd);
  prefill.put();
  const auto seen = poll_some(*decode.endpoint);
  REQUIRE(seen.size() == 1);
  CHECK(seen[0].kind == CompletionKind::kFault);
  CHECK(seen[0].status.code() == StatusCode::kNoProvider);
  const local::Welcome answer = prefill.welcome();
  CHECK(answer.refused == local::kRefusedForGood);
  CHECK(seen[0].status.message() == answer.why);
  CHECK(decode.memory == Bytes(kLocalBytes));
}

TEST_CASE("local: who does not know the token is nobody, and keeps nobody out") {
  if (!has_local()) return;
  Decode decode;
  std::vector<Fd> silent;
  for (int i = 0; i < 12; ++i) silent.push_back(local::connect_to(decode.address.name).value());
  RawPrefill guesser(decode);
  guesser.hello.token ^= 1;
  REQUIRE(guesser.greet().ok());
  guesser.put();
  CHECK(poll_some(*decode.endpoint).empty());
  RawPrefill prefill(decode);
  REQUIRE(prefill.greet().ok());
  prefill.put();
  const auto seen = poll_some(*decode.endpoint);
  REQUIRE(seen.size() == 1);
  CHECK(seen[0].kind == CompletionKind::kRemoteData);
  CHECK(std::count(decode.memory.begin(), decode.memory.end(), std::byte{0x11}) == 4096);
  // One peer for one endpoint: nobody else gets in any more.
  CHECK_FALSE(local::connect_to(decode.address.name).ok());
}

TEST_CASE("local: a target that acknowledges what was never written ends the connection") {
  if (!has_local()) return;
  const std::string what =
      GENERATE(as<std::string>{}, "too many", "fault", "unsealed", "junk", "other magic");
  INFO(what);
  RawDecode decode;
  Prefill prefill(decode.address);
  decode.accept();
  REQUIRE(prefill.write(1).ok());
  if (what == "too many") decode.ack->completed = 2;
  if (what == "fault") decode.ack->fault = 99;
  if (what == "unsealed") {
    const Fd loose(open_memfd(4096, 0));
    decode.welcome(loose.get());
  } else if (what == "junk" || what == "other magic") {
    const std::vector<std::byte> junk(what == "junk" ? 40 : sizeof(local::Welcome));
    REQUIRE(local::send_packet(decode.socket.get(), junk, {}).ok());
  } else {
    decode.welcome(decode.ack_fd.get());
  }
  const auto seen = poll_some(*prefill.endpoint);
  REQUIRE(seen.size() == 1);
  CHECK(seen[0].kind == CompletionKind::kWrite);
  CHECK(seen[0].context == 1);
  CHECK_FALSE(seen[0].status.ok());
  CHECK_FALSE(prefill.write(2).ok());
}

TEST_CASE("local: a break voids what is not acknowledged before it gives a source back") {
  if (!has_local()) return;
  RawDecode decode;
  Prefill prefill(decode.address);
  decode.accept();
  decode.welcome(decode.ack_fd.get());
  REQUIRE(prefill.write(1).ok());
  REQUIRE(prefill.write(2).ok());
  CHECK(poll_some(*prefill.endpoint).empty());
  const std::uint64_t epoch = decode.ring->epoch;
  decode.ack->completed = 1;
  decode.socket.reset();
  const auto seen = poll_some(*prefill.endpoint);
  REQUIRE(seen.size() == 2);
  CHECK(seen[0].status.ok());
  CHECK_FALSE(seen[1].status.ok());
  CHECK(decode.ring->epoch > epoch);
}

TEST_CASE("local: a break is told even when the peer acknowledges the last write after it") {
  if (!has_local()) return;
  const bool ends = GENERATE(true, false);
  RawDecode decode;
  Prefill prefill(decode.address);
  decode.accept();
  decode.welcome(decode.ack_fd.get());
  CHECK(poll_some(*prefill.endpoint).empty());
  REQUIRE(prefill.write(1).ok());
  if (ends) {
    decode.socket.reset();
  } else {
    decode.ack->fault = static_cast<std::uint64_t>(local::Fault::kRefused);
  }
  for (int i = 0; i < 300; ++i) CHECK(prefill.endpoint->poll({}) == 0);
  decode.ack->completed = 1;
  const auto seen = poll_some(*prefill.endpoint);
  REQUIRE(seen.size() == 1);
  CHECK_FALSE(seen[0].status.ok());
}

TEST_CASE("local: a target that stops leaves the sender with a full ring, and nothing hangs") {
  if (!has_local()) return;
  RawDecode decode;
  Prefill prefill(decode.address);
  decode.accept();
  decode.welcome(decode.ack_fd.get());
  for (std::uint64_t i = 0; i < local::kDepth; ++i) REQUIRE(prefill.write(i).ok());
  CHECK(prefill.write(99).code() == StatusCode::kAgain);
  CHECK(poll_some(*prefill.endpoint).empty());
  CHECK(prefill.endpoint->may_wait());
  decode.ack->completed = 3;
  CHECK_FALSE(prefill.endpoint->may_wait());
  CHECK(poll_some(*prefill.endpoint).size() == 3);
  CHECK(prefill.write(99).ok());
  // It dies: the rest ends in errors at once, in order.
  decode.socket.reset();
  const auto seen = poll_some(*prefill.endpoint);
  REQUIRE(seen.size() == local::kDepth - 2);
  for (const Completion& completion : seen) CHECK_FALSE(completion.status.ok());
  CHECK(seen.back().context == 99);
}

TEST_CASE("local: the end of an idle peer wakes the other side and is a fault") {
  if (!has_local()) return;
  const bool sender_ends = GENERATE(true, false);
  auto world = make_world("local");
  Link link(world.get(), kLocalBytes);
  REQUIRE(link.post(pattern(64, 1), 0, 1, true).ok());
  REQUIRE(link.until([&] { return link.completed(1); }));
  Endpoint& stays = sender_ends ? *link.receiver : *link.sender;
  CHECK(poll_some(stays).empty());
  REQUIRE(stays.may_wait());
  CHECK_FALSE(readable(stays.wait_fd(), 2));
  (sender_ends ? link.sender : link.receiver).reset();
  REQUIRE(readable(stays.wait_fd(), 2000));
  const auto seen = poll_some(stays);
  REQUIRE(seen.size() == 1);
  CHECK(seen[0].kind == CompletionKind::kFault);
  // Told once; and an end that was told wakes nobody any more.
  CHECK(stays.may_wait());
  CHECK_FALSE(readable(stays.wait_fd(), 2));
}

TEST_CASE("local: a peer that cannot be reached is known when it is inserted, with the reason") {
  if (!has_local()) return;
  auto domain = open_local();
  auto endpoint = domain->open_endpoint().value();
  Address address = Address::random();
  const auto nobody = endpoint->insert(address.encode());
  REQUIRE_FALSE(nobody.ok());
  CHECK(nobody.status().code() == StatusCode::kNoProvider);
  CHECK(nobody.status().message().find("cannot reach") != std::string::npos);
  address.scope.boot ^= 1;
  const auto elsewhere = endpoint->insert(address.encode());
  REQUIRE_FALSE(elsewhere.ok());
  CHECK(elsewhere.status().message().find("another host") != std::string::npos);
}

TEST_CASE("local: an address names a worker's socket and no other of the host") {
  const std::string good = Address::random().encode();
  REQUIRE(Address::decode(good).ok());
  const std::size_t name = good.find("/kvd-") + 1;
  const std::string what =
      GENERATE(as<std::string>{}, "/run/dbus/system_bus_socket_padding_",
               "kvd-0123456789abcdef0123456789abcdeg", "kvd-0123456789abcdeg0123456789abcdef",
               "kvx-0123456789abcdef0123456789abcdef");
  REQUIRE(what.size() == 36);
  CHECK_FALSE(Address::decode(std::string(good).replace(name, what.size(), what)).ok());
  CHECK_FALSE(Address::decode(std::string(good).replace(name + 7, 1, std::string(1, '\0'))).ok());
}

TEST_CASE("local: sources must be shared memory that was registered before the peer came") {
  if (!has_local()) return;
  auto world = make_world("local");
  Link link(world.get(), kLocalBytes);
  std::vector<std::byte> heap(4096);
  const auto refused = link.sender_domain->register_memory(heap.data(), 4096, false, nullptr);
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.status().code() == StatusCode::kNoProvider);
  auto late = device::HostBuffer::allocate(4096, device::Backing::kShared).value();
  auto registered = link.sender_domain->register_memory(late.data(), 4096, false, nullptr);
  REQUIRE(registered.ok());
  for (const std::byte* source : {heap.data(), static_cast<std::byte*>(late.data())}) {
    const LocalPiece from{source, 64};
    const RemotePiece to = link.at(0, 64);
    const Status status =
        link.sender->write(link.peer, {.local = {&from, 1}, .remote = {&to, 1}, .context = 1});
    CHECK(status.code() == StatusCode::kInvalidArgument);
  }
}

TEST_CASE("local: a page set of many small pieces is cut into runs and lands whole") {
  if (!has_local()) return;
  auto world = make_world("local");
  constexpr std::size_t kPieces = 16, kPiece = 4096;
  Link link(world.get(), 2 * kPieces * kPiece);
  const Bytes source = pattern(2 * kPieces * kPiece, 4);
  std::vector<LocalPiece> from;
  std::vector<RemotePiece> to;
  Bytes expected(link.memory.size());
  for (std::size_t i = 0; i < kPieces; ++i) {
    const std::size_t at = 2 * ((i * 7) % kPieces) * kPiece;
    from.push_back({source.data() + 2 * i * kPiece, kPiece});
    to.push_back(link.at(at, kPiece));
    std::memcpy(expected.data() + at, from.back().address, kPiece);
  }
  REQUIRE(link.post({.local = from, .remote = to, .context = 1}).ok());
  REQUIRE(link.until([&] { return link.completed(1); }));
  CHECK(link.failed() == 0);
  CHECK(link.memory == expected);
}

}  // namespace kvd::fabric::contract
