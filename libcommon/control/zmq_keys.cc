#include <zmq.h>

#include <cerrno>

#include "control/keys.h"

namespace kvd::control {

Result<KeyPair> generate_keys() {
  char public_key[41] = {}, secret_key[41] = {};
  if (zmq_curve_keypair(public_key, secret_key) != 0) {
    return Status(StatusCode::kFailed,
                  errno == ENOTSUP ? "libzmq was built without CURVE; install one with libsodium"
                                   : std::string("cannot make keys: ") + zmq_strerror(errno));
  }
  return KeyPair{public_key, secret_key};
}

}  // namespace kvd::control
