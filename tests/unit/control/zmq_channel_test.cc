#include "control/zmq_channel.h"

#include <arpa/inet.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <functional>
#include <vector>
#include <zmq.hpp>

#include "proto/envelope.h"

namespace kvd::control {
namespace {

using Channels = std::vector<Channel*>;

std::unique_ptr<Channel> open(const std::string& listen, std::optional<KeyRing> keys = {}) {
  ZmqOptions options;
  options.listen = listen;
  options.keys = std::move(keys);
  options.redial_after = std::chrono::milliseconds(100);
  Result<std::unique_ptr<Channel>> channel = open_zmq_channel(options);
  INFO(channel.status().message());
  REQUIRE(channel.ok());
  return std::move(channel).value();
}

bool readable(const Channel& channel, int timeout_ms) {
  pollfd fd{channel.wait_fd(), POLLIN, 0};
  return ::poll(&fd, 1, timeout_ms) == 1;
}

// Turns the loop of every channel until `done` or ten seconds have passed; what is received goes
// into `done`, which is also called after each quiet 20 ms.
bool pump(const Channels& channels, const std::function<bool(Channel*, const Incoming*)>& done) {
  const SteadyClock clock;
  const TimePoint deadline = clock.now() + std::chrono::seconds(10);
  std::vector<pollfd> fds;
  for (Channel* channel : channels) fds.push_back({channel->wait_fd(), POLLIN, 0});
  while (clock.now() < deadline) {
    for (Channel* channel : channels) {
      while (const auto incoming = channel->receive()) {
        if (done(channel, &*incoming)) return true;
      }
    }
    if (done(nullptr, nullptr)) return true;
    ::poll(fds.data(), fds.size(), 20);
  }
  return false;
}

// The next message at `at`.
std::optional<Incoming> next(Channel& at, const Channels& others = {}) {
  std::optional<Incoming> out;
  Channels all = others;
  all.push_back(&at);
  pump(all, [&](Channel* channel, const Incoming* incoming) {
    if (channel == &at) out = *incoming;
    return out.has_value();
  });
  return out;
}

// Sends as soon as the peer is there.
bool send_when_there(Channel& from, PeerRef peer, const std::string& text, const Channels& others) {
  Channels all = others;
  all.push_back(&from);
  return pump(all, [&](Channel*, const Incoming*) { return from.send(peer, text).ok(); });
}

void converse(Channel& client, PeerRef server_ref, Channel& server) {
  REQUIRE(send_when_there(client, server_ref, "ping", {&server}));
  const auto ping = next(server, {&client});
  REQUIRE(ping);
  CHECK(ping->bytes == "ping");
  REQUIRE(server.send(ping->from, "pong").ok());
  const auto pong = next(client, {&server});
  REQUIRE(pong);
  CHECK(pong->bytes == "pong");
  CHECK(pong->from == server_ref);
}

PeerRef dialled(Channel& from, const std::string& address) {
  Result<PeerRef> ref = from.dial(address);
  INFO(ref.status().message());
  REQUIRE(ref.ok());
  return *ref;
}

// An address where nobody listens now.
std::string vacant() { return open("127.0.0.1:0")->address(); }

struct Party {
  KeyPair pair;
  KeyRing ring;
  explicit Party() {
    Result<KeyPair> made = generate_keys();
    REQUIRE(made.ok());
    pair = *made;
    ring.public_key = pair.public_key;
    ring.secret_key = pair.secret_key;
  }
  void knows(const Party& other, const std::string& role, const std::string& address = "") {
    ring.peers.push_back({other.pair.public_key, role, address});
  }
};

}  // namespace

TEST_CASE("zmq channel: two workers talk, by name, number and IPv6") {
  const std::string host = GENERATE(as<std::string>{}, "127.0.0.1", "localhost", "[::1]");
  ZmqOptions options;
  options.listen = host + ":0";
  Result<std::unique_ptr<Channel>> opened = open_zmq_channel(options);
  if (!opened.ok() && host == "[::1]") {
    WARN("this host has no IPv6 loopback: " << opened.status().message());
    return;
  }
  REQUIRE(opened.ok());
  Channel& server = **opened;
  CHECK(server.address().find(":0") == std::string::npos);
  auto client = open("");
  CHECK(client->address().empty());
  const std::string port = server.address().substr(server.address().rfind(':'));
  const PeerRef ref = dialled(*client, host + port);
  CHECK(dialled(*client, server.address()) == ref);
  converse(*client, ref, server);
}

TEST_CASE("zmq channel: who dials first does not matter") {
  const std::string address = vacant();
  auto client = open("");
  const PeerRef ref = dialled(*client, address);
  CHECK(client->send(ref, "lost").code() == StatusCode::kUnavailable);
  auto server = open(address);
  converse(*client, ref, *server);
}

TEST_CASE(
    "zmq channel: a peer that restarts at its address is talked to again under the same ref") {
  auto client = open("");
  auto server = open("127.0.0.1:0");
  const std::string address = server->address();
  const PeerRef ref = dialled(*client, address);
  converse(*client, ref, *server);
  server.reset();
  // What is sent before the loss is seen may be accepted; it must not reach the next one.
  CHECK(pump({client.get()}, [&](Channel*, const Incoming*) {
    return client->send(ref, "for the dead").code() == StatusCode::kUnavailable;
  }));
  server = open(address);
  converse(*client, ref, *server);
}

TEST_CASE("zmq channel: a dialler that is gone cannot be answered") {
  auto server = open("127.0.0.1:0");
  auto client = open("");
  REQUIRE(send_when_there(*client, dialled(*client, server->address()), "ping", {server.get()}));
  const auto ping = next(*server, {client.get()});
  REQUIRE(ping);
  client.reset();
  CHECK(pump({server.get()}, [&](Channel*, const Incoming*) {
    return server->send(ping->from, "pong").code() == StatusCode::kUnavailable;
  }));
  CHECK(server->send(ping->from, "pong").code() == StatusCode::kUnavailable);
  CHECK(server->send(999, "pong").code() == StatusCode::kUnavailable);
}

TEST_CASE("zmq channel: a forgotten peer is gone, and dialling again makes another ref") {
  auto server = open("127.0.0.1:0");
  auto client = open("");
  const PeerRef ref = dialled(*client, server->address());
  converse(*client, ref, *server);
  client->forget(ref);
  CHECK(client->send(ref, "ping").code() == StatusCode::kUnavailable);
  const PeerRef again = dialled(*client, server->address());
  CHECK(again != ref);
  converse(*client, again, *server);
}

TEST_CASE("zmq channel: a peer that does not read fills its queue, and the rest is refused") {
  ZmqOptions options;
  options.queue_messages = 4;
  Result<std::unique_ptr<Channel>> client = open_zmq_channel(options);
  REQUIRE(client.ok());
  options.listen = "127.0.0.1:0";
  Result<std::unique_ptr<Channel>> server = open_zmq_channel(options);
  REQUIRE(server.ok());
  const PeerRef ref = dialled(**client, (*server)->address());
  REQUIRE(send_when_there(**client, ref, "first", {}));
  const std::string big(4u << 20, 'x');
  Status status;
  for (int i = 0; i < 3000 && status.ok(); ++i) status = (*client)->send(ref, big);
  CHECK(status.code() == StatusCode::kResourceExhausted);
}

TEST_CASE("zmq channel: a message beyond the bound is refused here and dropped there") {
  auto server = open("127.0.0.1:0");
  auto client = open("");
  const PeerRef ref = dialled(*client, server->address());
  converse(*client, ref, *server);
  CHECK(client->send(ref, std::string(proto::Bounds::kMaxBytes + 1, 'x')).code() ==
        StatusCode::kInvalidArgument);

  zmq::context_t context;
  zmq::socket_t hostile(context, zmq::socket_type::dealer);
  hostile.set(zmq::sockopt::linger, 0);
  hostile.connect("tcp://" + server->address());
  hostile.send(zmq::message_t(proto::Bounds::kMaxBytes + 1), zmq::send_flags::none);
  hostile.send(zmq::message_t(std::string("part")), zmq::send_flags::sndmore);
  hostile.send(zmq::message_t(std::string("part")), zmq::send_flags::none);
  hostile.send(zmq::message_t(std::string("good")), zmq::send_flags::none);
  // The connection is cut at the first; what libzmq still delivers after it has dialled again is
  // never the large one, and a message in parts is passed on as nothing.
  converse(*client, ref, *server);
  zmq::socket_t parts(context, zmq::socket_type::dealer);
  parts.set(zmq::sockopt::linger, 0);
  parts.connect("tcp://" + server->address());
  parts.send(zmq::message_t(std::string("part")), zmq::send_flags::sndmore);
  parts.send(zmq::message_t(std::string("part")), zmq::send_flags::none);
  std::size_t largest = 0;
  CHECK(pump({server.get()}, [&](Channel*, const Incoming* incoming) {
    if (incoming != nullptr) largest = std::max(largest, incoming->bytes.size());
    return incoming != nullptr && incoming->bytes.empty();
  }));
  CHECK(largest <= 4);
  converse(*client, ref, *server);
}

TEST_CASE("zmq channel: an address in use, and what is no address, are named") {
  auto server = open("127.0.0.1:0");
  const auto fault = [](const std::string& listen) {
    ZmqOptions options;
    options.listen = listen;
    Result<std::unique_ptr<Channel>> channel = open_zmq_channel(options);
    REQUIRE_FALSE(channel.ok());
    CHECK(channel.status().code() == StatusCode::kInvalidArgument);
    return channel.status().message();
  };
  CHECK_THAT(fault(server->address()),
             Catch::Contains("address already in use: " + server->address()));
  CHECK_THAT(fault("nonsense"), Catch::Contains("nonsense"));
  CHECK_THAT(fault("192.0.2.1:7100"), Catch::Contains("192.0.2.1:7100"));
  auto client = open("");
  CHECK(client->dial("nonsense").status().code() == StatusCode::kInvalidArgument);
  CHECK(client->dial("127.0.0.1:0").status().code() == StatusCode::kInvalidArgument);
}

TEST_CASE("zmq channel: wait_fd is readable when there is something, and only then") {
  auto server = open("127.0.0.1:0");
  auto client = open("");
  const PeerRef ref = dialled(*client, server->address());
  converse(*client, ref, *server);
  while (server->receive()) {
  }
  CHECK_FALSE(readable(*server, 50));
  REQUIRE(client->send(ref, "wake").ok());
  CHECK(readable(*server, 5000));
  REQUIRE(next(*server));
  CHECK_FALSE(server->receive());
  CHECK_FALSE(readable(*server, 50));
}

TEST_CASE("zmq channel: that a dialled peer is there, and that it is gone, wakes and is seen") {
  auto server = open("127.0.0.1:0");
  auto client = open("");
  const PeerRef ref = dialled(*client, server->address());
  CHECK_FALSE(client->connected(ref));
  CHECK_FALSE(client->connected(ref + 1));
  // Nothing is sent: only the descriptor tells.
  const auto wait = [&](bool wanted) {
    for (int wakes = 0; wakes < 100 && client->connected(ref) != wanted; ++wakes) {
      REQUIRE(readable(*client, 5000));
      (void)client->receive();
    }
    return client->connected(ref) == wanted;
  };
  REQUIRE(wait(true));
  CHECK(client->send(ref, "at once").ok());
  server.reset();
  REQUIRE(wait(false));
}

TEST_CASE("zmq channel: sending does not swallow the wake-up of a message that came in") {
  auto server = open("127.0.0.1:0");
  auto client = open("");
  const PeerRef ref = dialled(*client, server->address());
  REQUIRE(send_when_there(*client, ref, "hello", {server.get()}));
  const auto hello = next(*server, {client.get()});
  REQUIRE(hello);
  int lost = 0;
  for (int i = 0; i < 2000; ++i) {
    REQUIRE(client->send(ref, "to server").ok());
    // Enough calls to cross libzmq's throttling of commands, while the message above arrives.
    for (int k = 0; k < 20; ++k) {
      if (!server->send(hello->from, "to client").ok()) break;
    }
    if (!readable(*server, 2000)) ++lost;
    while (server->receive()) {
    }
    if (!readable(*client, 2000)) ++lost;
    while (client->receive()) {
    }
  }
  CHECK(lost == 0);
}

TEST_CASE("zmq channel: a peer whose port first spoke something else is reached once it is there") {
  const int listener = socket(AF_INET, SOCK_STREAM, 0);
  REQUIRE(listener >= 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  const int one = 1;
  REQUIRE(setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) == 0);
  REQUIRE(bind(listener, reinterpret_cast<sockaddr*>(&address), size) == 0);
  REQUIRE(listen(listener, 8) == 0);
  REQUIRE(getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size) == 0);
  const std::string where = "127.0.0.1:" + std::to_string(ntohs(address.sin_port));

  ZmqOptions options;
  options.redial_after = std::chrono::milliseconds(200);
  Result<std::unique_ptr<Channel>> client = open_zmq_channel(options);
  REQUIRE(client.ok());
  const PeerRef ref = dialled(**client, where);
  const int stranger = accept(listener, nullptr, nullptr);
  REQUIRE(stranger >= 0);
  // A ZMTP greeting with a mechanism that nobody knows: libzmq gives such a connection up for good.
  std::string greeting(64, '\0');
  greeting[0] = '\xff';
  greeting[9] = '\x7f';
  greeting[10] = 3;
  greeting.replace(12, 5, "BOGUS");
  CHECK(write(stranger, greeting.data(), greeting.size()) > 0);
  // Until libzmq has hung up.
  char byte = 0;
  while (read(stranger, &byte, 1) > 0) {
  }
  close(stranger);
  close(listener);
  auto server = open(where);
  converse(**client, ref, *server);
}

TEST_CASE("zmq channel: with keys, the allowed talk and are known by their key") {
  Party server_party, client_party;
  server_party.knows(client_party, "decode");
  auto server = open("127.0.0.1:0", server_party.ring);
  client_party.knows(server_party, "prefill", server->address());
  auto client = open("", client_party.ring);
  const PeerRef ref = dialled(*client, server->address());
  REQUIRE(send_when_there(*client, ref, "ping", {server.get()}));
  const auto ping = next(*server, {client.get()});
  REQUIRE(ping);
  CHECK(ping->identity == client_party.pair.public_key);
  REQUIRE(server->send(ping->from, "pong").ok());
  const auto pong = next(*client, {server.get()});
  REQUIRE(pong);
  CHECK(pong->identity == server_party.pair.public_key);
}

TEST_CASE("zmq channel: with keys, strangers and plain text never get through") {
  Party server_party, friend_party, stranger_party;
  server_party.knows(friend_party, "decode");
  auto server = open("127.0.0.1:0", server_party.ring);
  for (Party* party : {&friend_party, &stranger_party}) {
    party->knows(server_party, "prefill", server->address());
  }
  auto stranger = open("", stranger_party.ring);
  auto plain = open("");
  auto ally = open("", friend_party.ring);
  const PeerRef from_stranger = dialled(*stranger, server->address());
  const PeerRef from_plain = dialled(*plain, server->address());
  const PeerRef from_ally = dialled(*ally, server->address());

  // The stranger and the plain one dial afresh several times, while the ally is heard.
  int heard = 0;
  bool let_in = false;
  const SteadyClock clock;
  const TimePoint enough = clock.now() + std::chrono::milliseconds(600);
  const Channels all = {server.get(), stranger.get(), plain.get(), ally.get()};
  const bool finished = pump(all, [&](Channel* channel, const Incoming* incoming) {
    if (incoming != nullptr && channel == server.get()) {
      let_in =
          let_in || incoming->bytes != "ally" || incoming->identity != friend_party.pair.public_key;
      ++heard;
    }
    let_in = let_in || stranger->send(from_stranger, "stranger").ok();
    let_in = let_in || plain->send(from_plain, "plain").ok();
    (void)ally->send(from_ally, "ally");
    return heard >= 50 && clock.now() > enough;
  });
  CHECK(finished);
  CHECK_FALSE(let_in);
}

TEST_CASE("zmq channel: with keys, an address without a key is not dialled") {
  Party party;
  auto client = open("", party.ring);
  Result<PeerRef> ref = client->dial("127.0.0.1:7100");
  REQUIRE_FALSE(ref.ok());
  CHECK(ref.status().code() == StatusCode::kInvalidArgument);
  CHECK_THAT(ref.status().message(), Catch::Contains("no public key is known for 127.0.0.1:7100"));
}

TEST_CASE("zmq channel: with keys, a server that is not the expected one is not talked to") {
  Party server_party, impostor_party, client_party;
  server_party.knows(client_party, "decode");
  auto server = open("127.0.0.1:0", server_party.ring);
  client_party.knows(impostor_party, "prefill", server->address());
  auto client = open("", client_party.ring);
  const PeerRef ref = dialled(*client, server->address());
  int quiet = 0;
  CHECK(pump({server.get(), client.get()}, [&](Channel*, const Incoming* incoming) {
    CHECK(incoming == nullptr);
    CHECK_FALSE(client->send(ref, "secret").ok());
    return ++quiet >= 25;
  }));
}

TEST_CASE("zmq channel: many dial one, and each hears its own answer") {
  auto server = open("127.0.0.1:0");
  std::vector<std::unique_ptr<Channel>> clients;
  Channels all = {server.get()};
  std::vector<PeerRef> refs;
  for (int i = 0; i < 20; ++i) {
    clients.push_back(open(""));
    all.push_back(clients.back().get());
    refs.push_back(dialled(*clients.back(), server->address()));
  }
  for (std::size_t i = 0; i < clients.size(); ++i) {
    REQUIRE(send_when_there(*clients[i], refs[i], std::to_string(i), {}));
  }
  std::size_t answered = 0;
  CHECK(pump(all, [&](Channel* channel, const Incoming* incoming) {
    if (channel == server.get()) {
      CHECK(server->send(incoming->from, std::string(incoming->bytes.view())).ok());
    } else if (channel != nullptr) {
      const std::size_t i = std::stoul(std::string(incoming->bytes.view()));
      CHECK(clients.at(i).get() == channel);
      ++answered;
    }
    return answered == clients.size();
  }));
}

}  // namespace kvd::control
