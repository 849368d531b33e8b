#include "cli/ready.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdlib>
#include <cstring>

namespace kvd::cli {
namespace {

// False when the reader is gone.
bool write_all(int fd, const std::string& text) {
  std::size_t done = 0;
  while (done < text.size()) {
    const ssize_t n = ::write(fd, text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    done += static_cast<std::size_t>(n);
  }
  return true;
}

void notify_supervisor() {
  const char* path = std::getenv("NOTIFY_SOCKET");
  if (path == nullptr || (path[0] != '/' && path[0] != '@')) return;
  sockaddr_un address{};
  const std::size_t length = std::strlen(path);
  if (length < 2 || length >= sizeof(address.sun_path)) return;
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path, length);
  if (path[0] == '@') address.sun_path[0] = '\0';  // abstract namespace
  const int fd = ::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return;
  const std::string message = "READY=1\nMAINPID=" + std::to_string(::getpid());
  const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + length);
  // A full or dead socket is the supervisor's trouble: a daemon that works must not end for it.
  (void)::sendto(fd, message.data(), message.size(), MSG_NOSIGNAL | MSG_DONTWAIT,
                 reinterpret_cast<const sockaddr*>(&address), size);
  ::close(fd);
}

}  // namespace

Status check_ready_fd(int ready_fd) {
  if (ready_fd < 0) return {};
  const int flags = ::fcntl(ready_fd, F_GETFL);
  if (flags < 0 || (flags & O_ACCMODE) == O_RDONLY) {
    return invalid_argument("--ready-fd: " + std::to_string(ready_fd) +
                            " is not a file descriptor open for writing");
  }
  return {};
}

Status announce_ready(const std::string& line, int ready_fd) {
  KVD_RETURN_IF_ERROR(check_ready_fd(ready_fd));
  (void)write_all(STDOUT_FILENO, line + "\n");
  if (ready_fd >= 0) {
    (void)write_all(ready_fd, line + "\n");
    if (ready_fd > STDERR_FILENO) ::close(ready_fd);
  }
  notify_supervisor();
  return {};
}

}  // namespace kvd::cli
