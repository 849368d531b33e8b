// A file of --keys: any bytes give a ring of well-formed keys, or one line that says what is wrong.
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "base/check.h"
#include "base/units.h"
#include "control/keys.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const int fd = ::memfd_create("keys", MFD_CLOEXEC);
  KVD_CHECK(fd >= 0 && ::fchmod(fd, 0600) == 0);
  KVD_CHECK(::write(fd, data, size) == static_cast<ssize_t>(size));
  const auto ring = kvd::control::load_keys("/proc/self/fd/" + std::to_string(fd));
  ::close(fd);
  if (!ring.ok()) {
    KVD_CHECK(ring.status().code() == kvd::StatusCode::kInvalidArgument);
    KVD_CHECK(ring.status().message().find('\n') == std::string::npos);
    return 0;
  }
  KVD_CHECK(ring->public_key.empty() == ring->secret_key.empty());
  for (const auto& peer : ring->peers) {
    KVD_CHECK(peer.public_key.size() == 40 && ring->find(peer.public_key) != nullptr);
    KVD_CHECK(peer.address.empty() || kvd::parse_host_port(peer.address).ok());
    KVD_CHECK(peer.address.empty() || ring->find_address(peer.address) != nullptr);
  }
  return 0;
}
