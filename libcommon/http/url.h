// "http://HOST:PORT/path?query" taken apart.
//
// Pure; any thread. Errors: kInvalidArgument that quotes the URL.
#pragma once

#include <string>
#include <string_view>

#include "base/status.h"
#include "base/units.h"

namespace kvd::http {

struct Url {
  HostPort host;       // port 80 where none is given
  std::string target;  // path and query, at least "/"
};

Result<Url> parse_url(std::string_view text);

}  // namespace kvd::http
