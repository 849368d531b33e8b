// The `local` transport where the kernel refuses, and its sleep: who is woken, and who is not asked
// to wake.
#include <linux/filter.h>
#include <linux/memfd.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <functional>
#include <thread>

#include "contract/local_peers.h"

namespace kvd::fabric::contract {
namespace {

bool limit_thread(std::span<sock_filter> filter) {
  sock_fprog program{.len = static_cast<unsigned short>(filter.size()), .filter = filter.data()};
  return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

// The exit status of a child that runs `act`, or 256 when it was killed.
int child_status(const std::function<int()>& act) {
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) _exit(act());
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 256;
}

// Runs `act` on a thread whose calls of `system_call` fail with `error`; false where this host does
// not let a thread be limited so.
bool where_fails(long system_call, int error, const std::function<void()>& act) {
  bool limited = false;
  std::thread([&] {
    sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<unsigned>(system_call), 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | static_cast<unsigned>(error)),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
    limited = limit_thread(filter);
    if (limited) act();
  }).join();
  if (!limited) WARN("skipped: no seccomp filter can be set here");
  return limited;
}

StatusCode code_where_fails(long system_call, int error, const std::function<Status()>& act) {
  Status status;
  REQUIRE(where_fails(system_call, error, [&] { status = act(); }));
  return status.code();
}

Status make_ring() {
  Fd fd;
  return Mapping::create(4096, &fd).status();
}

}  // namespace

TEST_CASE("local: what may be had in a moment is not taken for a host that cannot do it") {
  if (!where_fails(__NR_getppid, EPERM, [] {})) return;
  const Address address = Address::random();
  const Fd listener = local::listen_at(address.name).value();
  const auto listen = [] { return local::listen_at(Address::random().name).status(); };
  const auto connect = [&] { return local::connect_to(address.name).status(); };
  CHECK(listen().ok());
  CHECK(connect().ok());
  CHECK(make_ring().ok());
  for (const int error : {EMFILE, ENFILE, ENOMEM, ENOBUFS}) {
    CHECK(code_where_fails(__NR_socket, error, listen) == StatusCode::kResourceExhausted);
    CHECK(code_where_fails(__NR_memfd_create, error, make_ring) == StatusCode::kResourceExhausted);
  }
  CHECK(code_where_fails(__NR_connect, EAGAIN, connect) == StatusCode::kUnavailable);
  CHECK(code_where_fails(__NR_socket, EACCES, listen) == StatusCode::kNoProvider);
  CHECK(code_where_fails(__NR_memfd_create, ENOSYS, make_ring) == StatusCode::kNoProvider);
  CHECK(code_where_fails(__NR_connect, ECONNREFUSED, connect) == StatusCode::kNoProvider);
}

TEST_CASE("local: a target that may open no more files says so once, and does not spin") {
  if (!has_local()) return;
  Decode decode;
  const Fd waits = local::connect_to(decode.address.name).value();
  std::vector<Completion> seen;
  if (!where_fails(__NR_accept4, EMFILE, [&] { seen = poll_some(*decode.endpoint); })) return;
  REQUIRE(seen.size() == 1);
  CHECK(seen[0].kind == CompletionKind::kFault);
  CHECK(seen[0].status.code() == StatusCode::kResourceExhausted);
  CHECK(decode.endpoint->may_wait());
  CHECK_FALSE(readable(decode.endpoint->wait_fd(), 2));
}

TEST_CASE("local: a peer whose memory cannot be opened for want of descriptors is told") {
  if (!has_local()) return;
  Decode decode;
  RawPrefill prefill(decode);
  CHECK(poll_some(*decode.endpoint).empty());  // takes the connection in, before the Hello
  REQUIRE(prefill.greet().ok());
  rlimit before{};
  REQUIRE(getrlimit(RLIMIT_NOFILE, &before) == 0);
  const Fd lowest(dup(0));
  rlimit few = before;
  few.rlim_cur = static_cast<rlim_t>(lowest.get()) + 1;
  REQUIRE(setrlimit(RLIMIT_NOFILE, &few) == 0);
  const auto seen = poll_some(*decode.endpoint);
  REQUIRE(setrlimit(RLIMIT_NOFILE, &before) == 0);
  REQUIRE(seen.size() == 1);
  CHECK(seen[0].kind == CompletionKind::kFault);
  CHECK(seen[0].status.code() == StatusCode::kResourceExhausted);
  const local::Welcome answer = prefill.welcome();
  CHECK(answer.refused == local::kRefusedForNow);
  CHECK(std::string(answer.why).find("ulimit -n") != std::string::npos);
}

TEST_CASE("local: a refusal for now is told from one for good") {
  if (!has_local()) return;
  const bool for_now = GENERATE(true, false);
  RawDecode decode;
  Prefill prefill(decode.address);
  decode.accept();
  const local::Welcome answer{.magic = local::kWelcomeMagic,
                              .version = local::kVersion,
                              .refused = for_now ? local::kRefusedForNow : local::kRefusedForGood,
                              .why = "because"};
  REQUIRE(local::send_packet(decode.socket.get(), std::as_bytes(std::span(&answer, 1)), {}).ok());
  const auto seen = poll_some(*prefill.endpoint);
  REQUIRE(seen.size() == 1);
  CHECK(seen[0].status.code() ==
        (for_now ? StatusCode::kResourceExhausted : StatusCode::kNoProvider));
  CHECK(seen[0].status.message().find("because") != std::string::npos);
}

TEST_CASE("local: the id that stands for all unknown users is nobody's") {
  const int status = child_status([] {
    if (unshare(CLONE_NEWUSER) != 0) return 77;
    const Address address = Address::random();
    const auto listener = local::listen_at(address.name);
    const auto reached = local::connect_to(address.name);
    const bool refused = listener.ok() && !reached.ok() &&
                         reached.status().code() == StatusCode::kNoProvider &&
                         reached.status().message().find("user namespace") != std::string::npos;
    return refused ? 0 : 1;
  });
  if (status == 77) {
    WARN("skipped: no user namespace can be made here");
    return;
  }
  CHECK(status == 0);
}

TEST_CASE("local: to see whether it works takes no reserved huge page") {
  const int status = child_status([] {
    sock_filter filter[] = {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
                            BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_memfd_create, 0, 2),
                            BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, args[1])),
                            BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, MFD_HUGETLB, 1, 0),
                            BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
                            BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS)};
    if (!limit_thread(filter)) return 77;
    (void)explain_missing("local").ok();
    return 0;
  });
  if (status == 77) WARN("skipped: no seccomp filter can be set here");
  CHECK((status == 0 || status == 77));
}

TEST_CASE("local: who has work does not ask to be woken") {
  if (!has_local()) return;
  SECTION("a target with something to copy") {
    Decode decode;
    RawPrefill prefill(decode);
    REQUIRE(prefill.greet().ok());
    CHECK(poll_some(*decode.endpoint).empty());
    prefill.welcome();
    REQUIRE(prefill.ack != nullptr);
    prefill.put();
    CHECK_FALSE(decode.endpoint->may_wait());
    CHECK(prefill.ack->sleeping % 2 == 0);
    CHECK(poll_some(*decode.endpoint).size() == 1);
    CHECK(decode.endpoint->may_wait());
    CHECK(prefill.ack->sleeping % 2 == 1);
  }
  SECTION("an initiator with something to reap") {
    RawDecode decode;
    Prefill prefill(decode.address);
    decode.accept();
    decode.welcome(decode.ack_fd.get());
    CHECK(poll_some(*prefill.endpoint).empty());
    REQUIRE(prefill.write(1).ok());
    decode.ack->completed = 1;
    CHECK_FALSE(prefill.endpoint->may_wait());
    CHECK(decode.ring->sleeping % 2 == 0);
    CHECK(poll_some(*prefill.endpoint).size() == 1);
    CHECK(prefill.endpoint->may_wait());
    CHECK(decode.ring->sleeping % 2 == 1);
  }
}

TEST_CASE("local: what was posted before the Welcome is rung for after it") {
  if (!has_local()) return;
  RawDecode decode;
  Prefill prefill(decode.address);
  decode.accept();
  REQUIRE(prefill.write(1).ok());
  decode.ack->sleeping = 1;
  decode.welcome(decode.ack_fd.get());
  CHECK_FALSE(readable(decode.socket.get(), 0));
  CHECK(poll_some(*prefill.endpoint).empty());
  CHECK(readable(decode.socket.get(), 2000));
}

TEST_CASE("local: a doorbell that could not be sent is sent later") {
  if (!has_local()) return;
  auto world = make_world("local");
  Link link(world.get(), kLocalBytes);
  REQUIRE(link.post(pattern(64, 1), 0, 1, true).ok());
  REQUIRE(link.until([&] { return link.completed(1); }));
  const bool to_receiver = GENERATE(true, false);
  const Bytes source = pattern(64, 2);
  const LocalPiece from{source.data(), source.size()};
  const RemotePiece to = link.at(0, source.size());
  const WriteRequest request{.local = {&from, 1}, .remote = {&to, 1}, .context = 2};
  Endpoint& rings = to_receiver ? *link.sender : *link.receiver;
  Endpoint& sleeps = to_receiver ? *link.receiver : *link.sender;
  if (!to_receiver) REQUIRE(link.sender->write(link.peer, request).ok());
  CHECK(poll_some(sleeps).empty());
  REQUIRE(sleeps.may_wait());
  const bool limited = where_fails(__NR_sendmsg, ENOBUFS, [&] {
    if (to_receiver) (void)link.sender->write(link.peer, request).ok();
    poll_some(rings);
  });
  if (!limited) return;
  CHECK_FALSE(readable(sleeps.wait_fd(), 2));
  CHECK_FALSE(rings.may_wait());
  poll_some(rings);
  CHECK(readable(sleeps.wait_fd(), 2000));
}

TEST_CASE("local: two threads that sleep whenever they may never miss each other") {
  if (!has_local()) return;
  auto world = make_world("local");
  Link link(world.get(), kLocalBytes);
  REQUIRE(link.post(pattern(64, 1), 0, 1, true).ok());
  REQUIRE(link.until([&] { return link.completed(1); }));
  constexpr std::uint64_t kRounds = 5000;
  // Ends by itself: a wake-up that is missed costs two seconds and is counted.
  const auto sleep_through = [](Endpoint& endpoint, std::uint64_t count, auto&& post) {
    std::array<Completion, 16> batch;
    int missed = 0;
    for (std::uint64_t got = 0; got < count && missed == 0;) {
      post(got);
      const std::size_t some = endpoint.poll(batch);
      got += some;
      if (some == 0 && endpoint.may_wait() && !readable(endpoint.wait_fd(), 2000)) ++missed;
    }
    return missed;
  };
  const Bytes source = pattern(64, 2);
  const LocalPiece from{source.data(), source.size()};
  const RemotePiece to = link.at(0, source.size());
  int missed_there = 0;
  std::thread decode(
      [&] { missed_there = sleep_through(*link.receiver, kRounds, [](std::uint64_t) {}); });
  std::uint64_t posted = 0;
  const int missed_here = sleep_through(*link.sender, kRounds, [&](std::uint64_t done) {
    if (posted != done) return;
    ++posted;
    CHECK(
        link.sender
            ->write(
                link.peer,
                {.local = {&from, 1}, .remote = {&to, 1}, .context = posted, .remote_data = posted})
            .ok());
  });
  decode.join();
  CHECK(missed_here == 0);
  CHECK(missed_there == 0);
}

}  // namespace kvd::fabric::contract
