#include "http/url.h"

#include <algorithm>

namespace kvd::http {
namespace {

// False for a port that is there and is no port number.
bool has_port(std::string_view authority) {
  const std::size_t bracket = authority.find(']');
  return authority.find(':', bracket == std::string_view::npos ? 0 : bracket) !=
         std::string_view::npos;
}

}  // namespace

Result<Url> parse_url(std::string_view text) {
  const std::string quoted = "'" + std::string(text.substr(0, 200)) + "'";
  constexpr std::string_view kScheme = "http://";
  if (!text.starts_with(kScheme)) {
    return invalid_argument("not a URL of the form http://HOST:PORT/path: " + quoted);
  }
  const bool printable =
      std::all_of(text.begin(), text.end(), [](char c) { return c > ' ' && c < 0x7F; });
  if (!printable)
    return invalid_argument("a URL may not hold spaces or control characters: " + quoted);
  std::string_view rest = text.substr(kScheme.size());
  rest = rest.substr(0, rest.find('#'));
  const std::size_t end = std::min(rest.find_first_of("/?"), rest.size());
  const std::string_view authority = rest.substr(0, end);
  if (authority.find('@') != std::string_view::npos) {
    return invalid_argument("a URL may not hold a user name; use --api-key: " + quoted);
  }
  const std::string with_port = std::string(authority) + (has_port(authority) ? "" : ":80");
  Result<HostPort> host = parse_host_port(with_port);
  if (!host.ok() || host->port == 0) {
    return invalid_argument("not a URL of the form http://HOST:PORT/path: " + quoted);
  }
  Url url;
  url.host = std::move(*host);
  url.target = rest.substr(end);
  if (url.target.empty() || url.target.front() != '/') url.target.insert(0, 1, '/');
  return url;
}

}  // namespace kvd::http
