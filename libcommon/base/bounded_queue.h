// The only way between the event loop, the engine and the HTTP threads: a bounded queue with many
// producers and one consumer. Full is a result, never a block, except where push_wait is named.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <mutex>
#include <utility>
#include <vector>

namespace kvd {

// An eventfd that wakes a thread out of poll(2). Thread-safe.
class Waker {
 public:
  Waker();
  ~Waker();
  Waker(const Waker&) = delete;
  Waker& operator=(const Waker&) = delete;
  int fd() const { return fd_; }
  void wake() const;
  void clear() const;

 private:
  int fd_;
};

template <typename T>
class BoundedQueue {
 public:
  // `waker` (may be null) is woken at every push into an empty queue; it must outlive the queue.
  explicit BoundedQueue(std::size_t capacity, const Waker* waker = nullptr)
      : capacity_(capacity), waker_(waker) {}

  // False when full or closed; `item` is then untouched.
  bool try_push(T&& item) {
    {
      std::lock_guard lock(mutex_);
      if (closed_ || items_.size() >= capacity_) return false;
      items_.push_back(std::move(item));
      if (items_.size() > 1) return true;
    }
    announce();
    return true;
  }

  // Waits for room; false when the queue was closed. Only for producers that may block (the engine
  // towards a consumer that never waits for it).
  bool push_wait(T&& item) {
    {
      std::unique_lock lock(mutex_);
      space_.wait(lock, [&] { return closed_ || items_.size() < capacity_; });
      if (closed_) return false;
      items_.push_back(std::move(item));
      if (items_.size() > 1) return true;
    }
    announce();
    return true;
  }

  // Takes everything there is, in order; never blocks.
  std::vector<T> drain() {
    std::vector<T> out;
    std::lock_guard lock(mutex_);
    out.reserve(items_.size());
    for (T& item : items_) out.push_back(std::move(item));
    items_.clear();
    space_.notify_all();
    return out;
  }

  // Waits until there is something to drain or the queue is closed; false when closed and empty.
  bool wait() {
    std::unique_lock lock(mutex_);
    data_.wait(lock, [&] { return closed_ || !items_.empty(); });
    return !items_.empty();
  }

  void close() {
    std::lock_guard lock(mutex_);
    closed_ = true;
    space_.notify_all();
    data_.notify_all();
  }

  std::size_t size() const {
    std::lock_guard lock(mutex_);
    return items_.size();
  }

 private:
  void announce() {
    data_.notify_one();
    if (waker_ != nullptr) waker_->wake();
  }

  const std::size_t capacity_;
  const Waker* const waker_;
  mutable std::mutex mutex_;
  std::condition_variable space_, data_;
  std::deque<T> items_;
  bool closed_ = false;
};

}  // namespace kvd
