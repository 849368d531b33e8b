#include "control/keys.h"

#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <catch2/catch.hpp>
#include <fstream>

namespace kvd::control {
namespace {

class TempFile {
 public:
  explicit TempFile(const std::string& text, mode_t mode = 0600) {
    std::array<char, 32> name{"/tmp/kvd-keys-XXXXXX"};
    const int fd = mkstemp(name.data());
    REQUIRE(fd >= 0);
    close(fd);
    path_ = name.data();
    std::ofstream(path_) << text;
    REQUIRE(chmod(path_.c_str(), mode) == 0);
  }
  ~TempFile() { unlink(path_.c_str()); }
  TempFile(const TempFile&) = delete;
  TempFile& operator=(const TempFile&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

std::string fault(const std::string& text, mode_t mode = 0600) {
  TempFile file(text, mode);
  Result<KeyRing> ring = load_keys(file.path());
  REQUIRE_FALSE(ring.ok());
  CHECK(ring.status().code() == StatusCode::kInvalidArgument);
  return ring.status().message();
}

KeyPair keys() {
  Result<KeyPair> pair = generate_keys();
  REQUIRE(pair.ok());
  return *pair;
}

}  // namespace

TEST_CASE("keys: two pairs differ and have 40 characters") {
  const KeyPair a = keys(), b = keys();
  CHECK(a.public_key.size() == 40);
  CHECK(a.secret_key.size() == 40);
  CHECK(a.public_key != b.public_key);
}

TEST_CASE("keys: a file gives our own pair and the allow-list") {
  const KeyPair self = keys(), prefill = keys(), decode = keys();
  TempFile file("# the cluster\n\n" + self.public_key + " self " + self.secret_key + "\n" +
                prefill.public_key + " prefill localhost:7100  # rack 3\n" + decode.public_key +
                "\tdecode\n");
  Result<KeyRing> ring = load_keys(file.path());
  INFO(ring.status().message());
  REQUIRE(ring.ok());
  CHECK(ring->public_key == self.public_key);
  CHECK(ring->secret_key == self.secret_key);
  REQUIRE(ring->peers.size() == 2);
  REQUIRE(ring->find(decode.public_key) != nullptr);
  CHECK(ring->find(decode.public_key)->role == "decode");
  CHECK(ring->find(self.public_key) == nullptr);
  REQUIRE(ring->find_address("127.0.0.1:7100") != nullptr);
  CHECK(ring->find_address("127.0.0.1:7100")->public_key == prefill.public_key);
  CHECK(ring->find_address("127.0.0.1:7101") == nullptr);
  CHECK(ring->find_address("") == nullptr);
}

TEST_CASE("keys: a line that is wrong is named by its number") {
  const KeyPair self = keys();
  const std::string good = self.public_key + " self " + self.secret_key + "\n";
  CHECK_THAT(fault(good + "short prefill\n"), Catch::Contains("line 2: the public key"));
  CHECK_THAT(fault(good + "\n" + self.public_key + " boss\n"),
             Catch::Contains("line 3: unknown role"));
  CHECK_THAT(fault(good + self.public_key + "\n"), Catch::Contains("expected PUBLIC_KEY ROLE"));
  CHECK_THAT(fault(good + self.public_key + " prefill nowhere\n"), Catch::Contains("line 2: "));
  CHECK_THAT(fault(good + good), Catch::Contains("line 2: a second line"));
  CHECK_THAT(fault(self.public_key + " self\n"), Catch::Contains("needs the secret key"));
  CHECK_THAT(fault("# nothing\n"), Catch::Contains("keygen"));
}

TEST_CASE("keys: a file with a secret that others may read is refused") {
  const KeyPair self = keys();
  const std::string line = self.public_key + " self " + self.secret_key + "\n";
  const std::string message = fault(line, 0640);
  CHECK_THAT(message, Catch::Contains("chmod 600"));
  CHECK_THAT(message, !Catch::Contains(self.secret_key));
}

TEST_CASE("keys: a file that is not there is named") {
  Result<KeyRing> ring = load_keys("/nonexistent/keys");
  REQUIRE_FALSE(ring.ok());
  CHECK_THAT(ring.status().message(), Catch::Contains("/nonexistent/keys"));
}

}  // namespace kvd::control
