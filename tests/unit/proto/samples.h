// One message of every type with every field away from its default, and the frame around it.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/status.h"
#include "proto/messages.h"

namespace kvd::proto::test {

struct Sample {
  MessageType type;
  std::string bytes;  // encoded
  // Decodes, and encodes again.
  std::function<Result<std::string>(const Envelope&)> again;
};

Envelope sample_header();
std::vector<Sample> samples();
std::string to_hex(std::string_view bytes);

}  // namespace kvd::proto::test
