// HTTP/1.1 server (Boost.Beast underneath): bounded, one strand a connection, keep-alive,
// streaming.
//
// The handler runs on a server thread and must not block for long; it answers through the
// Responder, then or later, from any thread.
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

struct Request {
  std::string method;  // "GET"; HEAD arrives as GET too, and its answer goes without the body
  std::string target;  // path without query
  std::string query;
  std::map<std::string, std::string> headers;  // names in lower case
  std::string body;
};

// Answers one request. Thread-safe. Dropping the last reference without an answer sends a 500.
class Responder {
 public:
  virtual ~Responder() = default;
  // The whole answer at once.
  virtual void send(int status, const std::string& content_type, std::string body,
                    const std::map<std::string, std::string>& headers = {}) = 0;
  // A streamed answer: head, chunks (each written at once, one HTTP chunk a call), end. False from
  // write(): the client is gone, or more than 4 MiB wait for it (then it is cut off).
  virtual void begin(int status, const std::string& content_type,
                     const std::map<std::string, std::string>& headers = {}) = 0;
  virtual bool write(std::string chunk) = 0;
  virtual void finish() = 0;
  // write() and finish() in one piece: some clients close as soon as they see the last event
  // (SGLang's router at "[DONE]"), and the connection stays usable only if the end of the answer
  // came with it.
  virtual void finish_with(std::string last_chunk) {
    write(std::move(last_chunk));
    finish();
  }
  // Breaks the connection in mid-answer, after what was written: how an error after begin() is made
  // visible.
  virtual void abort() = 0;
  // True once the client has gone away. `on_gone` is called once, on a server thread, when the
  // client goes away before the answer is finished (stop() counts as that); at once, by the caller,
  // if it has.
  virtual bool gone() const = 0;
  virtual void on_gone(std::function<void()> callback) = 0;
};

using Handler = std::function<void(Request, std::shared_ptr<Responder>)>;

struct ServerOptions {
  std::string listen;  // HOST:PORT, port 0 picks one
  int threads = 1;
  std::size_t max_body_bytes = 32u << 20;
  std::size_t max_connections = 4096;  // more wait in the kernel; the longest idle one makes room
  Duration idle_timeout{60'000'000'000};  // keep-alive, and slow request heads
  std::string api_key;  // empty: none; else Bearer, compared in constant time (401);
                        // /health needs none
};

class Server {
 public:
  // Binds and starts. kInvalidArgument "address already in use: HOST:PORT"; kNoProvider: no
  // permission.
  static Result<std::unique_ptr<Server>> start(const ServerOptions& options, Handler handler);
  virtual ~Server() = default;
  virtual std::string address() const = 0;  // HOST:PORT as bound
  // Stops accepting; open answers go on. Then stop() ends the threads and cuts what is left.
  // A finished answer still has a second to get out. Both may be called again; not from a handler.
  virtual void drain() = 0;
  virtual void stop() = 0;
};

}  // namespace kvd::http
