// The few things envelope.cc needs of MessagePack itself. Private to proto/*.cc.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include "base/status.h"

namespace kvd::proto {

// The offset behind the object that begins at `offset`. kInvalidArgument: not MessagePack, cut
// short, or beyond Bounds. Allocates nothing of what the bytes claim.
Result<std::size_t> skip_object(std::string_view bytes, std::size_t offset);
// The one unsigned integer that `object` is.
std::optional<std::uint64_t> read_uint(std::string_view object);

}  // namespace kvd::proto
