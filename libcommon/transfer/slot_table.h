// Metadata slots on decode: where commit records land. Leased and freed like pages, by the same
// proofs.
//
// A slot is named by its index (20 bits) and the generation of its lease (12 bits), together the
// remote CQ data of the record. Its bytes are read only on that event; an event of another
// generation is stale: counted and dropped by the caller.
//
// Calling thread: the event loop's. The memory belongs to the caller and is written by peers while
// leased.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <vector>

#include "proto/commit_record.h"

namespace kvd::transfer {

struct SlotLease {
  std::uint32_t slot = 0;
  std::uint32_t generation = 0;
};

class SlotTable {
 public:
  // kSlotBytes * count bytes at `memory`, which must outlive the table; count < 2^20.
  SlotTable(std::byte* memory, std::uint32_t count);

  // None when all are leased. `owner` is the caller's key and never 0. Clears the slot's bytes, so
  // that no record of an earlier lease can be read as one of this lease.
  std::optional<SlotLease> lease(std::uint64_t owner);
  // Only with a proof that nobody can write it any more.
  void free(SlotLease lease);
  // The owner of the lease that an event names, 0 if it is stale or out of range.
  std::uint64_t owner(std::uint32_t slot, std::uint32_t generation) const;
  std::span<const std::byte, proto::kRecordBytes> record(std::uint32_t slot) const;

  // Of the slot's last lease.
  std::uint32_t generation(std::uint32_t slot) const { return slots_[slot].generation; }
  std::uint32_t size() const { return static_cast<std::uint32_t>(slots_.size()); }
  std::uint32_t available() const { return static_cast<std::uint32_t>(free_.size()); }

 private:
  struct Slot {
    std::uint64_t owner = 0;
    std::uint32_t generation = 0;
  };
  std::byte* memory_;
  std::vector<Slot> slots_;
  std::deque<std::uint32_t> free_;  // oldest first: a slot is reused as late as possible
};

}  // namespace kvd::transfer
