// The bytes of KvSender's rooms: pages as layers finish, the commit record, the scratch write of a
// drain.
#include <algorithm>
#include <cstring>

#include "base/log.h"
#include "transfer/faults.h"
#include "transfer/planted.h"
#include "transfer/sender_impl.h"
#include "transfer/write_plan.h"

namespace kvd::transfer {

// Queues layers of group `group` for all complete pages below `until` that were not queued yet.
void KvSender::Impl::write_pages(SenderRoom* room, std::size_t group, std::uint32_t until) {
  if (until <= room->written[group]) return;
  const PageMap map{pool_, pool_->pages(room->lease), room->destination, room->link->region};
  auto writes =
      plan_writes(map, groups_[group], room->written[group], until, room->link->capabilities());
  room->written[group] = until;
  enqueue(room, std::move(writes));
}

// After compute: everything not queued yet. Whole pages where nothing of them is (--no-stream).
void KvSender::Impl::write_remaining(SenderRoom* room) {
  const auto pages = static_cast<std::uint32_t>(room->destination.size());
  const std::uint32_t most = *std::max_element(room->written.begin(), room->written.end());
  for (std::size_t group = 0; group < groups_.size(); ++group) write_pages(room, group, most);
  room->streamed = most;
  if (most == pages) return;
  const PageMap map{pool_, pool_->pages(room->lease), room->destination, room->link->region};
  auto writes =
      plan_writes(map, {0, pool_->layout().layers}, most, pages, room->link->capabilities());
  std::fill(room->written.begin(), room->written.end(), pages);
  enqueue(room, std::move(writes));
}

void KvSender::Impl::enqueue(SenderRoom* room, std::vector<fabric::QueuedWrite> writes) {
  if constexpr (faults::kBuilt) faults::tamper(room->id, *pool_, &writes);
  if (writes.empty()) return;
  if (room->state == room::RoomState::kWaitingForInput) {
    log_debug("first pages queued", {{"room", room->id}, {"writes", writes.size()}});
    apply(room, room::Event::kWriting);
  }
  const bool ordered = room->link->capabilities().write_after_write;
  room->queued_writes += writes.size();
  for (fabric::QueuedWrite& write : writes) {
    write.delivery_complete = !ordered;
    write.tag = kPageTag;
    room->pieces += write.remote.size();
    room->link->pipeline->enqueue(room->id.value, std::move(write));
  }
}

// The commit record, or the scratch word behind an aborted stream.
void KvSender::Impl::enqueue_control(SenderRoom* room, Tag tag) {
  const SenderLink& link = *room->link;
  if (room->cell == nullptr) room->cell = staging_.take();
  KVD_CHECK(room->cell != nullptr);  // there is a cell for every room and every link
  const std::uint64_t slot =
      link.region.base + link.request.slots_offset + std::uint64_t{room->slot} * proto::kSlotBytes;
  fabric::QueuedWrite write;
  write.delivery_complete = true;
  write.tag = tag;
  if (tag == kScratchTag) {
    std::byte* word = room->cell + proto::kScratchOffset;
    std::memcpy(word, &link.epoch.value, sizeof link.epoch.value);
    write.local.push_back({word, sizeof link.epoch.value});
    write.remote.push_back(
        {slot + proto::kScratchOffset, sizeof link.epoch.value, link.region.key});
  } else {
    proto::CommitRecord record;
    record.room = room->id;
    record.epoch = link.epoch;
    record.incarnation = messenger_->self();
    record.generation = room->generation;
    record.tokens = room->tokens;
    record.pages = static_cast<std::uint32_t>(room->destination.size());
    record.streamed = room->streamed;
    record.digest = room->digest->finish();
    record.first = room->first;
    record.queue_ns =
        static_cast<std::uint64_t>((room->compute_began - room->opened + room->queued).count());
    record.compute_ns = static_cast<std::uint64_t>(room->compute.count());
    record.posted_at_ns = static_cast<std::uint64_t>(clock_->now().ns);
    record.boot_id = boot_id();
    proto::encode_record(
        record, std::span<std::byte, proto::kRecordBytes>(room->cell, proto::kRecordBytes));
    write.local.push_back({room->cell, proto::kRecordBytes});
    write.remote.push_back({slot, proto::kRecordBytes, link.region.key});
    if (link.capabilities().remote_cq_data) {
      write.remote_data = proto::remote_data(room->slot, room->generation);
    }
  }
  write.urgent = true;  // decode waits for it, and a drain has a deadline
  link.pipeline->enqueue(room->id.value, std::move(write));
}

// The record goes when the last page is posted (ordered streams) or has completed (the others).
// Until then the digest follows the writes that have completed.
void KvSender::Impl::close_rooms(SenderLink* link) {
  const bool ordered = link->capabilities().write_after_write;
  for (std::size_t i = 0; i < link->closing.size();) {
    SenderRoom* room = find_on(link, link->closing[i]);
    bool done = room == nullptr || !room->computed || room->state != room::RoomState::kTransferring;
    if (!done && link->pipeline->queued(room->id.value) == 0 &&
        (ordered || link->pipeline->inflight(room->id.value) == 0)) {
      enqueue_control(room, kRecordTag);
      room->record_queued = true;
      log_debug("commit record queued", {{"room", room->id}, {"slot", room->slot}});
      done = true;
    }
    if (done) {
      link->closing[i] = link->closing.back();
      link->closing.pop_back();
    } else {
      room->digest->take(room->destination.size() * room->completed_writes / room->queued_writes);
      ++i;
    }
  }
}

// A failed room whose queue is purged: posted writes complete, then one delivery-complete write
// behind them proves that they have landed. Where writes are not ordered each of them has proven
// itself.
void KvSender::Impl::continue_drain(SenderRoom* room) {
  // A write that ended in an error is not drained: the link's end says so for all of its rooms.
  if (!room->link->end.ok()) return;
  if (room->scratch_queued || room->link->pipeline->inflight(room->id.value) != 0) return;
  if (room->completed_writes == 0 || !room->link->capabilities().write_after_write) {
    apply(room, room::Event::kDrained);
    return;
  }
  room->scratch_queued = true;
  enqueue_control(room, kScratchTag);
}

void KvSender::Impl::on_test_write(SenderLink* link) {
  link->ready = true;
  staging_.give_back(link->test_cell);
  link->test_cell = nullptr;
  if (!link->capabilities().remote_cq_data) {
    send(link, RoomId{}, proto::Committed{link->request.test_slot, link->request.test_generation});
  }
  log_info("link ready", {{"peer", link->peer},
                          {"epoch", link->epoch.value},
                          {"provider", link->capabilities().provider}});
}

void KvSender::Impl::on_completion(SenderLink* link, const fabric::Completion& completion) {
  if (completion.kind == fabric::CompletionKind::kFault) {
    link->end = completion.status.with_context("the endpoint failed");
    links_to_end_ = true;
    return;
  }
  const auto result = link->pipeline->on_completion(completion);
  if (!result) return;
  if (!result->status.ok()) {
    if constexpr (planted::kBuilt) {
      const bool moved = link->pipeline->writes_completed() > 0;  // else it would go on for ever
      if (planted::is(planted::Defect::kLinkResumed) && moved) return resume_link(link);
      SenderRoom* room = find_on(link, RoomId{result->stream});
      if (planted::is(planted::Defect::kErrorIsDrained) && room != nullptr &&
          room->drain == room::Drain::kPending) {
        apply(room, room::Event::kDrained);
      }
    }
    // Not drained, whatever else completes: the room and all others of this link end unproven.
    link->end = result->status.with_context("a write to the peer failed");
    links_to_end_ = true;
    return;
  }
  if (result->stream == kLinkStream) return on_test_write(link);
  if (SenderRoom* room = find_on(link, RoomId{result->stream})) on_room_write(room, *result);
}

void KvSender::Impl::on_room_write(SenderRoom* room, const fabric::WriteResult& result) {
  ++room->completed_writes;
  if (room->first_posted.ns == 0) room->first_posted = result.posted;
  room->first_posted = std::min(room->first_posted, result.posted);
  if (result.tag == kPageTag) {
    ++room->writes;
    room->bytes += result.bytes;
    room->link->new_bytes += result.bytes;
  }
  if (result.tag == kRecordTag) {
    room->record_done = true;
    room->record_posted = result.posted;
  }
  if (result.tag == kScratchTag) room->scratch_done = true;
  if constexpr (faults::kBuilt) faults::at_write(room->completed_writes);
  // The last write proves that all have landed; the sources are free once all have completed, too.
  if (room->link->pipeline->inflight(room->id.value) != 0) return;
  if (room->record_done) {
    room->finished = clock_->now();
    if (room->state == room::RoomState::kTransferring &&
        !room->link->capabilities().remote_cq_data) {
      send(room->link, room->id, proto::Committed{room->slot, room->generation});
    }
    return apply(room, room::Event::kCommit);
  }
  if (room->scratch_done) return apply(room, room::Event::kDrained);
  if (room->state == room::RoomState::kFailed && room->drain == room::Drain::kPending) {
    continue_drain(room);
  }
}

#ifdef KVD_PLANTED_DEFECTS
// What kvd never does: everything once more, over the endpoint that had the error.
void KvSender::Impl::resume_link(SenderLink* link) {
  link->pipeline = std::make_unique<fabric::WritePipeline>(
      link->endpoint.get(), link->handle, link->capabilities(), clock_, options_.dead_after);
  link->closing.clear();
  if (!link->ready) {
    staging_.give_back(std::exchange(link->test_cell, nullptr));
    link->test_posted = false;
  }
  for (RoomId id : link->rooms) {
    SenderRoom* room = find_on(link, id);
    if (room == nullptr || room->over) continue;
    room->record_queued = room->record_done = room->scratch_queued = room->scratch_done = false;
    if (room->drain == room::Drain::kPending) continue_drain(room);
    if (room->state != room::RoomState::kTransferring) continue;
    for (std::size_t group = 0; group < groups_.size(); ++group) {
      write_pages(room, group, std::exchange(room->written[group], 0));
    }
    if (room->computed) link->closing.push_back(id);
  }
}
#endif

// Where bytes move only while the endpoint is polled (sockets) a link is polled for as long as that
// takes time, since then it moves some: all else of the loop has left the caches by the time that
// the kernel has copied a MiB, and a tour of the loop for each cost 3 % of the bandwidth (loopback,
// bbr, pages of 720 KiB, ratio to plain writes: 0.95, with a kStay of 200 us 0.971, 500 us 0.982,
// 1 ms 0.991). The price is that a message waits for up to kStay while bytes move.
bool KvSender::Impl::pump(SenderLink* link) {
  constexpr Duration kStay{500'000}, kMovedBytes{5'000};  // an empty poll takes 1 us or less
  constexpr int kRounds = 8;
  const bool by_polls = fabric::takes_by_looks(link->capabilities());
  const TimePoint began = clock_->now();
  bool busy = false;
  for (int round = 1; link->end.ok(); ++round) {
    link->pipeline->pump();
    close_rooms(link);
    link->pipeline->pump();
    const TimePoint polled = clock_->now();
    const std::size_t count = link->endpoint->poll(completions_);
    const TimePoint now = clock_->now();
    if (count != 0) link->last_progress = now;
    for (std::size_t i = 0; i < count && link->end.ok(); ++i) {
      on_completion(link, completions_[i]);
    }
    if (link->end.ok() && !link->pipeline->health().ok()) {
      link->end = link->pipeline->health();
      links_to_end_ = true;
    }
    busy = busy || count != 0;
    const bool moves =
        count != 0 || (by_polls && !link->pipeline->idle() && now - polled >= kMovedBytes);
    const bool others_turn = by_polls ? now - began >= kStay / links_.size() : round == kRounds;
    if (!moves || others_turn) break;
  }
  if (link->new_bytes != 0) {
    metrics_.bytes(link->capabilities().provider, to_string(link->peer), link->new_bytes);
    link->new_bytes = 0;
  }
  return busy;
}

}  // namespace kvd::transfer
