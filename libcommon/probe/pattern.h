// What a page of a test holds: words that tell their stream (a room, a run), their page and their
// own place, so that a page that did not land, landed elsewhere, or is of an earlier run is seen.
//
// Pure; any thread. Bytes behind the last whole word are neither written nor checked.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

namespace kvd::probe {

void fill_pattern(std::byte* page, std::uint64_t bytes, std::uint64_t stream, std::uint64_t index);
// The offset of the first word that is wrong; nothing when all are right.
std::optional<std::uint64_t> find_wrong(const std::byte* page, std::uint64_t bytes,
                                        std::uint64_t stream, std::uint64_t index);

}  // namespace kvd::probe
