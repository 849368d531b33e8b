#include "kvd-bench/pages_mailbox.h"

#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <new>
#include <utility>

namespace kvd::tools {

Result<MailboxPair> MailboxPair::make() {
  MailboxPair out;
  void* memory =
      mmap(nullptr, sizeof(Mailbox), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    return Status(StatusCode::kResourceExhausted,
                  std::string("cannot map memory: ") + strerror(errno));
  }
  out.box_ = new (memory) Mailbox;
  int fds[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) != 0) {
    return Status(StatusCode::kResourceExhausted,
                  std::string("cannot open sockets: ") + strerror(errno));
  }
  out.parent_ = fds[0];
  out.child_ = fds[1];
  return out;
}

MailboxPair::MailboxPair(MailboxPair&& other) noexcept
    : box_(std::exchange(other.box_, nullptr)),
      parent_(std::exchange(other.parent_, -1)),
      child_(std::exchange(other.child_, -1)),
      mine_(std::exchange(other.mine_, -1)) {}

MailboxPair::~MailboxPair() {
  if (parent_ >= 0) close(parent_);
  if (child_ >= 0) close(child_);
  if (box_ != nullptr) munmap(static_cast<void*>(box_), sizeof(Mailbox));
}

void MailboxPair::be_parent() {
  close(std::exchange(child_, -1));
  mine_ = parent_;
}

void MailboxPair::be_child() {
  close(std::exchange(parent_, -1));
  mine_ = child_;
}

void MailboxPair::wake() const {
  // A full socket wakes, too; a closed one is seen by drain().
  const char byte = 0;
  (void)!send(mine_, &byte, 1, MSG_NOSIGNAL);
}

bool MailboxPair::drain() const {
  char bytes[64];
  for (;;) {
    const ssize_t got = recv(mine_, bytes, sizeof bytes, 0);
    if (got == 0) return false;
    if (got < 0) return errno == EAGAIN || errno == EINTR;
  }
}

Status MailboxPair::wait(Duration timeout) const {
  pollfd entry{.fd = mine_, .events = POLLIN, .revents = 0};
  const int rc = poll(&entry, 1, static_cast<int>(timeout.count() / 1'000'000));
  if (rc == 0) return {StatusCode::kDeadline, "the other side of the transfer does not answer"};
  if (rc < 0 && errno == EINTR) return {StatusCode::kCancelled, "interrupted"};
  return drain() ? Status() : unavailable("the other side of the transfer has ended");
}

void put_text(std::array<char, kMaxText>* field, const std::string& text) {
  const std::size_t bytes = std::min(text.size(), kMaxText - 1);
  std::memcpy(field->data(), text.data(), bytes);
  (*field)[bytes] = '\0';
}

}  // namespace kvd::tools
