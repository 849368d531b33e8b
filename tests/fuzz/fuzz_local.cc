// What the two sides of a `local` connection read of each other: address, Hello, submission ring;
// Welcome, acknowledgements. Any bytes end in an error or in a copy that stays within its region.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <string>
#include <vector>

#include "base/check.h"
#include "device/host_buffer.h"
#include "fabric/local/local_domain.h"
#include "fabric/local/local_ring.h"
#include "fabric/local/local_socket.h"

namespace kvd::fabric::local {
namespace {

constexpr std::size_t kRegion = 8192, kGuard = 4096, kSource = 64 * 1024;

struct Input {
  const std::uint8_t* data;
  std::size_t size;
  std::uint8_t byte() {
    if (size == 0) return 0;
    --size;
    return *data++;
  }
  void fill(void* to, std::size_t bytes) {
    const std::size_t count = std::min(bytes, size);
    std::memcpy(to, data, count);
    data += count;
    size -= count;
  }
};

void poll_some(Endpoint& endpoint) {
  std::array<Completion, 8> batch;
  for (int i = 0; i < 12; ++i) {
    const std::size_t count = endpoint.poll(batch);
    for (std::size_t k = 0; k < count; ++k) {
      if (batch[k].kind == CompletionKind::kFault) KVD_CHECK(!batch[k].status.ok());
      const bool line = batch[k].status.message().find('\n') == std::string::npos;
      KVD_CHECK(line);
    }
    (void)endpoint.may_wait();
  }
}

void try_address(Input in) {
  const std::string text(reinterpret_cast<const char*>(in.data), in.size);
  const auto address = Address::decode(text);
  if (address.ok()) KVD_CHECK(Address::decode(address->encode()).ok());
  (void)check_scope(Scope::here(), text).ok();
}

// A peer that sends this Hello and has this ring.
void try_target(Input in, bool good_hello) {
  LocalDomain domain;
  std::vector<std::byte> memory(kRegion + 2 * kGuard, std::byte{0x77});
  auto endpoint = domain.open_endpoint().value();
  auto region =
      domain.register_memory(memory.data() + kGuard, kRegion, true, endpoint.get()).value();
  const Address address = Address::decode(endpoint->address()).value();
  auto socket = connect_to(address.name);
  KVD_CHECK(socket.ok());
  Fd ring_fd, source_fd;
  Mapping ring = Mapping::create(sizeof(SubmitRing), &ring_fd).value();
  Mapping source = Mapping::create(kSource, &source_fd).value();
  auto* shared = new (ring.data()) SubmitRing;
  Hello hello{
      .magic = kHelloMagic, .version = kVersion, .sources = 1, .token = address.token, .epoch = 1};
  if (!good_hello) in.fill(&hello, sizeof hello);
  const std::uint8_t flags = in.byte();
  if ((flags & 1) != 0) hello.token = address.token;
  shared->epoch = (flags & 2) != 0 ? in.byte() : 1;
  shared->posted = (flags & 4) != 0 ? 1 + in.byte() % kDepth : in.byte();
  shared->sleeping = in.byte();
  for (Entry& entry : shared->entries) {
    if (in.size == 0) break;
    in.fill(&entry, sizeof entry.segments + sizeof entry.has_remote_data + 8);
    const std::uint32_t wanted = std::min<std::uint32_t>(entry.segments, kMaxSegments);
    for (std::uint32_t i = 0; i < wanted; ++i) {
      in.fill(&entry.segment[i], sizeof(Segment) - 8);
      if (in.byte() % 4 != 0) entry.segment[i].key = region->remote().key;
      if (in.byte() % 2 != 0) entry.segment[i].offset %= kSource;
    }
  }
  KVD_CHECK(send_packet(socket->get(), std::as_bytes(std::span(&hello, 1)),
                        std::array<int, 2>{ring_fd.get(), source_fd.get()})
                .ok());
  poll_some(*endpoint);
  for (std::size_t i = 0; i < kGuard; ++i) {
    KVD_CHECK(memory[i] == std::byte{0x77} && memory[kGuard + kRegion + i] == std::byte{0x77});
  }
}

// A peer that answers with this Welcome and has these acknowledgements.
void try_initiator(Input in) {
  static device::HostBuffer source =
      device::HostBuffer::allocate(4096, device::Backing::kShared).value();
  LocalDomain domain;
  auto registered = domain.register_memory(source.data(), 4096, false, nullptr).value();
  auto endpoint = domain.open_endpoint().value();
  const Address address = Address::random();
  const Fd listener = listen_at(address.name).value();
  const PeerHandle peer = endpoint->insert(address.encode()).value();
  const Fd socket = std::move(accept_from(listener.get()).value());
  Fd ack_fd;
  Mapping memory = Mapping::create(sizeof(AckBlock), &ack_fd).value();
  auto* ack = new (memory.data()) AckBlock;
  Welcome welcome{.magic = kWelcomeMagic, .version = kVersion};
  const std::uint8_t flags = in.byte();
  for (int i = 0; i < flags % 8; ++i) {
    const LocalPiece from{source.data(), 64};
    const RemotePiece to{0, 64, 1};
    (void)endpoint->write(peer, {.local = {&from, 1}, .remote = {&to, 1}}).ok();
  }
  std::uint64_t words[3] = {};
  in.fill(words, sizeof words);
  ack->completed = (flags & 8) != 0 ? words[0] % 9 : words[0];
  ack->fault = (flags & 16) != 0 ? 0 : words[1];
  ack->sleeping = words[2];
  if ((flags & 32) != 0) in.fill(&welcome, sizeof welcome);
  const std::size_t bytes = (flags & 64) != 0 ? 1 + in.byte() : sizeof welcome;
  std::array<std::byte, 256> packet{};
  std::memcpy(packet.data(), &welcome, sizeof welcome);
  KVD_CHECK(
      send_packet(socket.get(), std::span(packet).first(bytes), std::array<int, 1>{ack_fd.get()})
          .ok());
  poll_some(*endpoint);
}

}  // namespace
}  // namespace kvd::fabric::local

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace kvd::fabric::local;
  Input in{data, size};
  switch (in.byte() % 4) {
    case 0:
      try_address(in);
      break;
    case 1:
      try_target(in, false);
      break;
    case 2:
      try_target(in, true);
      break;
    default:
      try_initiator(in);
      break;
  }
  return 0;
}
