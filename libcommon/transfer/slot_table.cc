#include "transfer/slot_table.h"

#include <cstring>

#include "base/check.h"

namespace kvd::transfer {

SlotTable::SlotTable(std::byte* memory, std::uint32_t count) : memory_(memory), slots_(count) {
  KVD_CHECK(count > 0 && count < (1u << proto::kSlotBits));
  for (std::uint32_t i = 0; i < count; ++i) free_.push_back(i);
}

std::optional<SlotLease> SlotTable::lease(std::uint64_t owner) {
  KVD_CHECK(owner != 0);
  if (free_.empty()) return std::nullopt;
  const std::uint32_t index = free_.front();
  free_.pop_front();
  Slot& slot = slots_[index];
  slot.owner = owner;
  slot.generation = (slot.generation + 1) & ((1u << proto::kGenerationBits) - 1);
  std::memset(memory_ + std::size_t{index} * proto::kSlotBytes, 0, proto::kSlotBytes);
  return SlotLease{index, slot.generation};
}

void SlotTable::free(SlotLease lease) {
  KVD_CHECK(lease.slot < slots_.size());
  Slot& slot = slots_[lease.slot];
  KVD_CHECK(slot.owner != 0 && slot.generation == lease.generation);
  slot.owner = 0;
  free_.push_back(lease.slot);
}

std::uint64_t SlotTable::owner(std::uint32_t slot, std::uint32_t generation) const {
  if (slot >= slots_.size() || slots_[slot].generation != generation) return 0;
  return slots_[slot].owner;
}

std::span<const std::byte, proto::kRecordBytes> SlotTable::record(std::uint32_t slot) const {
  KVD_CHECK(slot < slots_.size());
  return std::span<const std::byte, proto::kRecordBytes>(
      memory_ + std::size_t{slot} * proto::kSlotBytes, proto::kRecordBytes);
}

}  // namespace kvd::transfer
