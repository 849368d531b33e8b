// The identifiers that cross module borders, each a type of its own so that none is taken for
// another.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace kvd {

template <typename Tag, typename Rep>
struct Id {
  Rep value = 0;
  auto operator<=>(const Id&) const = default;
  explicit operator bool() const { return value != 0; }
};

// Random 64-bit id of one run of a worker; 0 means "not known yet".
using Incarnation = Id<struct IncarnationTag, std::uint64_t>;
// One request's transfer over one link (SGLang's bootstrap_room); below 2^63, 0 means none.
using RoomId = Id<struct RoomTag, std::uint64_t>;
// The generation of a link; 0 outside a link.
using Epoch = Id<struct EpochTag, std::uint64_t>;
// One page of a KvPool: 0 .. page_count-1 (0 is a valid page).
using PageIndex = std::uint32_t;
// One token of the model's vocabulary.
using TokenId = std::int32_t;

// 16 hex digits, as logs, metrics and JSON show ids.
std::string hex(std::uint64_t value);
template <typename Tag>
std::string to_string(Id<Tag, std::uint64_t> id) {
  return hex(id.value);
}

}  // namespace kvd

template <typename Tag, typename Rep>
struct std::hash<kvd::Id<Tag, Rep>> {
  std::size_t operator()(const kvd::Id<Tag, Rep>& id) const noexcept {
    return std::hash<Rep>{}(id.value);
  }
};
