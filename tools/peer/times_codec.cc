#include "peer/times_codec.h"

#include "proto/ops_messages.h"

namespace kvd::tools {
namespace {

constexpr std::size_t kEach = proto::ProbeBounds::kTimesBytes;

}  // namespace

std::string pack_number(std::uint64_t number) {
  std::string out;
  for (int shift = 0; shift < 64; shift += 8) out += static_cast<char>(number >> shift & 0xff);
  return out;
}

std::uint64_t number_at(const std::string& bytes, std::size_t at) {
  std::uint64_t out = 0;
  if (at + 8 > bytes.size()) return out;
  for (std::size_t i = 8; i-- > 0;) out = out << 8 | static_cast<unsigned char>(bytes[at + i]);
  return out;
}

std::string pack_times(const std::vector<SentTimes>& times) {
  std::string out;
  out.reserve(times.size() * kEach);
  for (const SentTimes& t : times) {
    out += pack_number(t.room);
    for (const std::int64_t ns :
         {t.started_ns, t.computed_ns, t.transfer_total_ns, t.transfer_exposed_ns}) {
      out += pack_number(static_cast<std::uint64_t>(ns));
    }
    for (const std::uint64_t count : {t.bytes, t.writes, t.pieces}) out += pack_number(count);
  }
  return out;
}

std::vector<SentTimes> unpack_times(const std::string& bytes) {
  std::vector<SentTimes> out;
  for (std::size_t at = 0; at + kEach <= bytes.size(); at += kEach) {
    const auto number = [&](std::size_t i) { return number_at(bytes, at + 8 * i); };
    const auto ns = [&](std::size_t i) { return static_cast<std::int64_t>(number(i)); };
    SentTimes t;
    t.room = number(0);
    t.started_ns = ns(1);
    t.computed_ns = ns(2);
    t.transfer_total_ns = ns(3);
    t.transfer_exposed_ns = ns(4);
    t.bytes = number(5);
    t.writes = number(6);
    t.pieces = number(7);
    out.push_back(t);
  }
  return out;
}

}  // namespace kvd::tools
