#include "control/messenger.h"

namespace kvd::control {

Messenger::Messenger(Channel* channel, Incarnation self, const Clock* clock, Metrics* metrics)
    : channel_(channel), self_(self), clock_(clock), log_limit_(std::chrono::seconds(1)) {
  if (metrics == nullptr) return;
  malformed_ =
      metrics->counter("kvd_control_malformed_total",
                       "Control messages that were malformed, of another version or refused.");
  stale_ = metrics->counter("kvd_control_stale_total",
                            "Control messages that were addressed to another incarnation.");
  counted_ = true;
}

std::optional<Received> Messenger::receive() {
  while (std::optional<Incoming> incoming = channel_->receive()) {
    proto::Envelope partial;
    const std::size_t size = incoming->bytes.size();
    Result<proto::Envelope> envelope = proto::decode_envelope(std::move(incoming->bytes), &partial);
    if (!envelope.ok()) {
      reject(*incoming, size, envelope.status(), partial);
      const bool counts = envelope.status().code() == StatusCode::kNotFound &&
                          partial.epoch.value != 0 && partial.to == self_;
      if (!counts) continue;
      return Received{incoming->from, std::move(incoming->identity), std::move(partial), true};
    }
    if (envelope->to && envelope->to != self_) {
      if (counted_) stale_.add();
      // A refusal is never refused: two sides would go on for ever.
      if (envelope->type != proto::MessageType::kStaleIncarnation &&
          envelope->type != proto::MessageType::kError) {
        // Best effort: if the sender is gone, it needs no answer.
        (void)send(incoming->from, envelope->from, proto::StaleIncarnation{self_.value},
                   envelope->room);
      }
      continue;
    }
    return Received{incoming->from, std::move(incoming->identity), std::move(*envelope), false};
  }
  return std::nullopt;
}

void Messenger::refuse(const Received& offender, const std::string& code, const std::string& text) {
  if (counted_) malformed_.add();
  std::uint64_t suppressed = 0;
  if (log_limit_.allow(clock_->now(), &suppressed)) {
    log_warn("control message refused", {{"type", proto::to_string(offender.envelope.type)},
                                         {"from", offender.envelope.from},
                                         {"code", code},
                                         {"why", text},
                                         {"suppressed", suppressed}});
  }
  if (offender.envelope.type == proto::MessageType::kError) return;
  (void)send(offender.from, offender.envelope.from, proto::Error{code, text, offender.envelope.seq},
             offender.envelope.room);
}

void Messenger::reject(const Incoming& incoming, std::size_t size, const Status& why,
                       const proto::Envelope& partial) {
  if (counted_) malformed_.add();
  if (unreadable_) unreadable_(incoming.from, why);
  std::uint64_t suppressed = 0;
  if (log_limit_.allow(clock_->now(), &suppressed)) {
    log_warn("control message dropped", {{"why", why.message()},
                                         {"bytes", size},
                                         {"from", partial.from},
                                         {"suppressed", suppressed}});
  }
  // `partial` says kError when the type could not be read: whoever sent that does not speak kvd, or
  // sent an Error, and neither is answered. An unknown type of our own version is somebody newer.
  const bool unknown_type = why.code() == StatusCode::kNotFound;
  if (partial.type == proto::MessageType::kError && !unknown_type) return;
  const char* code = unknown_type                              ? "unknown_type"
                     : why.code() == StatusCode::kIncompatible ? "version"
                                                               : "malformed";
  (void)send(incoming.from, partial.from, proto::Error{code, why.message(), partial.seq},
             partial.room);
}

}  // namespace kvd::control
