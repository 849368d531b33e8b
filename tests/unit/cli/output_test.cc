#include "cli/output.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <csignal>
#include <cstddef>
#include <cstdlib>
#include <cstring>

#include "cli/exit_code.h"
#include "cli/input.h"
#include "cli/progress.h"
#include "cli/ready.h"
#include "cli/signals.h"

namespace kvd::cli {
namespace {

// stdout goes into a pipe while this lives.
class CapturedStdout {
 public:
  CapturedStdout() : saved_(::dup(STDOUT_FILENO)) {
    REQUIRE(::pipe(pipe_) == 0);
    REQUIRE(::dup2(pipe_[1], STDOUT_FILENO) >= 0);
    ::close(pipe_[1]);
  }
  ~CapturedStdout() {
    restore();
    close_reader();
  }
  void restore() {
    if (saved_ >= 0) {
      ::dup2(saved_, STDOUT_FILENO);
      ::close(saved_);
      saved_ = -1;
    }
  }
  void close_reader() {
    if (pipe_[0] >= 0) ::close(pipe_[0]);
    pipe_[0] = -1;
  }
  std::string take() {
    restore();
    std::string text(65536, '\0');
    const ssize_t n = ::read(pipe_[0], text.data(), text.size());
    text.resize(n > 0 ? static_cast<std::size_t>(n) : 0);
    return text;
  }

 private:
  int saved_;
  int pipe_[2] = {-1, -1};
};

}  // namespace

TEST_CASE("exit codes: every status maps to DESIGN's table") {
  const auto code = [](StatusCode c) { return exit_code(Status(c, "x")); };
  CHECK(exit_code(Status()) == 0);
  CHECK(code(StatusCode::kInvalidArgument) == 2);
  CHECK(code(StatusCode::kNotFound) == 2);
  CHECK(code(StatusCode::kUnauthorized) == 2);
  CHECK(code(StatusCode::kNoProvider) == 3);
  CHECK(code(StatusCode::kUnavailable) == 4);
  CHECK(code(StatusCode::kDeadline) == 4);
  CHECK(code(StatusCode::kIncompatible) == 5);
  CHECK(code(StatusCode::kCorrupted) == 6);
  CHECK(code(StatusCode::kFailed) == 7);
  CHECK(code(StatusCode::kResourceExhausted) == 7);
  CHECK(code(StatusCode::kCancelled) == 7);
  CHECK(code(StatusCode::kInternal) == 7);
}

TEST_CASE("json: keys keep their order, text is escaped, bad UTF-8 is replaced") {
  JsonWriter json;
  json.begin_object().field("b", 1).field("a", "x\"\n").field("bytes", "\xff");
  json.key("list").begin_array().value(true).null().value(0.5).begin_object().end_object();
  json.end_array().field("big", std::uint64_t{18446744073709551615u}).end_object();
  CHECK(json.take() ==
        "{\"b\":1,\"a\":\"x\\\"\\n\",\"bytes\":\"\xEF\xBF\xBD\",\"list\":[true,null,0.5,{}],"
        "\"big\":18446744073709551615}");
  CHECK(error_json(Status(StatusCode::kDeadline, "too \"late\"")).find("\\\"late\\\"\"}}") !=
        std::string::npos);
}

TEST_CASE("table: columns line up and numbers stand to the right") {
  TableWriter table({"worker", "queue"});
  table.add_row({"127.0.0.1:7100", "3"});
  table.add_row({"b:1", "12"});
  CHECK(table.render() == "worker          queue\n127.0.0.1:7100      3\nb:1                12\n");
}

TEST_CASE("output: a reader that went away ends the program quietly") {
  std::signal(SIGPIPE, SIG_IGN);
  CapturedStdout captured;
  captured.close_reader();
  const Status status = write_out("x\n");
  captured.restore();
  CHECK(status.code() == StatusCode::kCancelled);
  CHECK(report_error("kvd-x", status, false) == 0);
}

TEST_CASE("output: with --json an error is a document on stdout") {
  CapturedStdout captured;
  const int code = report_error("kvd-x", Status(StatusCode::kUnavailable, "nobody at a:1"), true);
  CHECK(captured.take() == error_json(Status(StatusCode::kUnavailable, "nobody at a:1")) + "\n");
  CHECK(code == 4);
}

TEST_CASE("ready: the line goes to stdout, the descriptor and the supervisor") {
  // An abstract name keeps the test clear of path lengths.
  const std::string name = "kvd-cli-test-" + std::to_string(::getpid());
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path + 1, name.data(), name.size());
  const int supervisor = ::socket(AF_UNIX, SOCK_DGRAM, 0);
  const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
  REQUIRE(::bind(supervisor, reinterpret_cast<sockaddr*>(&address), size) == 0);
  REQUIRE(::setenv("NOTIFY_SOCKET", ("@" + name).c_str(), 1) == 0);
  int ready[2];
  REQUIRE(::pipe(ready) == 0);

  CapturedStdout captured;
  const Status status = announce_ready("{\"event\":\"ready\"}", ready[1]);
  const std::string out = captured.take();
  ::unsetenv("NOTIFY_SOCKET");
  REQUIRE(status.ok());
  CHECK(out == "{\"event\":\"ready\"}\n");
  char buffer[256];
  ssize_t n = ::read(ready[0], buffer, sizeof(buffer));
  CHECK(std::string(buffer, static_cast<std::size_t>(n)) == "{\"event\":\"ready\"}\n");
  CHECK(::read(ready[0], buffer, sizeof(buffer)) == 0);  // closed behind the line
  n = ::recv(supervisor, buffer, sizeof(buffer), MSG_DONTWAIT);
  REQUIRE(n > 0);
  CHECK(std::string(buffer, static_cast<std::size_t>(n)) ==
        "READY=1\nMAINPID=" + std::to_string(::getpid()));
  ::close(ready[0]);
  ::close(supervisor);
}

TEST_CASE("ready: a descriptor that is not open for writing is refused") {
  CHECK(check_ready_fd(-1).ok());
  CHECK(check_ready_fd(987).code() == StatusCode::kInvalidArgument);
  const int fd = ::open("/dev/null", O_RDONLY);
  CHECK(check_ready_fd(fd).code() == StatusCode::kInvalidArgument);
  ::close(fd);
}

TEST_CASE("progress: the bar fills with what is done") {
  CHECK(progress_line("x", 5, 10) == "x [###############...............] 5/10");
  CHECK(progress_line("x", 7, 0) == "x 7");
  CHECK(progress_line("x", 20, 10) == "x [##############################] 20/10");
}

// In a child: a counted signal ends the input of the process for good.
TEST_CASE("signals: SIGTERM is counted, wakes a reader of stdin and ends nothing") {
  const pid_t child = ::fork();
  if (child == 0) {
    const std::atomic<int>& count = count_signals();
    int fds[2];
    if (::pipe(fds) != 0 || count.load() != 0) ::_exit(1);
    std::raise(SIGTERM);
    if (count.load() != 1) ::_exit(2);
    InputReader reader(fds[0]);  // nobody ever writes
    const auto text = reader.read_all();
    ::_exit(text.ok() && text->empty() ? 0 : 3);
  }
  int status = -1;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
}

}  // namespace kvd::cli
