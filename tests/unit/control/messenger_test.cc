#include "control/messenger.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <catch2/catch.hpp>
#include <fstream>
#include <sstream>

#include "control/sim_channel.h"
#include "proto/link_messages.h"
#include "proto/room_messages.h"

namespace kvd::control {
namespace {

// Two workers, and a third party that says what it likes.
struct World {
  ManualClock clock;
  SimNetwork network{1, &clock, {}};
  Metrics metrics;
  std::unique_ptr<Channel> a = network.open("h1", "a:1"), b = network.open("h2", "");
  std::unique_ptr<Channel> raw = network.open("h3", "");
  Messenger at_a{a.get(), Incarnation{10}, &clock, &metrics};
  Messenger at_b{b.get(), Incarnation{20}, &clock, nullptr};
  PeerRef b_to_a = *b->dial("a:1"), raw_to_a = *raw->dial("a:1");

  void settle() {
    while (network.next_event() != kNever) {
      clock.advance(network.next_event() - clock.now());
      while (network.step()) {
      }
    }
  }
  void inject(std::string bytes) {
    REQUIRE(raw->send(raw_to_a, std::move(bytes)).ok());
    settle();
  }
  // What comes back to the third party, as an Error.
  std::optional<proto::Error> error() {
    settle();
    const auto incoming = raw->receive();
    if (!incoming) return std::nullopt;
    Result<proto::Envelope> envelope = proto::decode_envelope(incoming->bytes);
    REQUIRE(envelope.ok());
    Result<proto::Error> body = proto::decode_body<proto::Error>(*envelope);
    REQUIRE(body.ok());
    return *body;
  }
  double count(const std::string& name) { return metrics.counter(name, "").value(); }
};

proto::Envelope header() {
  proto::Envelope out;
  out.from = Incarnation{30};
  out.to = Incarnation{10};
  out.seq = 41;
  return out;
}

// Lines on stderr while it lives.
class StderrLines {
 public:
  StderrLines() : saved_(dup(STDERR_FILENO)) {
    const int fd = mkstemp(path_.data());
    REQUIRE(fd >= 0);
    dup2(fd, STDERR_FILENO);
    close(fd);
  }
  ~StderrLines() { restore(); }
  StderrLines(const StderrLines&) = delete;
  StderrLines& operator=(const StderrLines&) = delete;

  std::vector<std::string> lines() {
    restore();
    std::ifstream in(path_.data());
    std::vector<std::string> out;
    for (std::string line; std::getline(in, line);) out.push_back(line);
    return out;
  }

 private:
  void restore() {
    if (saved_ < 0) return;
    dup2(saved_, STDERR_FILENO);
    close(saved_);
    saved_ = -1;
  }
  std::array<char, 32> path_{"/tmp/kvd-stderr-XXXXXX"};
  int saved_;
};

}  // namespace

TEST_CASE("messenger: a message arrives with its header, the answer is told from whom") {
  World w;
  REQUIRE(
      w.at_b.send_in_link(w.b_to_a, Incarnation{10}, Epoch{2}, 3, RoomId{4}, proto::Abort{"why"})
          .ok());
  w.settle();
  const auto got = w.at_a.receive();
  REQUIRE(got);
  CHECK(got->envelope.type == proto::MessageType::kAbort);
  CHECK(got->envelope.from == Incarnation{20});
  CHECK(got->envelope.epoch == Epoch{2});
  CHECK(got->envelope.seq == 3);
  CHECK(got->envelope.room == RoomId{4});
  REQUIRE(w.at_a.send(got->from, got->envelope.from, proto::AbortDrained{}, RoomId{4}).ok());
  w.settle();
  const auto answer = w.at_b.receive();
  REQUIRE(answer);
  CHECK(answer->from == w.b_to_a);
  CHECK(answer->envelope.type == proto::MessageType::kAbortDrained);
  CHECK_FALSE(w.at_a.receive());
}

TEST_CASE("messenger: a message for nobody in particular is accepted") {
  World w;
  REQUIRE(w.at_b.send(w.b_to_a, Incarnation{}, proto::Describe{}).ok());
  w.settle();
  CHECK(w.at_a.receive());
}

TEST_CASE("messenger: a message for another incarnation is dropped and answered with ours") {
  World w;
  REQUIRE(w.at_b.send(w.b_to_a, Incarnation{9}, proto::Drain{}).ok());
  w.settle();
  CHECK_FALSE(w.at_a.receive());
  w.settle();
  const auto answer = w.at_b.receive();
  REQUIRE(answer);
  CHECK(answer->envelope.type == proto::MessageType::kStaleIncarnation);
  Result<proto::StaleIncarnation> body =
      proto::decode_body<proto::StaleIncarnation>(answer->envelope);
  REQUIRE(body.ok());
  CHECK(body->incarnation == 10);
  CHECK(w.count("kvd_control_stale_total") == 1);
  CHECK(w.count("kvd_control_malformed_total") == 0);
}

TEST_CASE("messenger: a refusal for another incarnation is dropped without a word") {
  World w;
  REQUIRE(w.at_b.send(w.b_to_a, Incarnation{9}, proto::StaleIncarnation{1}).ok());
  REQUIRE(w.at_b.send(w.b_to_a, Incarnation{9}, proto::Error{"unexpected", "", 1}).ok());
  w.settle();
  CHECK_FALSE(w.at_a.receive());
  CHECK(w.network.next_event() == kNever);
}

TEST_CASE(
    "messenger: malformed messages are counted and answered, and the next good one is heard") {
  World w;
  std::string cut = proto::encode(header(), proto::Abort{"reason"});
  cut.pop_back();
  w.inject(cut);
  w.inject(proto::encode(header(), proto::Drain{}));
  const auto got = w.at_a.receive();
  REQUIRE(got);
  CHECK(got->envelope.type == proto::MessageType::kDrain);
  CHECK(w.count("kvd_control_malformed_total") == 1);
  const auto error = w.error();
  REQUIRE(error);
  CHECK(error->code == "malformed");
  CHECK(error->seq == 41);
}

TEST_CASE("messenger: an unknown type and another version are answered as what they are") {
  World w;
  proto::Envelope in_link = header();
  in_link.epoch = Epoch{3};
  std::string bytes = proto::encode(in_link, proto::Drain{});
  const std::size_t type_at = 7;  // array, magic (5 bytes), version
  REQUIRE(bytes[type_at] == 19);
  bytes[type_at] = 99;
  w.inject(bytes);
  const auto refused = w.at_a.receive();  // its place in the link counts all the same
  REQUIRE(refused);
  CHECK(refused->refused);
  CHECK(refused->envelope.seq == 41);
  auto error = w.error();
  REQUIRE(error);
  CHECK(error->code == "unknown_type");
  CHECK(error->seq == 41);

  bytes = proto::encode(header(), proto::Drain{});
  bytes[type_at - 1] = 2;
  w.inject(bytes);
  CHECK_FALSE(w.at_a.receive());
  error = w.error();
  REQUIRE(error);
  CHECK(error->code == "version");
}

TEST_CASE("messenger: an Error is never answered, however bad it is") {
  World w;
  std::string bytes = proto::encode(header(), proto::Error{"malformed", "x", 1});
  bytes.pop_back();
  w.inject(bytes);  // malformed
  bytes[6] = 2;
  w.inject(bytes);  // of another version
  w.inject("GET / HTTP/1.1\r\n");
  w.inject("");
  CHECK_FALSE(w.at_a.receive());
  CHECK(w.count("kvd_control_malformed_total") == 4);
  CHECK_FALSE(w.error());

  w.inject(proto::encode(header(), proto::Error{"unexpected", "x", 1}));
  const auto got = w.at_a.receive();
  REQUIRE(got);
  w.at_a.refuse(*got, "unexpected", "no");
  CHECK_FALSE(w.error());
}

TEST_CASE("messenger: refuse names the offender's seq and room") {
  World w;
  proto::Envelope h = header();
  h.room = RoomId{77};
  w.inject(proto::encode(h, proto::Drain{}));
  const auto got = w.at_a.receive();
  REQUIRE(got);
  w.at_a.refuse(*got, "unauthorized", "not from here");
  w.settle();
  const auto incoming = w.raw->receive();
  REQUIRE(incoming);
  Result<proto::Envelope> envelope = proto::decode_envelope(incoming->bytes);
  REQUIRE(envelope.ok());
  CHECK(envelope->room == RoomId{77});
  CHECK(envelope->to == Incarnation{30});
  Result<proto::Error> error = proto::decode_body<proto::Error>(*envelope);
  REQUIRE(error.ok());
  CHECK(error->code == "unauthorized");
  CHECK(error->seq == 41);
  CHECK(w.count("kvd_control_malformed_total") == 1);
}

TEST_CASE("messenger: malformed messages are logged once a second at most") {
  World w;
  StderrLines capture;
  for (int i = 0; i < 50; ++i) w.inject("junk");
  CHECK_FALSE(w.at_a.receive());
  w.clock.advance(std::chrono::seconds(2));
  w.inject("junk");
  CHECK_FALSE(w.at_a.receive());
  std::vector<std::string> said;
  for (const std::string& line : capture.lines()) {
    if (line.find("control message dropped") != std::string::npos) said.push_back(line);
  }
  REQUIRE(said.size() == 2);
  CHECK_THAT(said[1], Catch::Contains("49"));
  CHECK(w.count("kvd_control_malformed_total") == 51);
}

}  // namespace kvd::control
