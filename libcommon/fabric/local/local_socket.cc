#include "fabric/local/local_socket.h"

#include <fcntl.h>
#include <linux/memfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstring>
#include <fstream>

#include "base/ids.h"
#include "base/rng.h"

namespace kvd::fabric::local {
namespace {

constexpr std::string_view kPrefix = "kvd-local-1/";
constexpr std::size_t kHex = 16;
constexpr std::size_t kScopeChars = 3 * (kHex + 1);
constexpr std::string_view kNamePrefix = "kvd-";
constexpr std::size_t kNameChars = kNamePrefix.size() + 2 * kHex;  // and 128 random bits
constexpr std::size_t kAddressChars = kPrefix.size() + kScopeChars + kNameChars + 1 + kHex;
constexpr int kBacklog = SOMAXCONN;
constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL;

// What may be different in a moment is not taken for a host that cannot do it.
Status from_errno(const std::string& what) {
  StatusCode code = StatusCode::kNoProvider;
  if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) {
    code = StatusCode::kResourceExhausted;
  } else if (errno == EAGAIN) {
    code = StatusCode::kUnavailable;
  }
  return {code, "local: " + what + ": " + std::strerror(errno)};
}

socklen_t fill(sockaddr_un* address, const std::string& name) {
  *address = {};
  address->sun_family = AF_UNIX;
  // The leading zero makes the name abstract: no file, gone with its socket.
  std::memcpy(address->sun_path + 1, name.data(), name.size());
  return static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
}

// Whether this id is the one that a user namespace shows for every user that it does not map.
bool stands_for_others(uid_t user) {
  uid_t overflow = 65534;
  std::ifstream("/proc/sys/kernel/overflowuid") >> overflow;
  if (user != overflow) return false;
  std::uint64_t inside = 0, outside = 0, count = 0, mapped = 0;
  std::ifstream map("/proc/self/uid_map");
  while (map >> inside >> outside >> count) mapped += count;
  constexpr std::uint64_t kAllUsers = 0xffffffff;
  return mapped < kAllUsers;
}

Status check_peer(int fd) {
  ucred peer{};
  socklen_t length = sizeof peer;
  if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) != 0) {
    return from_errno("SO_PEERCRED");
  }
  if (peer.uid != geteuid()) {
    return {StatusCode::kNoProvider, "local: the peer is a process of user " +
                                         std::to_string(peer.uid) + ", and this one of user " +
                                         std::to_string(geteuid())};
  }
  if (stands_for_others(peer.uid)) {
    return {StatusCode::kNoProvider, "local: user " + std::to_string(peer.uid) +
                                         " stands for all users that this user namespace does not "
                                         "map, so the peer may be anybody; map this user"};
  }
  return {};
}

std::uint64_t read_boot() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string text, digits;
  std::getline(file, text);
  for (const char c : text) {
    if (c != '-') digits += c;
  }
  std::uint64_t value = 0;
  if (digits.size() >= kHex) std::from_chars(digits.data(), digits.data() + kHex, value, 16);
  return value;
}

bool parse_hex(std::string_view text, std::uint64_t* value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *value, 16);
  return error == std::errc() && end == text.data() + text.size();
}

bool parse_scope(std::string_view text, Scope* scope) {
  return text.size() == kScopeChars && text[kHex] == '/' && text[2 * kHex + 1] == '/' &&
         text[3 * kHex + 2] == '/' && parse_hex(text.substr(0, kHex), &scope->boot) &&
         parse_hex(text.substr(kHex + 1, kHex), &scope->network) &&
         parse_hex(text.substr(2 * kHex + 2, kHex), &scope->user);
}

}  // namespace

void Fd::reset() {
  if (fd_ >= 0) close(fd_);
  fd_ = -1;
}

void Mapping::reset() {
  if (data_ != nullptr) munmap(data_, bytes_);
  data_ = nullptr;
  bytes_ = 0;
}

Result<Mapping> Mapping::create(std::size_t bytes, Fd* fd) {
  Fd made(memfd_create("kvd-ring", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!made) return from_errno("memfd_create");
  if (ftruncate(made.get(), static_cast<off_t>(bytes)) != 0) return from_errno("ftruncate");
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, made.get(), 0);
  if (data == MAP_FAILED) return from_errno("mmap");
  Mapping out;
  out.data_ = static_cast<std::byte*>(data);
  out.bytes_ = bytes;
  if (fcntl(made.get(), F_ADD_SEALS, kSeals) != 0) return from_errno("sealing a memfd");
  madvise(data, bytes, MADV_DONTFORK);
  *fd = std::move(made);
  return out;
}

Result<Mapping> Mapping::of_peer(int fd, std::size_t least) {
  const int seals = fcntl(fd, F_GET_SEALS);
  const bool fixed = seals >= 0 && (seals & F_SEAL_SHRINK) != 0 && (seals & F_SEAL_GROW) != 0 &&
                     (seals & (F_SEAL_FUTURE_WRITE | F_SEAL_WRITE)) != 0;
  // Unsealed, the peer could cut the file short, or holes into it, under our reading: SIGBUS.
  if (!fixed) return Status(StatusCode::kNoProvider, "local: the peer's memory is not sealed");
  struct stat status {};
  if (fstat(fd, &status) != 0) return from_errno("fstat");
  if (status.st_size <= 0 || static_cast<std::uint64_t>(status.st_size) < least) {
    return Status(StatusCode::kNoProvider, "local: the peer's memory is too small");
  }
  const auto bytes = static_cast<std::size_t>(status.st_size);
  // Takes part in the reservation of huge pages: no page can be missing later.
  void* data = mmap(nullptr, bytes, PROT_READ, MAP_SHARED, fd, 0);
  if (data == MAP_FAILED) return from_errno("mapping the peer's memory");
  Mapping out;
  out.data_ = static_cast<std::byte*>(data);
  out.bytes_ = bytes;
  madvise(data, bytes, MADV_HUGEPAGE);
  madvise(data, bytes, MADV_DONTFORK);
  return out;
}

Scope Scope::here() {
  static const std::uint64_t boot = read_boot();
  struct stat network {};
  Scope scope{boot, 0, geteuid()};
  if (stat("/proc/self/ns/net", &network) == 0) scope.network = network.st_ino;
  return scope;
}

std::string to_string(const Scope& scope) {
  return hex(scope.boot) + "/" + hex(scope.network) + "/" + hex(scope.user) + "/";
}

Status check_scope(const Scope& here, std::string_view theirs) {
  Scope there;
  const auto no = [](const std::string& why) {
    return Status(StatusCode::kNoProvider, "local: " + why);
  };
  if (!parse_scope(theirs, &there)) return no("the peer does not say on which host it is");
  if (here.boot == 0 || here.boot != there.boot) return no("the peer is on another host");
  if (here.network != there.network) return no("the peer is in another network namespace");
  if (here.user != there.user) return no("the peer is a process of another user");
  return {};
}

Address Address::random() {
  return {Scope::here(),
          std::string(kNamePrefix) + hex(secure_random_u64()) + hex(secure_random_u64()),
          secure_random_u64()};
}

FabricAddress Address::encode() const {
  return std::string(kPrefix) + to_string(scope) + name + "/" + hex(token);
}

Result<Address> Address::decode(const FabricAddress& text) {
  Address out;
  const bool good =
      text.size() == kAddressChars && text.starts_with(kPrefix) &&
      parse_scope(std::string_view(text).substr(kPrefix.size(), kScopeChars), &out.scope) &&
      text[kPrefix.size() + kScopeChars + kNameChars] == '/' &&
      parse_hex(std::string_view(text).substr(kAddressChars - kHex), &out.token);
  if (!good) return invalid_argument("local: not an address of this transport");
  out.name = text.substr(kPrefix.size() + kScopeChars, kNameChars);
  // A peer may make us connect to a worker's socket, not to any other of the host.
  const std::string_view digits = std::string_view(out.name).substr(kNamePrefix.size());
  std::uint64_t ignored = 0;
  if (!out.name.starts_with(kNamePrefix) || !parse_hex(digits.substr(0, kHex), &ignored) ||
      !parse_hex(digits.substr(kHex), &ignored)) {
    return invalid_argument("local: the address does not name a worker's socket");
  }
  return out;
}

Result<Fd> listen_at(const std::string& name) {
  Fd fd(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return from_errno("socket");
  sockaddr_un address;
  const socklen_t length = fill(&address, name);
  if (bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), length) != 0) {
    return from_errno("bind");
  }
  if (listen(fd.get(), kBacklog) != 0) return from_errno("listen");
  return fd;
}

Result<Fd> connect_to(const std::string& name) {
  Fd fd(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return from_errno("socket");
  sockaddr_un address;
  const socklen_t length = fill(&address, name);
  if (connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), length) != 0) {
    return from_errno("cannot reach the peer's socket");
  }
  KVD_RETURN_IF_ERROR(check_peer(fd.get()));
  return fd;
}

Result<Fd> accept_from(int listener) {
  for (int i = 0; i < kBacklog; ++i) {
    Fd fd(accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (fd) {
      if (check_peer(fd.get()).ok()) return fd;
    } else if (errno == EAGAIN) {
      break;
    } else if (errno != ECONNABORTED && errno != EINTR) {
      return from_errno("accept");
    }
  }
  return Status(StatusCode::kAgain, "nobody waits");
}

Status send_packet(int fd, std::span<const std::byte> packet, std::span<const int> descriptors) {
  iovec part{const_cast<std::byte*>(packet.data()), packet.size()};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(kMaxDescriptors * sizeof(int))] = {};
  if (!descriptors.empty()) {
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(descriptors.size_bytes());
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(descriptors.size_bytes());
    std::memcpy(CMSG_DATA(header), descriptors.data(), descriptors.size_bytes());
  }
  if (sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0) return {};
  if (errno == EAGAIN) return {StatusCode::kAgain, "local: the socket is full"};
  if (errno == EPIPE || errno == ECONNRESET) return unavailable("local: the peer closed");
  return from_errno("sendmsg");
}

Status receive_packet(int fd, std::span<std::byte> buffer, Packet* packet) {
  iovec part{buffer.data(), buffer.size()};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(kMaxDescriptors * sizeof(int))] = {};
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  const ssize_t got = recvmsg(fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (got < 0) {
    if (errno == EAGAIN || errno == EINTR) return {StatusCode::kAgain, "nothing there"};
    return unavailable(std::string("local: the connection broke: ") + std::strerror(errno));
  }
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr;
       header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    const std::size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count; ++i) {
      int passed = -1;
      std::memcpy(&passed, CMSG_DATA(header) + i * sizeof(int), sizeof passed);
      packet->descriptors.emplace_back(passed);
    }
  }
  if (got == 0) return unavailable("local: the peer closed its connection");
  if ((message.msg_flags & MSG_TRUNC) != 0) {
    return {StatusCode::kFailed, "local: the peer sent more than fits"};
  }
  packet->descriptors_lost = (message.msg_flags & MSG_CTRUNC) != 0;
  packet->bytes = buffer.first(static_cast<std::size_t>(got));
  return {};
}

}  // namespace kvd::fabric::local
