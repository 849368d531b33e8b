#include "fabric/local/local_line.h"

namespace kvd::fabric::local {
namespace {

constexpr int kPacketsPerLook = 16;

}  // namespace

void Line::ring(const Word& sleeping) {
  std::atomic_thread_fence(std::memory_order_seq_cst);
  const std::uint64_t value = sleeping.load(std::memory_order_relaxed);
  owes_ = false;
  if (value % 2 == 0 || value == rung_) return;
  const Status sent = send_packet(fd(), std::as_bytes(std::span(&kDoorbell, 1)), {});
  // A full socket holds doorbells already, and that it is broken is read from it.
  owes_ = sent.code() == StatusCode::kResourceExhausted;
  if (!owes_) rung_ = value;
}

Status Line::read(const std::function<Status(const Packet&)>& on_packet) {
  for (int i = 0; i < kPacketsPerLook; ++i) {
    std::byte buffer[sizeof(Welcome)];
    Packet packet;
    const Status got = receive_packet(fd(), buffer, &packet);
    if (got.code() == StatusCode::kAgain) return {};
    KVD_RETURN_IF_ERROR(got);
    if (packet.bytes.size() != sizeof kDoorbell) KVD_RETURN_IF_ERROR(on_packet(packet));
  }
  return {};
}

Status lost_descriptors() {
  return {StatusCode::kResourceExhausted,
          "local: not all of the peer's memory arrived: too few open files are allowed here (raise "
          "ulimit -n)"};
}

void fall_asleep(Word* sleeping) {
  const std::uint64_t value = sleeping->load(std::memory_order_relaxed);
  sleeping->store(value | 1, std::memory_order_relaxed);
  std::atomic_thread_fence(std::memory_order_seq_cst);
}

void wake_up(Word* sleeping) {
  const std::uint64_t value = sleeping->load(std::memory_order_relaxed);
  if (value % 2 != 0) sleeping->store(value + 1, std::memory_order_relaxed);
}

}  // namespace kvd::fabric::local
