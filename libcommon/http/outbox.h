// One answer on its way out: what a Responder was given, framed for HTTP/1.x, until the connection
// takes it.
//
// Invariants: the bytes go out in the order of the calls; after the answer is finished, aborted or
// detached nothing is added; on_gone's callback runs at most once, and never under the lock.
// Threads: the Responder's half from any thread, the connection's half on the connection's strand.
// Ownership: shared by the connection and its Responder. `poke` is called under the lock, must only
// post, and is dropped at detach(), so that a late Responder keeps neither connection nor server
// alive.
#pragma once

#include <atomic>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "http/server.h"

namespace kvd::http {

// What of the request shapes the framing of its answer.
struct AnswerForm {
  bool http10 = false;      // no chunks: a stream ends with the connection
  bool keep_alive = false;  // the client would like to go on
  bool head_only = false;   // HEAD: no body
};

class Outbox {
 public:
  static constexpr std::size_t kMaxBacklog = 4U << 20U;
  // kCut: the client reads too slowly; nothing more is worth sending.
  enum class State { kOpen, kStreaming, kDone, kAborted, kCut };

  // `closing` (the server drains) turns keep-alive off; it is shared, since an answer may outlive
  // the server.
  Outbox(AnswerForm form, std::shared_ptr<const std::atomic<bool>> closing,
         std::function<void()> poke)
      : form_(form), closing_(std::move(closing)), poke_(std::move(poke)) {}

  // The Responder's half.
  void send(int status, const std::string& content_type, std::string body,
            const std::map<std::string, std::string>& headers);
  void begin(int status, const std::string& content_type,
             const std::map<std::string, std::string>& headers);
  bool write(std::string_view chunk);
  void finish(std::string_view last_chunk);
  void abort();
  bool gone() const;
  void on_gone(std::function<void()> callback);
  void dropped();

  // The connection's half.
  // Moves what waits to the end of *out and says how far the answer is.
  State take(std::deque<std::string>* out);
  State state() const;
  void written(std::size_t bytes);
  // Known once the head has been made: the connection may carry another request.
  bool keeps_alive() const;
  // Whether the client can tell a broken stream from a finished one.
  bool is_chunked() const { return !form_.http10; }
  // The connection is leaving: if the answer is unfinished, its client counts as gone.
  void detach();

 private:
  bool append_head(int status, const std::string& content_type,
                   const std::map<std::string, std::string>& headers, std::string* head);
  void push(std::string bytes);
  void poke();

  const AnswerForm form_;
  const std::shared_ptr<const std::atomic<bool>> closing_;
  mutable std::mutex mutex_;
  std::function<void()> poke_;     // empty once detached
  std::function<void()> on_gone_;  // empty once called or of no use
  std::deque<std::string> queue_;
  std::size_t backlog_ = 0;  // bytes given and not yet in the kernel
  State state_ = State::kOpen;
  bool poked_ = false;
  bool gone_ = false;
  bool keep_alive_ = false;
};

// The handle that a handler gets.
std::shared_ptr<Responder> make_responder(std::shared_ptr<Outbox> outbox);

}  // namespace kvd::http
