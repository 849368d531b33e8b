// Abstract Unix sockets between processes of one user on one host, and the descriptors and mappings
// that travel over them. Every call is non-blocking.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/status.h"
#include "fabric/fabric.h"

namespace kvd::fabric::local {

// Owns a descriptor.
class Fd {
 public:
  Fd() = default;
  explicit Fd(int fd) : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Fd& operator=(Fd&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Fd() { reset(); }
  void reset();
  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }

 private:
  int fd_ = -1;
};

// Owns a mapping of a memfd.
class Mapping {
 public:
  Mapping() = default;
  Mapping(Mapping&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  Mapping& operator=(Mapping&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~Mapping() { reset(); }
  void reset();
  std::byte* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }

  // A new sealed memfd of `bytes` that only this process can ever write; `fd` is for passing on.
  static Result<Mapping> create(std::size_t bytes, Fd* fd);
  // A peer's memfd, read-only. Refused unless it is sealed so that neither its size nor its pages
  // can be taken away while it is read, and is `least` bytes long at least.
  static Result<Mapping> of_peer(int fd, std::size_t least);

 private:
  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
};

// Where `local` can reach: within one boot of one kernel, one network namespace (abstract sockets
// belong to it), one user.
struct Scope {
  std::uint64_t boot = 0, network = 0, user = 0;
  static Scope here();
};
std::string to_string(const Scope& scope);
// Ok, or which of the three differs.
Status check_scope(const Scope& here, std::string_view theirs);

// What an endpoint's FabricAddress says.
struct Address {
  Scope scope;
  std::string name;         // of the abstract socket, without the leading zero
  std::uint64_t token = 0;  // names are visible to all users of the host; this is not
  static Address random();
  FabricAddress encode() const;
  static Result<Address> decode(const FabricAddress& text);
};

Result<Fd> listen_at(const std::string& name);
// kNoProvider with the reason: nobody listens, or it is not a process of this user.
Result<Fd> connect_to(const std::string& name);
// kAgain when nobody waits. Connections of other users are closed at once.
Result<Fd> accept_from(int listener);

Status send_packet(int fd, std::span<const std::byte> packet, std::span<const int> descriptors);
constexpr std::size_t kMaxDescriptors = 16;
struct Packet {
  std::span<const std::byte> bytes;  // of the caller's buffer
  std::vector<Fd> descriptors;
  bool descriptors_lost = false;  // this process may not have so many open
};
// At most `buffer.size()` bytes and kMaxDescriptors descriptors. kAgain: nothing there.
// kUnavailable: the peer closed.
Status receive_packet(int fd, std::span<std::byte> buffer, Packet* packet);

}  // namespace kvd::fabric::local
