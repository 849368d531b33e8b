// HTTP/1.1 client (Boost.Beast underneath) for the router, generate and the benchmarks.
// Asynchronous: a thread of its own runs all calls and their callbacks. Keep-alive connections are
// reused.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "base/clock.h"
#include "base/status.h"

namespace kvd::http {

struct ClientRequest {
  std::string url;  // "http://HOST:PORT/path"
  std::string method = "GET";
  std::map<std::string, std::string> headers;
  std::string body;
  Duration connect_timeout{2'000'000'000};
  Duration timeout{600'000'000'000};  // of the whole exchange
};

struct ResponseHead {
  int status = 0;
  std::map<std::string, std::string> headers;  // names in lower case
};

// All on the client's thread; on_end exactly once and last. Its Status: ok when the answer came
// whole.
struct ClientCallbacks {
  std::function<void(const ResponseHead&)> on_head;
  std::function<void(std::string_view)>
      on_data;  // body bytes as they come (chunks decoded, borders kept)
  std::function<void(Status)> on_end;
};

class Call {
 public:
  virtual ~Call() = default;
  // Closes the connection; on_end(kCancelled) follows if it has not been called.
  virtual void cancel() = 0;
};

class Client {
 public:
  static std::unique_ptr<Client> create();
  virtual ~Client() = default;  // cancels what runs, then joins
  virtual std::shared_ptr<Call> start(ClientRequest request, ClientCallbacks callbacks) = 0;

  // Waits for the whole answer. Not from a callback.
  struct Response {
    ResponseHead head;
    std::string body;
  };
  Result<Response> fetch(ClientRequest request);
};

}  // namespace kvd::http
