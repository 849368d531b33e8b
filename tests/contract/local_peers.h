// Peers of kvd's and peers that are not, for the tests of the `local` transport.
#pragma once

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "contract/world.h"
#include "fabric/local/local_ring.h"
#include "fabric/local/local_socket.h"

namespace kvd::fabric::contract {

using local::Address;
using local::Entry;
using local::Fd;
using local::Mapping;
using local::SubmitRing;

inline constexpr std::size_t kLocalBytes = 64 * 1024;

inline std::unique_ptr<Domain> open_local() {
  return open_domain({.provider = "local", .source_address = "", .device = ""}).value();
}

inline std::vector<Completion> poll_some(Endpoint& endpoint) {
  std::vector<Completion> out;
  for (int i = 0; i < 300; ++i) {
    std::array<Completion, 16> batch;
    const std::size_t count = endpoint.poll(batch);
    out.insert(out.end(), batch.begin(), batch.begin() + static_cast<std::ptrdiff_t>(count));
  }
  return out;
}

// A target of kvd's, with memory that a peer may write to.
struct Decode {
  Decode() {
    endpoint = domain->open_endpoint().value();
    region = domain->register_memory(memory.data(), kLocalBytes, true, endpoint.get()).value();
    address = Address::decode(endpoint->address()).value();
  }
  std::unique_ptr<Domain> domain = open_local();
  Bytes memory = Bytes(kLocalBytes);
  std::unique_ptr<Endpoint> endpoint;
  std::unique_ptr<MemoryRegion> region;
  Address address;
};

// An initiator that is not kvd's: it may put anything into its ring and its Hello.
struct RawPrefill {
  explicit RawPrefill(const Decode& decode) {
    ring_map = Mapping::create(sizeof(SubmitRing), &ring_fd).value();
    source_map = Mapping::create(kLocalBytes, &source_fd).value();
    ring = new (ring_map.data()) SubmitRing;
    ring->epoch = 7;
    std::memset(source_map.data(), 0x11, kLocalBytes);
    hello = {.magic = local::kHelloMagic,
             .version = local::kVersion,
             .sources = 1,
             .token = decode.address.token,
             .epoch = 7};
    socket = local::connect_to(decode.address.name).value();
    key = decode.region->remote().key;
  }
  Status greet() { return greet({ring_fd.get(), source_fd.get()}); }
  Status greet(const std::vector<int>& descriptors) {
    return local::send_packet(socket.get(), std::as_bytes(std::span(&hello, 1)), descriptors);
  }
  // A good entry of 4 KiB that signals 5.
  Entry& put() {
    Entry& entry = ring->entries[ring->posted % local::kDepth];
    entry.segments = 1;
    entry.has_remote_data = 1;
    entry.remote_data = 5;
    entry.segment[0] = {.source = 0, .bytes = 4096, .offset = 0, .address = 0, .key = key};
    ++ring->posted;
    return entry;
  }
  // What the target answered, and its acknowledgements when it took us in.
  local::Welcome welcome() {
    local::Welcome out;
    local::Packet packet;
    (void)local::receive_packet(socket.get(), std::as_writable_bytes(std::span(&out, 1)), &packet);
    if (packet.descriptors.size() == 1) {
      ack_map = Mapping::of_peer(packet.descriptors[0].get(), sizeof(local::AckBlock)).value();
      ack = reinterpret_cast<const local::AckBlock*>(ack_map.data());
    }
    return out;
  }

  Fd ring_fd, source_fd, socket;
  Mapping ring_map, source_map, ack_map;
  SubmitRing* ring;
  const local::AckBlock* ack = nullptr;
  local::Hello hello;
  std::uint64_t key = 0;
};

// A target that is not kvd's.
struct RawDecode {
  RawDecode() {
    address = Address::random();
    listener = local::listen_at(address.name).value();
    ack_map = Mapping::create(sizeof(local::AckBlock), &ack_fd).value();
    ack = new (ack_map.data()) local::AckBlock;
  }
  void accept() {
    socket = std::move(local::accept_from(listener.get()).value());
    local::Packet packet;
    local::Hello hello;
    REQUIRE(
        local::receive_packet(socket.get(), std::as_writable_bytes(std::span(&hello, 1)), &packet)
            .ok());
    CHECK(hello.token == address.token);
    ring_map = Mapping::of_peer(packet.descriptors.at(0).get(), sizeof(SubmitRing)).value();
    ring = reinterpret_cast<const SubmitRing*>(ring_map.data());
  }
  void welcome(int descriptor) {
    const local::Welcome answer{.magic = local::kWelcomeMagic, .version = local::kVersion};
    const int passed[] = {descriptor};
    REQUIRE(local::send_packet(socket.get(), std::as_bytes(std::span(&answer, 1)), passed).ok());
  }
  Address address;
  Fd listener, socket, ack_fd;
  Mapping ack_map, ring_map;
  local::AckBlock* ack;
  const SubmitRing* ring = nullptr;
};

// A prefill of kvd's, and a write of 512 bytes.
struct Prefill {
  explicit Prefill(const Address& address) {
    const std::span<std::byte> all = Arena::whole();
    arena = domain->register_memory(all.data(), all.size(), false, nullptr).value();
    endpoint = domain->open_endpoint().value();
    peer = endpoint->insert(address.encode()).value();
  }
  Status write(std::uint64_t context) {
    const LocalPiece from{source.data(), source.size()};
    const RemotePiece to{0, source.size(), 1};
    return endpoint->write(peer, {.local = {&from, 1}, .remote = {&to, 1}, .context = context});
  }
  std::unique_ptr<Domain> domain = open_local();
  Bytes source = pattern(512, 1);
  std::unique_ptr<MemoryRegion> arena;
  std::unique_ptr<Endpoint> endpoint;
  PeerHandle peer = 0;
};

inline bool has_local() {
  const std::vector<std::string> here = present();
  if (std::find(here.begin(), here.end(), "local") != here.end()) return true;
  WARN("skipped: " + explain_missing("local").message());
  return false;
}

}  // namespace kvd::fabric::contract
