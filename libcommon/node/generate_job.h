// One prompt of `kvd-route generate` on its way: the request body, and the answer as it comes,
// whole or as a stream, from the router in this process or from a server.
//
// Thread-safe. `changed` is called after each change, without a lock held; its argument says that
// the job has just ended. After the end nothing changes any more.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "http/body_edit.h"
#include "http/server.h"
#include "node/generate.h"

namespace kvd::node {

// The body of the request. kInvalidArgument: text that is no UTF-8, JSON that is none.
Result<std::string> generate_body(const GenerateOptions& options, const Prompt& prompt, bool chat);

class GenerateJob {
 public:
  static constexpr std::size_t kMaxBytes = 64u << 20;  // of one answer

  // `clock` must outlive it.
  GenerateJob(std::uint64_t index, std::string id, bool stream, const Clock* clock,
              std::function<void(bool ended)> changed);

  std::uint64_t index() const { return index_; }

  // The answer.
  void head(int status);
  void bytes(std::string_view data);
  void end(const Status& status);

  // How to stop it; called at most once.
  void on_cancel(std::function<void()> cancel);
  // Ends it as interrupted, with what there is.
  void cancel();
  bool ended() const;

  // Moves new text of choice 0 of a stream to the end of *text; true once the job has ended.
  bool take(std::string* text);
  // After the end.
  GenerateResult result() const;

 private:
  struct ChoiceState {
    std::string text, finish_reason;
  };
  Status absorb(const http::Answer& answer);
  Status absorb_stream(std::string_view data);
  Status outcome(const Status& end);
  std::string json(const GenerateResult& result) const;

  const std::uint64_t index_;
  const std::string id_;
  const bool stream_;
  const Clock* clock_;
  const std::function<void(bool)> changed_;
  const TimePoint started_;

  mutable std::mutex mutex_;  // guards the rest
  int http_status_ = 0;
  std::string body_;
  std::size_t received_ = 0;
  http::SseReader events_;
  bool done_seen_ = false;
  std::map<std::uint32_t, ChoiceState> choices_;
  std::vector<http::KvdInfo> kvd_;
  http::Usage usage_;
  bool usage_known_ = false;
  std::string fresh_;
  double first_text_ms_ = -1, total_ms_ = -1;
  Status broken_;  // an error within the answer
  Status status_;
  bool ended_ = false;
  std::function<void()> cancel_;
};

// A GenerateJob as the client of an http::Handler in the same process.
class JobResponder final : public http::Responder {
 public:
  explicit JobResponder(std::shared_ptr<GenerateJob> job) : job_(std::move(job)) {}
  ~JobResponder() override;
  void send(int status, const std::string& content_type, std::string body,
            const std::map<std::string, std::string>& headers) override;
  void begin(int status, const std::string& content_type,
             const std::map<std::string, std::string>& headers) override;
  bool write(std::string chunk) override;
  void finish() override;
  void abort() override;
  bool gone() const override { return job_->ended(); }
  void on_gone(std::function<void()> callback) override { job_->on_cancel(std::move(callback)); }

 private:
  std::shared_ptr<GenerateJob> job_;
};

}  // namespace kvd::node
