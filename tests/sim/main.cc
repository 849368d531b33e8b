// Runs seeds of the simulation in parallel processes and adds up what they met.
//
//   kvd_sim [--first-seed S] [--seeds N] [--jobs J] [--named] [--coverage] [--progress] [--log]
//
// --coverage: prints it, and cells without hits fail the run. --named: the seeds that failed once.
// --log: what the workers log, for a single seed. kvd_sim_planted takes --planted NAME as well, and
// passes when a seed shows the defect. Exit code 0 passed, 1 a seed failed or coverage is missing,
// 2 usage.
#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <csignal>
#include <cstring>
#include <iostream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/log.h"
#include "sim/coverage.h"
#include "sim/scenario.h"
#ifdef KVD_PLANTED_DEFECTS
#include "transfer/planted.h"
#endif

namespace kvd::sim {
namespace {

constexpr std::size_t kMaxJobs = 64;
constexpr std::uint64_t kMaxFailures = 5;  // of one process

struct Options {
  std::uint64_t first = 1, seeds = 100;
  std::size_t jobs = 0;
  bool named = false, coverage = false, progress = false, log = false;
  std::string planted;
};

// What processes tell each other while they run: shared memory.
struct Board {
  std::array<std::uint64_t, kMaxJobs> running{}, done{};
  std::uint64_t stop = 0;  // a planted defect was found
};

struct Job {
  pid_t pid = -1;
  int pipe = -1;
  std::string text;  // failures, a line each; then the coverage
  bool complete = false;
};

bool number(const char* text, std::uint64_t* out) {
  const char* end = text + std::strlen(text);
  const auto [at, error] = std::from_chars(text, end, *out);
  return error == std::errc() && at == end && end != text;
}

bool parse(int argc, char** argv, Options* options) {
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    const char* value = i + 1 < argc ? argv[i + 1] : "";
    std::uint64_t jobs = 0;
    if (flag == "--named") {
      options->named = true;
    } else if (flag == "--coverage") {
      options->coverage = true;
    } else if (flag == "--progress") {
      options->progress = true;
    } else if (flag == "--log") {
      options->log = true;
    } else if (flag == "--seeds" && number(value, &options->seeds)) {
      ++i;
    } else if (flag == "--first-seed" && number(value, &options->first)) {
      ++i;
    } else if (flag == "--jobs" && number(value, &jobs) && jobs > 0 && jobs <= kMaxJobs) {
      options->jobs = jobs;
      ++i;
    } else if (flag == "--planted" && *value != '\0') {
      options->planted = value;
      ++i;
    } else {
      std::cerr << argv[0] << ": " << flag
                << " is unknown, or its value is not a number in range\n";
      return false;
    }
  }
  return true;
}

std::string replay(const Options& options, std::uint64_t seed) {
  if (options.planted.empty()) return "scripts/sim-seeds 1 --first-seed " + std::to_string(seed);
  return "kvd_sim_planted --planted " + options.planted + " --seeds 1 --first-seed " +
         std::to_string(seed);
}

void write_all(int fd, const void* data, std::size_t bytes) {
  const char* at = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t put = ::write(fd, at, bytes);
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) _exit(1);
    at += put;
    bytes -= static_cast<std::size_t>(put);
  }
}

std::vector<std::uint64_t> seeds_of(const Options& options, std::size_t job, std::size_t jobs) {
  std::vector<std::uint64_t> seeds;
  if (options.named) {
    for (std::size_t i = job; i < named_seeds().size(); i += jobs) {
      seeds.push_back(named_seeds()[i].seed);
    }
    return seeds;
  }
  for (std::uint64_t i = job; i < options.seeds; i += jobs) seeds.push_back(options.first + i);
  return seeds;
}

void run_job(const Options& options, std::size_t job, std::size_t jobs, Board* board, int out) {
  std::uint64_t failures = 0;
  for (const std::uint64_t seed : seeds_of(options, job, jobs)) {
    if (failures == kMaxFailures || __atomic_load_n(&board->stop, __ATOMIC_RELAXED) != 0) break;
    __atomic_store_n(&board->running[job], seed, __ATOMIC_RELAXED);
    const std::string wrong = run_seed(seed);
    __atomic_fetch_add(&board->done[job], 1, __ATOMIC_RELAXED);
    if (wrong.empty()) continue;
    ++failures;
    if (!options.planted.empty()) __atomic_store_n(&board->stop, 1, __ATOMIC_RELAXED);
    const std::string text =
        "seed " + std::to_string(seed) + ":\n" + wrong + "replay: " + replay(options, seed) + "\n";
    write_all(out, text.data(), text.size());
  }
  // A zero byte, which no text has, tells that the seeds were run to the end.
  write_all(out, "", 1);
  write_all(out, &coverage(), sizeof(Coverage));
}

std::uint64_t done_of(const Board& board) {
  std::uint64_t done = 0;
  for (const std::uint64_t& count : board.done) done += __atomic_load_n(&count, __ATOMIC_RELAXED);
  return done;
}

// Reads what the processes write until all have ended.
void collect(std::vector<Job>* jobs, const Options& options, const Board& board) {
  const auto begin = std::chrono::steady_clock::now();
  for (;;) {
    std::vector<pollfd> fds;
    for (const Job& job : *jobs) {
      if (job.pipe >= 0) fds.push_back({job.pipe, POLLIN, 0});
    }
    if (fds.empty()) break;
    ::poll(fds.data(), fds.size(), 1000);
    for (Job& job : *jobs) {
      for (const pollfd& ready : fds) {
        if (job.pipe != ready.fd || ready.revents == 0) continue;
        char buffer[4096];
        const ssize_t got = ::read(job.pipe, buffer, sizeof buffer);
        if (got > 0) job.text.append(buffer, static_cast<std::size_t>(got));
        if (got > 0 || (got < 0 && errno == EINTR)) continue;
        ::close(job.pipe);
        job.pipe = -1;
      }
    }
    if (!options.progress) continue;
    const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - begin;
    const std::uint64_t done = done_of(board);
    std::cerr << "\r" << done << " seeds, "
              << static_cast<std::uint64_t>(static_cast<double>(done) / spent.count())
              << " a second   " << std::flush;
  }
  if (options.progress) std::cerr << "\n";
}

bool start(const Options& options, std::size_t count, Board* board, std::vector<Job>* jobs) {
  for (std::size_t i = 0; i < count; ++i) {
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC) != 0) return false;
    const pid_t pid = ::fork();
    if (pid < 0) return false;
    if (pid == 0) {
      ::close(ends[0]);
      run_job(options, i, count, board, ends[1]);
      _exit(0);
    }
    ::close(ends[1]);
    jobs->push_back({pid, ends[0], {}, false});
  }
  return true;
}

// The failures of all jobs; adds up their coverage.
std::string results(std::vector<Job>* jobs, const Options& options, const Board& board,
                    Coverage* sum) {
  std::string failures;
  for (std::size_t i = 0; i < jobs->size(); ++i) {
    Job& job = (*jobs)[i];
    int status = 0;
    while (::waitpid(job.pid, &status, 0) < 0 && errno == EINTR) {
    }
    const std::size_t end = job.text.find('\0');
    failures += job.text.substr(0, end);
    if (end != std::string::npos && job.text.size() == end + 1 + sizeof(Coverage)) {
      Coverage part;
      std::memcpy(&part, job.text.data() + end + 1, sizeof part);
      sum->add(part);
      continue;
    }
    failures += "seed " + std::to_string(board.running[i]) + ":\nthe process ended" +
                (WIFSIGNALED(status) ? " by signal " + std::to_string(WTERMSIG(status))
                                     : " with " + std::to_string(WEXITSTATUS(status))) +
                "\nreplay: " + replay(options, board.running[i]) + "\n";
  }
  return failures;
}

int verdict(const Options& options, const std::string& failures, const Coverage& sum,
            std::uint64_t done) {
  std::cout << failures;
  if (!options.planted.empty()) {
    std::cout << options.planted << ": " << (failures.empty() ? "NOT found in " : "found within ")
              << done << " seeds\n";
    return failures.empty() ? 1 : 0;
  }
  std::string holes;
  if (options.coverage) {
    std::cout << print(sum);
    holes = missing(sum);
    std::cout << holes;
  }
  const bool good = failures.empty() && holes.empty() && done > 0;
  std::cout << done << " seeds, " << sum.counts[0] << " rooms: " << (good ? "passed" : "FAILED")
            << "\n";
  return good ? 0 : 1;
}

int run(int argc, char** argv) {
  Options options;
  if (!parse(argc, argv, &options)) return 2;
#ifdef KVD_PLANTED_DEFECTS
  if (!transfer::planted::choose(options.planted)) {
    std::cerr << argv[0] << ": no such defect: '" << options.planted << "'\n";
    return 2;
  }
#else
  if (!options.planted.empty()) {
    std::cerr << argv[0] << ": defects are planted in kvd_sim_planted only\n";
    return 2;
  }
#endif
  configure_log(options.log ? LogLevel::kDebug : LogLevel::kOff, LogFormat::kText, "sim");
  void* memory =
      ::mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return 1;
  Board* board = new (memory) Board;
  const std::size_t cores = std::max(1u, std::thread::hardware_concurrency());
  const std::size_t wanted = options.jobs != 0 ? options.jobs : std::min(cores, kMaxJobs);
  std::vector<Job> jobs;
  if (!start(options, std::min<std::uint64_t>(wanted, std::max<std::uint64_t>(options.seeds, 1)),
             board, &jobs)) {
    std::cerr << argv[0] << ": cannot start processes: " << std::strerror(errno) << "\n";
    return 1;
  }
  collect(&jobs, options, *board);
  Coverage sum;
  const std::string failures = results(&jobs, options, *board, &sum);
  return verdict(options, failures, sum, done_of(*board));
}

}  // namespace
}  // namespace kvd::sim

int main(int argc, char** argv) { return kvd::sim::run(argc, argv); }
