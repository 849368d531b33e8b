#include "probe/write_run.h"

namespace kvd::probe {

Status WriteRun::start(const RunOptions& options) {
  options_ = options;
  rounds_.clear();
  waiting_ = false;
  done_ = true;
  KVD_RETURN_IF_ERROR(writer_->start(options_.order));
  const TimePoint now = clock_->now();
  end_ = now + options_.time;
  next_ = now + options_.least_gap;
  done_ = false;
  return {};
}

void WriteRun::begin_round() {
  waiting_ = false;
  // The order was good for the first round: it is for this one.
  (void)writer_->start(options_.order).ok();
  next_ = writer_->began() + options_.least_gap;
  (void)writer_->step();
}

bool WriteRun::step() {
  if (done_) return false;
  if (waiting_) {
    if (clock_->now() < next_) return false;
    begin_round();
  }
  const bool busy = writer_->step();
  if (writer_->running()) return busy;
  if (!writer_->health().ok()) {
    done_ = true;
    return true;
  }
  const TimePoint now = clock_->now();
  rounds_.push_back(static_cast<std::uint64_t>((now - writer_->began()).count()));
  if (now >= end_ || rounds_.size() >= options_.most) {
    done_ = true;
  } else if (now < next_) {
    waiting_ = true;
  } else {
    begin_round();
  }
  return true;
}

}  // namespace kvd::probe
