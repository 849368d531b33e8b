#include <catch2/catch.hpp>
#include <map>
#include <numeric>
#include <set>

#include "samples.h"

namespace kvd::proto::test {
namespace {

const LayoutInfo kLayout{30, 3, 64, 32, 2, "bf16", 737280, 24576, 12288, 4096};
const Load kLoad{1, 2, 3, 4, true};

template <typename Message>
Sample sample(const Message& message) {
  return {Message::kType, encode(sample_header(), message),
          [](const Envelope& envelope) -> Result<std::string> {
            Result<Message> decoded = decode_body<Message>(envelope);
            if (!decoded.ok()) return decoded.status();
            return encode(envelope, *decoded);
          }};
}

Register sample_register() {
  Register m;
  m.epoch = 7;
  m.fingerprint = "f00d";
  m.model = "m";
  m.layout = kLayout;
  m.provider = "tcp";
  m.address = std::string("\x02\x00\xff\x01", 4);
  m.region_base = 0x7f0000000000;
  m.region_bytes = 8ull * 737280 + 4 * 512;
  m.region_key = 0xfedcba9876543210;
  m.page_count = 8;
  m.slots_offset = 8ull * 737280;
  m.slot_bytes = 512;
  m.slot_count = 4;
  m.test_slot = 3;
  m.test_generation = 4095;
  m.test_nonce = 99;
  m.digest = "full";
  m.dead_after_ms = 2000;
  return m;
}

Probe sample_probe() {
  Probe m;
  m.request = 9;
  m.op = "open";
  m.provider = "tcp;ofi_rxm";
  m.address = std::string("\x02\x00\xff\x01", 4);
  m.dead_after_ms = 2000;
  m.spin = true;
  m.region_base = 0x7f0000000000;
  m.region_bytes = 1u << 28;
  m.region_key = 0xfedcba9876543210;
  m.bytes = 65536;
  m.seed = 17;
  m.count = 64;
  m.depth = 8;
  m.time_ms = 1000;
  m.pattern = true;
  m.peer = "10.0.0.2:7300";
  m.pieces = 4;
  m.pages = {"Llama-3.1-8B", 32, 8, 128, 32, 64, 6, 4, 0.5F, 3, "full", true, true, 30'000};
  return m;
}

ProbeResult sample_probe_result() {
  ProbeResult m;
  m.request = 9;
  m.state = "refused";
  m.code = "busy";
  m.text = "17 sessions wait";
  m.ahead = 3;
  m.address = std::string("\x02\x00\xff\x02", 4);
  m.region_base = 1;
  m.region_bytes = 1u << 28;
  m.region_key = 0xfedcba9876543211;
  m.max_inflight_bytes = 1u << 20;
  m.max_bytes_per_s = 64u << 20;
  m.max_rounds_per_s = 1000;
  m.libfabric = "1.17";
  m.rounds = std::string("\x01\x00\x00\x00\x00\x00\x00\x80", 8);
  m.pages = 64;
  m.bad_pages = 2;
  m.first_bad_page = 5;
  m.first_bad_offset = 4088;
  m.cpu_ns = 123456789;
  m.active_rdma_ports = 2;
  m.interfaces = {{"eth0", false, 10, 11, 100'000'000, 1500}, {"mlx5_0/1", true, 12, 13, 0, 0}};
  m.provider = "tcp";
  m.bytes_per_s = 5'000'000'000;
  m.latency_ns = 21'000;
  m.p99_ns = 40'000;
  m.boot_id = 0xfedcba9876543212;
  m.huge_pages = "transparent";
  m.began_ns = 123456789012;
  m.times = std::string(ProbeBounds::kTimesBytes, '\x07');
  m.left = 1023;
  return m;
}

OpenRoom sample_open_room() {
  OpenRoom m;
  m.request = 5;
  m.prompt = {1, 2, 49151, 2147483647};
  m.sampling.max_tokens = 9;
  m.sampling.temperature = 0.5F;
  m.sampling.top_k = 40;
  m.sampling.top_p = 0.25F;
  m.sampling.min_p = 0.125F;
  m.sampling.repetition_penalty = 1.5F;
  m.sampling.seed = 0xffffffffffffffff;
  m.sampling.stop = {"\n\n", "\u00e9nd"};
  m.sampling.stop_token_ids = {0, 2};
  m.sampling.ignore_eos = true;
  m.sampling.logprobs = true;
  m.sampling.top_logprobs = 20;
  m.choice = 3;
  m.timeout_ms = 600000;
  m.allocate = {{{14, 31}, {60, 1}}, 1048575, 4095};
  return m;
}

template <typename Message>
Message decoded(const Message& message) {
  Result<Envelope> envelope = decode_envelope(encode(sample_header(), message));
  REQUIRE(envelope.ok());
  Result<Message> body = decode_body<Message>(*envelope);
  INFO(body.status().message());
  REQUIRE(body.ok());
  return *body;
}

}  // namespace

Envelope sample_header() {
  Envelope header;
  header.from = Incarnation{0x1122334455667788};
  header.to = Incarnation{0xffeeddccbbaa9988};
  header.epoch = Epoch{3};
  header.seq = 300;
  header.room = RoomId{0x7fffffffffffffff};
  return header;
}

std::string to_hex(std::string_view bytes) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string out;
  for (const char c : bytes) {
    const auto byte = static_cast<unsigned char>(c);
    out += kDigits[byte >> 4];
    out += kDigits[byte & 15];
  }
  return out;
}

std::vector<Sample> samples() {
  return {
      sample(Describe{}),
      sample(Described{"decode",
                       "kvd-decode",
                       "0.1.0",
                       "http://127.0.0.1:8200",
                       "m",
                       "f00d",
                       kLayout,
                       {"tcp", "tcp;ofi_rxm"},
                       8192,
                       kLoad,
                       "4f5e/4026531840/1000/"}),
      sample(sample_register()),
      sample(Registered{"tcp", std::string("\x00\x01", 2), 2000}),
      sample(Refused{"incompatible", "another layout", "page_size: 64 here, 32 there"}),
      sample(sample_open_room()),
      sample(RoomOpened{5, true, 7, {{6, {1, 2, 3, 4, 5}}}}),
      sample(RoomRefused{5, "busy", "no pages"}),
      sample(Allocate{{{14, 31}, {60, 1}, {2, 3}}, 1048575, 4095}),
      sample(Abort{"the client went away"}),
      sample(AbortDrained{}),
      sample(AbortUnproven{"a write failed"}),
      sample(RoomFailed{true, "engine", "out of luck"}),
      sample(Committed{70000, 17}),
      sample(RoomDone{1, 2, 3, 4, 5}),
      sample(StaleIncarnation{77}),
      sample(Error{"malformed", "body: cut short", 12}),
      sample(Heartbeat{kLoad}),
      sample(Drain{}),
      sample(Leases{true, {{1, 2, true, 3, 4, "14-44,60", "AbortDrained"}}, 5, 6, 7, 8}),
      sample(sample_probe()),
      sample(sample_probe_result()),
      sample(Join{"prefill", "127.0.0.1:7100", "http://127.0.0.1:8100", "m", kLoad}),
      sample(Leave{}),
      sample(Members{{{"decode", "127.0.0.1:7200", "http://127.0.0.1:8200", "m", 6, kLoad}}}),
  };
}

TEST_CASE("messages: there is a sample of every type") {
  std::set<MessageType> seen;
  for (const Sample& sample : samples()) seen.insert(sample.type);
  CHECK(seen.size() == message_types().size());
  CHECK(samples().size() == message_types().size());
}

TEST_CASE("messages: what is decoded encodes to the same bytes") {
  for (const Sample& sample : samples()) {
    INFO(to_string(sample.type));
    Result<Envelope> envelope = decode_envelope(sample.bytes);
    REQUIRE(envelope.ok());
    CHECK(envelope->type == sample.type);
    CHECK(envelope->from == sample_header().from);
    CHECK(envelope->to == sample_header().to);
    CHECK(envelope->epoch == sample_header().epoch);
    CHECK(envelope->seq == sample_header().seq);
    CHECK(envelope->room == sample_header().room);
    CHECK(check_body(*envelope).ok());
    Result<std::string> again = sample.again(*envelope);
    INFO(again.status().message());
    REQUIRE(again.ok());
    CHECK(*again == sample.bytes);
  }
}

TEST_CASE("messages: every field arrives with its value") {
  const Register link = decoded(sample_register());
  CHECK(link.layout == kLayout);
  CHECK(link.address == sample_register().address);
  CHECK(link.region_base == 0x7f0000000000);
  CHECK(link.region_key == 0xfedcba9876543210);
  CHECK(link.test_generation == 4095);
  CHECK(link.digest == "full");
  const OpenRoom room = decoded(sample_open_room());
  CHECK(room.prompt == sample_open_room().prompt);
  CHECK(room.sampling == sample_open_room().sampling);
  CHECK(room.choice == 3);
  CHECK(room.timeout_ms == 600000);
  CHECK(room.allocate.runs == std::vector<PageRunInfo>{{14, 31}, {60, 1}});
  CHECK(room.allocate.slot == 1048575);
  CHECK(room.allocate.generation == 4095);
  const Allocate pages = decoded(Allocate{{{14, 31}, {60, 1}}, 5, 6});
  CHECK(pages.runs == std::vector<PageRunInfo>{{14, 31}, {60, 1}});
  CHECK(pages.slot == 5);
  CHECK(pages.generation == 6);
  const RoomOpened opened = decoded(RoomOpened{5, true, 8, {{6, {}}, {7, {1, 2, 3, 4, 5}}}});
  CHECK(opened.request == 5);
  CHECK(opened.allocated);
  CHECK(opened.waited_ns == 8);
  REQUIRE(opened.done.size() == 2);
  CHECK(opened.done[0].room == 6);
  CHECK(opened.done[1].room == 7);
  CHECK(opened.done[1].done.writes == 5);
  const RoomDone done = decoded(RoomDone{1, 2, 3, 4, 5});
  CHECK(done.transfer_total_ns == 1);
  CHECK(done.transfer_exposed_ns == 2);
  CHECK(done.commit_posted_ns == 3);
  CHECK(done.bytes == 4);
  CHECK(done.writes == 5);
  const Members members =
      decoded(Members{{{"decode", "127.0.0.1:7200", "http://127.0.0.1:8200", "m", 6, kLoad}}});
  REQUIRE(members.members.size() == 1);
  CHECK(members.members[0].control == "127.0.0.1:7200");
  CHECK(members.members[0].load == kLoad);
}

TEST_CASE("messages: the largest prompt fits, one token more does not") {
  OpenRoom room = sample_open_room();
  room.prompt.resize(Bounds::kMaxTokens);
  std::iota(room.prompt.begin(), room.prompt.end(), 0);
  CHECK((decoded(room).prompt == room.prompt));
  room.prompt.push_back(1);
  Result<Envelope> envelope = decode_envelope(encode(sample_header(), room));
  REQUIRE(envelope.ok());
  CHECK(decode_body<OpenRoom>(*envelope).status().code() == StatusCode::kInvalidArgument);
}

TEST_CASE("messages: a text for people is shortened at a character's edge and made UTF-8") {
  std::string text(4095, 'a');
  text += "\u00e9\u00e9";
  CHECK(decoded(Abort{text}).reason == std::string(4095, 'a'));
  CHECK(decoded(Abort{"bad \xff byte"}).reason == "bad ? byte");
}

TEST_CASE("messages: the bytes on the wire have not changed") {
  const std::map<std::string_view, std::string> golden = {
#include "golden.inc"
  };
  REQUIRE(golden.size() == samples().size());
  for (const Sample& sample : samples()) {
    const std::string_view name = to_string(sample.type);
    INFO(name);
    REQUIRE(golden.contains(name));
    CHECK(to_hex(sample.bytes) == golden.at(name));
  }
}

}  // namespace kvd::proto::test
