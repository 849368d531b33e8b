#include <catch2/catch.hpp>
#include <cstring>
#include <limits>

#include "base/rng.h"
#include "samples.h"

namespace kvd::proto::test {
namespace {

using namespace std::string_literals;

// MessagePack by hand, so that the tests can say what the encoder never would.
std::string num(std::uint64_t value) {
  std::string out = "\xcf";
  for (int shift = 56; shift >= 0; shift -= 8) out += static_cast<char>(value >> shift & 0xff);
  return out;
}
std::string str(std::string_view text) {
  REQUIRE(text.size() < 65536);
  const std::size_t n = text.size();
  return "\xda"s + static_cast<char>(n >> 8) + static_cast<char>(n & 0xff) + std::string(text);
}
std::string bin(std::string_view bytes) {
  REQUIRE(bytes.size() < 65536);
  const char low = static_cast<char>(bytes.size() & 0xff);
  if (bytes.size() < 256) return "\xc4"s + low + std::string(bytes);
  return "\xc5"s + static_cast<char>(bytes.size() >> 8) + low + std::string(bytes);
}
// Of uint32, as runs are.
std::string words(const std::vector<std::uint32_t>& values) {
  std::string out;
  for (const std::uint32_t value : values) {
    for (int shift = 0; shift < 32; shift += 8) out += static_cast<char>(value >> shift & 0xff);
  }
  return bin(out);
}
std::string real(double value) {
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof bits);
  std::string out = num(bits);
  out[0] = '\xcb';
  return out;
}
std::string array(const std::vector<std::string>& items) {
  std::string out = "\xdc\x00"s + static_cast<char>(items.size());
  for (const std::string& item : items) out += item;
  return out;
}
using Fields = std::vector<std::pair<std::string, std::string>>;
std::string map(const Fields& entries) {
  std::string out =
      "\xde"s + static_cast<char>(entries.size() >> 8) + static_cast<char>(entries.size() & 0xff);
  for (const auto& [key, value] : entries) out += str(key) + value;
  return out;
}

std::string frame(std::uint64_t type, const std::string& body, std::uint64_t version = kVersion,
                  std::uint64_t magic = kMagic) {
  return "\x99"s + num(magic) + num(version) + num(type) + num(1) + num(2) + num(3) + num(4) +
         num(5) + body;
}

template <typename Message>
Result<Message> read(const std::string& body) {
  Result<Envelope> envelope =
      decode_envelope(frame(static_cast<std::uint64_t>(Message::kType), body));
  if (!envelope.ok()) return envelope.status();
  return decode_body<Message>(*envelope);
}

template <typename Message>
void refused(const std::string& body, const std::string& expected) {
  const Result<Message> result = read<Message>(body);
  INFO(expected);
  REQUIRE_FALSE(result.ok());
  CHECK(result.status().code() == StatusCode::kInvalidArgument);
  CHECK_THAT(result.status().message(), Catch::Contains(expected));
}

Fields with(Fields fields, const std::string& key, const std::string& value) {
  for (auto& [name, old] : fields) {
    if (name == key) old = value;
  }
  return fields;
}

const Fields kCommitted = {{"slot", num(1)}, {"generation", num(2)}};

// Whatever comes out is decoded or refused; the sanitizers and the bounds see to the rest.
bool survives(std::string_view bytes) {
  Result<Envelope> envelope = decode_envelope(std::string(bytes));
  return envelope.ok() && check_body(*envelope).ok();
}

}  // namespace

TEST_CASE("decoding: a message cut at any byte is refused") {
  for (const Sample& sample : samples()) {
    INFO(to_string(sample.type));
    for (std::size_t n = 0; n < sample.bytes.size(); ++n) {
      REQUIRE_FALSE(decode_envelope(sample.bytes.substr(0, n)).ok());
    }
    REQUIRE_FALSE(decode_envelope(sample.bytes + '\0').ok());
  }
}

TEST_CASE("decoding: random damage is decoded or refused, never worse") {
  constexpr std::uint64_t kSeed = 20240501;
  Rng rng(kSeed);
  const std::vector<Sample> good = samples();
  std::size_t accepted = 0, refused_ones = 0;
  for (int i = 0; i < 200000; ++i) {
    std::string bytes = good[rng.below(good.size())].bytes;
    const std::uint64_t damage = 1 + rng.below(4);
    for (std::uint64_t k = 0; k < damage && !bytes.empty(); ++k) {
      const std::size_t at = rng.below(bytes.size());
      switch (rng.below(4)) {
        case 0:
          bytes[at] = static_cast<char>(rng.below(256));
          break;
        case 1:
          bytes[at] = static_cast<char>(0xc0 + rng.below(0x20));
          break;  // a type byte
        case 2:
          bytes.erase(at, 1 + rng.below(8));
          break;
        default:
          bytes.insert(at, 1 + rng.below(4), static_cast<char>(rng.below(256)));
          break;
      }
    }
    (survives(bytes) ? accepted : refused_ones) += 1;
  }
  // Both happen: numbers may change freely, structure may not.
  CHECK(accepted > 1000);
  CHECK(refused_ones > 100000);
}

TEST_CASE("decoding: random bytes behind a good header are decoded or refused, never worse") {
  Rng rng(77);
  for (int i = 0; i < 20000; ++i) {
    std::string body;
    for (std::uint64_t n = rng.below(64); n > 0; --n) body += static_cast<char>(rng.below(256));
    const std::string bytes = frame(1 + rng.below(25), body);
    if (Result<Envelope> envelope = decode_envelope(bytes); envelope.ok()) {
      REQUIRE(envelope->body() == body);
      (void)check_body(*envelope);
    }
  }
}

TEST_CASE("decoding: nesting, counts and lengths beyond the bounds are refused") {
  refused<Describe>(map({{"x", std::string(100000, '\x91') + '\x01'}}), "nested too deep");
  refused<Describe>(map({{"x", std::string(Bounds::kMaxDepth, '\x91') + '\x01'}}),
                    "nested too deep");
  CHECK(read<Describe>(map({{"x", std::string(Bounds::kMaxDepth - 1, '\x91') + '\x01'}})).ok());
  // Claims of 4 billion items with nothing behind them.
  refused<Describe>("\xdf\xff\xff\xff\xff"s, "too many items");
  refused<Describe>(map({{"x", "\xdd\xff\xff\xff\xff"s}}), "too many items");
  refused<Describe>(map({{"x", "\xdd\x00\x10\x00\x00"s}}), "cut short");
  refused<Describe>(map({{"x", "\xdb\xff\xff\xff\xff"s}}), "cut short");
  refused<Describe>(map({{"x", "\xc6\xff\xff\xff\xff"s}}), "cut short");
  // Many arrays, each within the bound, that together are not.
  const std::string half = "\xdd\x00\x09\x00\x00"s + std::string(0x90000, '\xc0');
  refused<Describe>(map({{"x", half}, {"y", half}}), "too many items");
  refused<Describe>(map({{"x", "\xdb\x00\x01\x00\x01"s + std::string(65537, 'a')}}), "too long");
  refused<Describe>("\xc1", "not MessagePack");
  Fields many;
  for (int i = 0; i < 257; ++i) many.emplace_back("f" + std::to_string(i), num(1));
  refused<Describe>(map(many), "too many fields");
  CHECK_FALSE(decode_envelope(std::string(Bounds::kMaxBytes + 1, '\x99')).ok());
}

TEST_CASE("decoding: unknown fields of any kind are skipped") {
  Fields fields = kCommitted;
  fields.emplace_back("later", map({{"a", array({num(1), str("b"), "\xc0"})}}));
  fields.emplace_back("extension", "\xd4\x05x"s);
  fields.emplace_back("binary", bin("\xff\x00"));
  const Result<Committed> result = read<Committed>(map(fields));
  INFO(result.status().message());
  REQUIRE(result.ok());
  CHECK(result->slot == 1);
  CHECK(result->generation == 2);
}

TEST_CASE(
    "decoding: a missing required field is malformed, a missing optional one is its default") {
  refused<Committed>(map({{"slot", num(1)}}), "Committed.generation: missing");
  refused<Heartbeat>(map({}), "Heartbeat.load: missing");
  const Result<Heartbeat> beat = read<Heartbeat>(map({{"load", map({{"running", num(3)}})}}));
  REQUIRE(beat.ok());
  CHECK(beat->load == Load{0, 3, 0, 0, false});
  CHECK(read<Abort>(map({})).ok());
}

TEST_CASE("decoding: a field given twice is malformed, and so is a name that is no string") {
  Fields twice = kCommitted;
  twice.emplace_back("slot", num(7));
  refused<Committed>(map(twice), "Committed.slot: given twice");
  refused<Describe>("\x81\x01\x01", "not a string");
  refused<Describe>("\x90", "Describe: not a map");
  refused<Heartbeat>(map({{"load", num(1)}}), "Heartbeat.load: not a map");
}

TEST_CASE("decoding: wrong types are malformed") {
  for (const std::string& wrong :
       {str("1"), bin("1"), "\xc0"s, "\xc3"s, real(1), "\xff"s, array({num(1)}), map({})}) {
    refused<Committed>(map(with(kCommitted, "slot", wrong)),
                       "Committed.slot: not an unsigned integer");
  }
  refused<Abort>(map({{"reason", bin("x")}}), "Abort.reason: not a string");
  refused<Abort>(map({{"reason", str("\xff")}}), "Abort.reason: not UTF-8");
  const Fields failed = {{"drained", "\xc3"}, {"code", str("engine")}};
  refused<RoomFailed>(map(with(failed, "drained", num(1))), "RoomFailed.drained: not a boolean");
  refused<RoomFailed>(map(with(failed, "code", str(""))), "RoomFailed.code: too short");
  const Fields registered = {
      {"provider", str("tcp")}, {"address", bin("a")}, {"dead_after_ms", num(9)}};
  refused<Registered>(map(with(registered, "address", str("a"))), "Registered.address: not binary");
  refused<Registered>(map(with(registered, "address", bin(""))), "Registered.address: too short");
  refused<Registered>(map(with(registered, "dead_after_ms", num(0))), "not within 1..");
}

TEST_CASE("decoding: numbers that do not fit are malformed") {
  refused<Committed>(map(with(kCommitted, "slot", num(1u << 20))), "not within 0..1048575");
  refused<Committed>(map(with(kCommitted, "generation", num(1u << 12))), "not within 0..4095");
  refused<Heartbeat>(map({{"load", map({{"queue", num(1ull << 32)}})}}), "Heartbeat.load.queue");
}

TEST_CASE("decoding: Allocate names pages once each, within 32 bits, and some") {
  const auto allocate = [](const std::string& runs) {
    return map({{"runs", runs}, {"slot", num(1)}, {"generation", num(2)}});
  };
  CHECK(read<Allocate>(allocate(words({5, 2, 0, 5}))).ok());
  CHECK(read<Allocate>(allocate(words({0xffffffff, 1}))).ok());
  refused<Allocate>(allocate(bin("")), "runs is empty");
  refused<Allocate>(allocate(words({1})), "not whole runs");
  refused<Allocate>(allocate(bin("\x05\x00\x00\x00\x02\x00\x00"s)), "not whole runs");
  refused<Allocate>(allocate(array({num(5), num(2)})), "not binary");
  refused<Allocate>(allocate(words({1, 0})), "a run has no pages");
  refused<Allocate>(allocate(words({0xffffffff, 2})), "beyond the last page");
  refused<Allocate>(allocate(words({5, 2, 6, 1})), "named twice");
  refused<Allocate>(allocate(words({0, 0xffffffff})), "more pages than a prompt");
  const auto many = [](std::size_t count) {
    std::string out = "\xc6"s;
    for (int shift = 24; shift >= 0; shift -= 8)
      out += static_cast<char>(8 * count >> shift & 0xff);
    for (std::uint32_t run = 0; run < count; ++run) out += words({2 * run, 1}).substr(2);
    return out;
  };
  CHECK(read<Allocate>(allocate(many(Bounds::kMaxRuns)))->runs.size() == Bounds::kMaxRuns);
  refused<Allocate>(allocate(many(Bounds::kMaxRuns + 1)), "too many runs");
}

TEST_CASE("decoding: sampling parameters are finite and in range") {
  const auto open = [](const std::string& key, const std::string& value) {
    Fields sampling = {
        {"max_tokens", num(1)},  {"temperature", real(1)},        {"seed", num(0)},
        {"top_p", real(1)},      {"repetition_penalty", real(1)}, {"stop", array({})},
        {"top_logprobs", num(0)}};
    return map({{"request", num(1)},
                {"prompt", bin("\x01\x00\x00\x00"s)},
                {"timeout_ms", num(1)},
                {"sampling", map(with(sampling, key, value))}});
  };
  CHECK(read<OpenRoom>(open("", "")).ok());
  CHECK(read<OpenRoom>(open("temperature", num(0))).ok());
  for (const double bad : {-0.5, 1e300, std::numeric_limits<double>::quiet_NaN(),
                           std::numeric_limits<double>::infinity()}) {
    refused<OpenRoom>(open("temperature", real(bad)), "OpenRoom.sampling.temperature");
  }
  refused<OpenRoom>(open("top_p", real(1.5)), "OpenRoom.sampling.top_p");
  refused<OpenRoom>(open("repetition_penalty", real(0)), "repetition_penalty");
  refused<OpenRoom>(open("repetition_penalty", real(1e-300)), "repetition_penalty");
  refused<OpenRoom>(open("max_tokens", num(0)), "OpenRoom.sampling.max_tokens");
  refused<OpenRoom>(open("top_logprobs", num(21)), "top_logprobs");
  refused<OpenRoom>(open("stop", array({str(std::string(257, 'a'))})), "stop: too long");
  refused<OpenRoom>(open("stop", array(std::vector<std::string>(17, str("a")))), "stop: too many");
}

TEST_CASE("decoding: the pages of OpenRoom keep the rules of Allocate, and may be missing") {
  const auto open = [](const std::string& runs, std::uint64_t slot) {
    Fields fields = {
        {"request", num(1)},
        {"prompt", bin("\x01\x00\x00\x00"s)},
        {"timeout_ms", num(1)},
        {"sampling", map({{"max_tokens", num(1)}, {"temperature", real(1)}, {"seed", num(0)}})},
        {"slot", num(slot)},
        {"generation", num(1)}};
    if (!runs.empty()) fields.push_back({"runs", runs});
    return map(fields);
  };
  CHECK(read<OpenRoom>(open("", 0))->allocate.runs.empty());
  CHECK(read<OpenRoom>(open(bin(""), 0))->allocate.runs.empty());
  CHECK(read<OpenRoom>(open(words({5, 2}), 0))->allocate.runs.size() == 1);
  refused<OpenRoom>(open(words({1}), 0), "not whole runs");
  refused<OpenRoom>(open(words({1, 0}), 0), "a run has no pages");
  refused<OpenRoom>(open(words({5, 2, 6, 1}), 0), "named twice");
  refused<OpenRoom>(open(words({5, 2}), 1u << 20), "OpenRoom.slot");
}

TEST_CASE("decoding: RoomOpened tells of few ended rooms, each with an id") {
  const auto ended = [](std::uint64_t room) {
    return map({{"room", num(room)},
                {"transfer_total_ns", num(1)},
                {"transfer_exposed_ns", num(1)},
                {"commit_posted_ns", num(1)},
                {"bytes", num(1)},
                {"writes", num(1)}});
  };
  const auto opened = [](const std::vector<std::string>& done) {
    return map({{"request", num(1)}, {"done", array(done)}});
  };
  const std::size_t most = RoomOpened::kMaxDone;
  CHECK(read<RoomOpened>(map({{"request", num(1)}}))->done.empty());
  CHECK(read<RoomOpened>(opened({most, ended(7)}))->done.size() == most);
  refused<RoomOpened>(opened({most + 1, ended(7)}), "done: too many");
  refused<RoomOpened>(opened({ended(0)}), "RoomOpened.done.room: 0 is not within 1..");
  refused<RoomOpened>(opened({ended(1ull << 63)}), "is not within 1..");
  refused<RoomOpened>(opened({map({{"room", num(7)}})}), "done.transfer_total_ns: missing");
  refused<RoomOpened>(opened({num(7)}), "RoomOpened.done: not a map");
}

TEST_CASE("decoding: a prompt is whole tokens, at least one, none negative") {
  const auto open = [](const std::string& prompt) {
    return map(
        {{"request", num(1)},
         {"prompt", prompt},
         {"timeout_ms", num(1)},
         {"sampling", map({{"max_tokens", num(1)}, {"temperature", real(1)}, {"seed", num(0)}})}});
  };
  refused<OpenRoom>(open(bin("")), "too few tokens");
  refused<OpenRoom>(open(bin("\x01\x00\x00")), "not whole tokens");
  refused<OpenRoom>(open(bin("\xff\xff\xff\xff")), "a token is negative");
  refused<OpenRoom>(open(array({num(1)})), "not binary");
  // Wherever it is in a longer one.
  for (const std::size_t tokens : {37, 2060}) {
    for (std::size_t at = 0; at < tokens; at += at + 100 < tokens ? tokens / 37 : 1) {
      std::string prompt(tokens * sizeof(TokenId), '\x01');
      prompt[at * sizeof(TokenId) + 3] = '\x80';
      refused<OpenRoom>(open(bin(prompt)), "a token is negative");
    }
  }
}

TEST_CASE("decoding: Register describes memory that can exist") {
  const auto check = [](const char* expected, void (*spoil)(Register&)) {
    Register m;
    m.fingerprint = "f";
    m.layout = {2, 1, 64, 32, 2, "bf16", 16384, 8192, 4096, 4096};
    m.provider = "tcp";
    m.address = "a";
    m.region_base = 4096;
    m.region_bytes = 4 * 16384 + 2 * 512;
    m.page_count = 4;
    m.slots_offset = 4 * 16384;
    m.slot_bytes = 512;
    m.slot_count = 2;
    m.digest = "sample";
    m.dead_after_ms = 1;
    spoil(m);
    Result<Envelope> envelope = decode_envelope(encode(sample_header(), m));
    REQUIRE(envelope.ok());
    const Result<Register> result = decode_body<Register>(*envelope);
    INFO(expected);
    CHECK(result.ok() == (*expected == '\0'));
    if (!result.ok()) CHECK_THAT(result.status().message(), Catch::Contains(expected));
  };
  check("", [](Register&) {});
  check("zero field", [](Register& m) { m.layout.layers = 0; });
  check("head_stride", [](Register& m) { m.layout.head_stride = 4095; });
  check("layer_stride", [](Register& m) { m.layout.value_offset = 4095; });
  check("page_stride", [](Register& m) { m.layout.layers = 3; });
  check("wraps", [](Register& m) { m.region_base = UINT64_MAX - 4096; });
  check("pages exceed", [](Register& m) { m.page_count = 5; });
  check("pages exceed", [](Register& m) { m.page_count = UINT32_MAX; });
  check("overlap", [](Register& m) { m.slots_offset -= 8; });
  check("slots exceed", [](Register& m) { m.slots_offset += 8; });
  check("slots exceed", [](Register& m) { m.slots_offset = UINT64_MAX; });
  check("test_slot", [](Register& m) { m.test_slot = 2; });
  check("slot_bytes", [](Register& m) { m.slot_bytes = 511; });
  check("digest", [](Register& m) { m.digest = "md5"; });
}

TEST_CASE("envelope: another magic or version is incompatible, an unknown type is named as such") {
  Envelope partial;
  Status status = decode_envelope(frame(1, "\x80", 2), &partial).status();
  CHECK(status.code() == StatusCode::kIncompatible);
  CHECK_THAT(status.message(), Catch::Contains("version 2"));
  CHECK(partial.type == MessageType::kDescribe);
  CHECK(partial.from == Incarnation{});

  status = decode_envelope(frame(1, "\x80", 1, 5), nullptr).status();
  CHECK(status.code() == StatusCode::kIncompatible);

  for (const std::uint64_t type : {0ull, 26ull, 257ull, 1ull << 40}) {
    partial = {};
    status = decode_envelope(frame(type, "\x80"), &partial).status();
    CHECK(status.code() == StatusCode::kNotFound);
    CHECK(partial.from == Incarnation{1});
    CHECK(partial.seq == 4);
  }
}

TEST_CASE("envelope: a malformed body still tells who sent it and its seq") {
  Envelope partial;
  CHECK_FALSE(decode_envelope(frame(14, "\x81"), &partial).ok());
  CHECK(partial.type == MessageType::kCommitted);
  CHECK(partial.from == Incarnation{1});
  CHECK(partial.to == Incarnation{2});
  CHECK(partial.epoch == Epoch{3});
  CHECK(partial.seq == 4);
  CHECK(partial.room == RoomId{5});
}

TEST_CASE("envelope: a header that is not numbers, or names nobody, is malformed") {
  const std::string good = frame(14, map(kCommitted));
  CHECK(decode_envelope(good).ok());
  std::string eight = good;
  eight[0] = '\x98';
  CHECK_FALSE(decode_envelope(eight).ok());
  CHECK(decode_envelope("\xdc\x00\x09"s + good.substr(1)).ok());
  CHECK_FALSE(decode_envelope(""s).ok());
  CHECK_FALSE(decode_envelope("\x99"s).ok());
  std::string text = "\x99"s + str("kvd1") + good.substr(10);
  CHECK(decode_envelope(text).status().code() == StatusCode::kInvalidArgument);

  Envelope nobody = sample_header();
  nobody.from = {};
  CHECK_FALSE(decode_envelope(encode(nobody, Describe{})).ok());
  Envelope room = sample_header();
  room.room = RoomId{1ull << 63};
  CHECK_FALSE(decode_envelope(encode(room, Describe{})).ok());
}

TEST_CASE("decode_body: a body of another type is refused") {
  Result<Envelope> envelope = decode_envelope(frame(14, map(kCommitted)));
  REQUIRE(envelope.ok());
  CHECK_FALSE(decode_body<Abort>(*envelope).ok());
}

}  // namespace kvd::proto::test
