#include "transfer/digest.h"

#include <immintrin.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "base/rng.h"

namespace kvd::transfer {
namespace {
constexpr std::uint64_t kLineBytes = 64;
constexpr std::uint64_t kLineStream = 0x6469676573740000;  // keeps these draws apart from others
constexpr std::uint64_t kMarkStream = 0x6d61726b73000000;

// Lines far apart are gathered and hashed some at a time: all of them are asked for before the
// first is needed, so that memory is waited for once, and the hash runs over bytes that lie
// together.
class Lines {
 public:
  Lines(XXH3_state_t* state, const LetGo& between) : state_(state), between_(between) {}
  void add(const std::byte* line, std::uint64_t bytes) {
    __builtin_prefetch(line);
    __builtin_prefetch(line + bytes - 1);
    lines_[count_++] = {line, bytes};
    if (count_ < lines_.size()) return;
    flush();
    if (between_) between_();
  }
  void flush() {
    std::size_t filled = 0;
    for (std::size_t i = 0; i < count_; ++i) {
      const auto [line, bytes] = lines_[i];
      if (bytes == kLineBytes) {  // nearly always, and then the compiler knows the size
        std::memcpy(&gathered_[filled], line, kLineBytes);
      } else {
        std::memcpy(&gathered_[filled], line, bytes);
      }
      filled += bytes;
    }
    XXH3_64bits_update(state_, gathered_.data(), filled);
    count_ = 0;
  }

 private:
  XXH3_state_t* state_;
  const LetGo& between_;
  std::array<std::pair<const std::byte*, std::uint64_t>, kUnitsAtOnce> lines_{};
  std::array<std::byte, kUnitsAtOnce * kLineBytes> gathered_;
  std::size_t count_ = 0;
};

// Fills a line past the caches: lines of pages long unused would be fetched from memory first, each
// for 70 ns or more (this way 15 to 35).
void fill_line(std::byte* to, std::uint64_t bytes, std::uint64_t value) {
  if (bytes == kLineBytes && reinterpret_cast<std::uintptr_t>(to) % kLineBytes == 0) {
    const __m128i part = _mm_set1_epi64x(static_cast<long long>(value));
    auto* parts = reinterpret_cast<__m128i*>(to);
    for (std::size_t k = 0; k < kLineBytes / sizeof part; ++k) _mm_stream_si128(parts + k, part);
    return;
  }
  std::array<std::uint64_t, kLineBytes / sizeof value> line;
  line.fill(value);
  std::memcpy(to, line.data(), bytes);
}

}  // namespace

bool has_drawn_line(std::uint64_t unit, std::uint64_t unit_bytes) {
  return unit_bytes >= kDrawnLineBytes || unit % (kDrawnLineBytes / unit_bytes) == 0;
}

std::uint64_t sample_line(RoomId room, std::uint64_t unit, std::uint64_t unit_bytes) {
  const std::uint64_t lines = unit_bytes / kLineBytes;
  if (lines <= 1) return 0;
  return counter_random(room.value, kLineStream, unit) % lines * kLineBytes;
}

std::uint64_t last_line(const kv::KvLayout& layout, const PageUnit& unit, std::uint64_t used) {
  if (used >= layout.page_size) {
    return unit.end -
           std::min(kLineBytes, unit.end - unit.begin);  // a full page, as nearly all are
  }
  const std::uint64_t row_bytes = std::uint64_t{layout.head_dim} * layout.element_bytes;
  const std::uint64_t row = (unit.end - 1) / row_bytes;
  const std::uint64_t token = row % layout.page_size;
  std::uint64_t end = unit.end;
  if (token >= used) {
    const std::uint64_t used_end = (row - token + used) * row_bytes;
    if (used_end > unit.begin) end = used_end;
  }
  return end - std::min(kLineBytes, end - unit.begin);
}

struct Digester::State {
  Digest mode;
  const kv::PagePool* pool;
  std::span<const PageIndex> pages;
  std::uint64_t tokens;
  std::uint32_t streamed;
  RoomId room;
  LetGo between;
  std::vector<PageUnit> units, whole_units;
  std::size_t next = 0;      // page
  std::uint64_t number = 0;  // its first unit, counted over the room
  XXH3_state_t hash;

  void take(std::size_t until);
};

Digester::Digester(Digest mode, const kv::PagePool* pool, std::span<const PageIndex> pages,
                   std::uint64_t tokens, std::uint32_t streamed, RoomId room, LetGo between) {
  if (mode == Digest::kOff) return;
  state_.reset(new State{mode,
                         pool,
                         pages,
                         tokens,
                         streamed,
                         room,
                         std::move(between),
                         page_units(pool->layout()),
                         whole_page_units(pool->layout()),
                         0,
                         0,
                         {}});
  XXH3_INITSTATE(&state_->hash);  // the reset reads fields of the state
  KVD_CHECK(XXH3_64bits_reset_withSeed(&state_->hash, room.value) == XXH_OK);
}

Digester::~Digester() = default;

void Digester::State::take(std::size_t until) {
  const kv::KvLayout& layout = pool->layout();
  if (mode == Digest::kFull) {
    const std::uint64_t bytes = layout.page_bytes();
    for (; next < until; ++next) {
      for (std::uint64_t at = 0; at < bytes; at += kBytesAtOnce) {
        XXH3_64bits_update(&hash, pool->page(pages[next]) + at, std::min(kBytesAtOnce, bytes - at));
        if (between) between();
      }
    }
    return;
  }
  Lines lines(&hash, between);
  for (; next < until; ++next) {
    const std::byte* page = pool->page(pages[next]);
    const std::uint64_t used = tokens - std::min(tokens, next * std::uint64_t{layout.page_size});
    for (const PageUnit& unit : next < streamed ? units : whole_units) {
      const std::uint64_t bytes = unit.end - unit.begin;
      if (has_drawn_line(number, bytes)) {
        lines.add(page + unit.begin + sample_line(room, number, bytes), kLineBytes);
      }
      ++number;
      lines.add(page + last_line(layout, unit, used), std::min(bytes, kLineBytes));
    }
  }
  lines.flush();
}

void Digester::take(std::size_t until) {
  if (state_ == nullptr || until <= state_->next) return;
  state_->take(std::min(until, state_->pages.size()));
}

std::uint64_t Digester::finish() {
  if (state_ == nullptr) return 0;
  state_->take(state_->pages.size());
  return XXH3_64bits_digest(&state_->hash);
}

std::uint64_t digest_pages(Digest mode, const kv::PagePool& pool, std::span<const PageIndex> pages,
                           std::uint64_t tokens, std::uint32_t streamed, RoomId room,
                           LetGo between) {
  return Digester(mode, &pool, pages, tokens, streamed, room, std::move(between)).finish();
}

void mark_pages(const kv::PagePool& pool, std::span<const PageIndex> pages, std::uint64_t tokens,
                std::uint64_t nonce, const LetGo& between) {
  const kv::KvLayout& layout = pool.layout();
  const std::vector<PageUnit> units = page_units(layout);
  std::uint64_t number = 0;
  for (std::size_t i = 0; i < pages.size(); ++i) {
    std::byte* page = pool.page(pages[i]);
    const std::uint64_t used = tokens - std::min(tokens, i * std::uint64_t{layout.page_size});
    for (const PageUnit& unit : units) {
      if (number != 0 && number % kUnitsAtOnce == 0) between();
      fill_line(page + last_line(layout, unit, used), std::min(unit.end - unit.begin, kLineBytes),
                counter_random(nonce, kMarkStream, number++));
    }
  }
  _mm_sfence();  // before a peer can hear of the pages
}

std::string_view to_string(Digest mode) {
  switch (mode) {
    case Digest::kSample:
      return "sample";
    case Digest::kFull:
      return "full";
    case Digest::kOff:
      return "off";
  }
  return "?";
}

std::optional<Digest> parse_digest(std::string_view text) {
  for (Digest mode : {Digest::kSample, Digest::kFull, Digest::kOff}) {
    if (text == to_string(mode)) return mode;
  }
  return std::nullopt;
}

}  // namespace kvd::transfer
