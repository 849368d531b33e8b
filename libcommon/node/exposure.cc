#include "node/exposure.h"

#include "base/units.h"

namespace kvd::node {
namespace {

Status check_address(const char* option, const std::string& address, bool guarded,
                     const char* guard) {
  const auto parsed = parse_host_port(address);
  if (!parsed.ok()) return parsed.status().with_context(option);
  if (guarded || is_loopback(parsed->host)) return {};
  return invalid_argument(std::string(option) + " " + address +
                          " can be reached from other hosts: give " + guard +
                          ", or --insecure to go without");
}

}  // namespace

Status check_exposure(const CommonOptions& options, bool binds_control) {
  if (binds_control) {
    KVD_RETURN_IF_ERROR(check_address("--listen", options.listen,
                                      options.insecure || !options.keys.empty(), "--keys FILE"));
  }
  if (options.http.empty()) return {};
  return check_address("--http", options.http, options.insecure || !options.api_key.empty(),
                       "--api-key KEY");
}

}  // namespace kvd::node
