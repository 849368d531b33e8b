// What transfer/faults.h declares. The environment controls it:
//
//   KVD_TEST_STOP_FILE=PATH  the process stops itself at the step that PATH names, and removes
//   PATH:
//                            "sender WaitingForInput writing", "receiver Transferring commit"
//                            (role, state before, event; after its actions), "sender write 3"
//                            (completed)
//   KVD_TEST_FAULT=KIND:N    the first N rooms of a prefill are spoilt: KIND is missing (a page is
//                            not written), foreign (a page of another room arrives in its place) or
//                            flip (one bit of one 64-byte line)
//   KVD_TEST_CANARY=1        decode fills free pages with a pattern, those of a failed room at
//   once,
//                            and watches them until they are leased again
//   KVD_TEST_UNFENCED=1      decode frees pages without any proof and leaves endpoints open
#include "transfer/faults.h"

#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <fstream>
#include <set>
#include <string>

#include "base/log.h"

namespace kvd::transfer::faults {
namespace {

constexpr Duration kWatchInterval{200'000'000};
constexpr std::size_t kLineBytes = 64;

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

void stop_if_waited_for(const std::string& step) {
  static const std::string path = variable("KVD_TEST_STOP_FILE");
  if (path.empty()) return;
  std::string wanted;
  if (!std::getline(std::ifstream(path), wanted) || wanted != step) return;
  ::unlink(path.c_str());
  log_warn("test: stopped", {{"step", step}});
  std::raise(SIGSTOP);
}

struct Canary {
  std::set<PageIndex> pages;
  std::uint64_t filled = 0, checked = 0, changed = 0;
  TimePoint next{0};
};
Canary& canary() {
  static Canary only;
  return only;
}
bool canary_on() {
  static const bool on = !variable("KVD_TEST_CANARY").empty();
  return on;
}

std::uint64_t pattern(PageIndex page, std::uint64_t word) {
  return 0xC0FFEE0000000000U + (std::uint64_t{page} << 32) + word * 0x9E3779B1U;
}

void fill_page(const kv::PagePool& pool, PageIndex page) {
  std::byte* at = pool.page(page);
  const std::uint64_t words = pool.layout().page_bytes() / 8;
  for (std::uint64_t word = 0; word < words; ++word) {
    const std::uint64_t value = pattern(page, word);
    std::memcpy(at + 8 * word, &value, 8);
  }
  canary().pages.insert(page);
  ++canary().filled;
}

bool check_page(const kv::PagePool& pool, PageIndex page) {
  ++canary().checked;
  const std::byte* at = pool.page(page);
  const std::uint64_t words = pool.layout().page_bytes() / 8;
  for (std::uint64_t word = 0; word < words; ++word) {
    const std::uint64_t expected = pattern(page, word);
    if (std::memcmp(at + 8 * word, &expected, 8) == 0) continue;
    ++canary().changed;
    log_error("test: a free page was written", {{"page", page}, {"offset", 8 * word}});
    return false;
  }
  return true;
}

struct KeptOpen {
  std::unique_ptr<fabric::Endpoint> endpoint;
  std::unique_ptr<fabric::MemoryRegion> region;
};
std::deque<KeptOpen>& kept_open() {
  static std::deque<KeptOpen> all;
  return all;
}

// The write goes without the first `bytes` of its first piece.
void shorten(fabric::QueuedWrite* write, std::uint64_t bytes) {
  fabric::LocalPiece& local = write->local.front();
  fabric::RemotePiece& remote = write->remote.front();
  local.address += bytes;
  local.bytes -= bytes;
  remote.address += bytes;
  remote.bytes -= bytes;
  if (local.bytes != 0) return;
  write->local.erase(write->local.begin());
  write->remote.erase(write->remote.begin());
}

}  // namespace

void at_step(room::Role role, room::RoomState state, room::Event event) {
  stop_if_waited_for(std::string(to_string(role)) + " " + std::string(to_string(state)) + " " +
                     std::string(to_string(event)));
}

void at_write(std::uint64_t completed_writes) {
  stop_if_waited_for("sender write " + std::to_string(completed_writes));
}

void tamper(RoomId room, const kv::PagePool& pool, std::vector<fabric::QueuedWrite>* writes) {
  static const std::string spec = variable("KVD_TEST_FAULT");
  static const std::string kind = spec.substr(0, spec.find(':'));
  static std::uint64_t left =
      spec.empty() ? 0 : std::strtoull(spec.c_str() + spec.find(':') + 1, nullptr, 10);
  static RoomId last;
  if (left == 0 || room == last || writes->empty()) return;
  fabric::QueuedWrite& write = writes->front();
  fabric::LocalPiece& piece = write.local.front();
  // The first page of the piece, or what it has of one.
  const std::uint64_t bytes = std::min(piece.bytes, pool.layout().page_bytes());
  if (kind == "missing") {
    // A room of which nothing is written at all would be another fault than a missing page.
    if (piece.bytes == bytes && write.local.size() == 1 && writes->size() == 1) return;
    shorten(&write, bytes);
    if (write.local.empty()) writes->erase(writes->begin());
  } else {
    static std::deque<std::vector<std::byte>> copies;  // until the process ends
    std::vector<std::byte>& copy = copies.emplace_back(piece.address, piece.address + piece.bytes);
    if (kind == "foreign") {
      const auto offset = static_cast<std::uint64_t>(piece.address - pool.memory());
      const std::uint64_t far = pool.page_count() / 2 * pool.layout().page_bytes();
      std::copy_n(pool.memory() + (offset + far) % pool.memory_bytes(), bytes, copy.data());
    } else {
      copy[bytes - kLineBytes] ^= std::byte{1};
    }
    piece.address = copy.data();
  }
  --left;
  last = room;
  log_warn("test: fault injected", {{"room", room}, {"kind", kind}});
}

void freed(const kv::PagePool& pool, std::span<const PageIndex> pages) {
  if (!canary_on()) return;
  for (const PageIndex page : pages) fill_page(pool, page);
}

void leased(const kv::PagePool& pool, std::span<const PageIndex> pages) {
  for (const PageIndex page : pages) {
    if (canary().pages.erase(page) != 0) check_page(pool, page);
  }
}

void watch(const kv::PagePool& pool, TimePoint now) {
  if (!canary_on() || now < canary().next) return;
  canary().next = now + kWatchInterval;
  std::vector<bool> held(pool.page_count(), false);
  for (const kv::LeaseInfo& lease : pool.leases()) {
    for (const kv::PageRun& run : lease.runs) {
      for (std::uint32_t i = 0; i < run.count; ++i) held[run.first + i] = true;
    }
  }
  // Also what committed rooms gave back: a peer that slept may wake up now.
  for (PageIndex page = 0; page < pool.page_count(); ++page) {
    if (!held[page] && !canary().pages.contains(page)) fill_page(pool, page);
  }
  for (const PageIndex page : canary().pages) {
    if (!check_page(pool, page)) fill_page(pool, page);
  }
}

void check_all(const kv::PagePool& pool) {
  if (!canary_on()) return;
  for (const PageIndex page : canary().pages) check_page(pool, page);
  log_info(
      "test: canary",
      {{"filled", canary().filled}, {"checked", canary().checked}, {"changed", canary().changed}});
}

bool unfenced() {
  static const bool on = !variable("KVD_TEST_UNFENCED").empty();
  return on;
}

void keep_open(std::unique_ptr<fabric::Endpoint> endpoint,
               std::unique_ptr<fabric::MemoryRegion> region) {
  if (endpoint != nullptr) kept_open().push_back({std::move(endpoint), std::move(region)});
}

void poll_kept_open() {
  std::vector<fabric::Completion> ignored(64);
  for (KeptOpen& kept : kept_open()) {
    while (kept.endpoint->poll(ignored) == ignored.size()) {
    }
  }
}

void close_kept_open() {
  for (KeptOpen& kept : kept_open()) {
    kept.region.reset();
    kept.endpoint.reset();
  }
  kept_open().clear();
}

}  // namespace kvd::transfer::faults
