// Compares greedy tokens of the engine with golden ones:
//   kvd_golden_engine --model FILE --golden greedy.jsonl [--limit N] [--max-prompt N]
//                     [--concurrency N] [--cpu NAME] [--threads N] [--chunk N] [--page-size N]
// Prompts go in as token ids, in one process (kFull). An entry with a near tie counts up to that
// step. KVD_CPU chooses the kernels where --cpu does not. Exit: 0 all equal, 1 a difference, 2
// usage, 77 a file is missing.
#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "device/host_buffer.h"
#include "engine/engine.h"

namespace {

using kvd::TokenId;
namespace engine = kvd::engine;

struct Entry {
  std::string id;
  std::vector<TokenId> prompt, output;
  std::size_t compare = 0;  // leading output tokens that must be equal
};

// Collects tokens; wakes the main thread at each end.
class Collector final : public engine::EngineSink {
 public:
  void on_event(engine::EngineEvent event) override {
    std::lock_guard lock(mutex_);
    if (const auto* token = std::get_if<engine::TokenOut>(&event)) {
      tokens_[token->id].push_back(token->token.id);
    } else if (const auto* finished = std::get_if<engine::Finished>(&event)) {
      if (!finished->status.ok()) std::cerr << finished->status.message() << "\n";
      finished_.push_back(finished->id);
      wake_.notify_one();
    }
  }
  std::uint64_t wait() {
    std::unique_lock lock(mutex_);
    if (!wake_.wait_for(lock, std::chrono::minutes(30), [this] { return !finished_.empty(); })) {
      std::cerr << "no answer in 30 minutes\n";
      std::exit(1);
    }
    const std::uint64_t id = finished_.back();
    finished_.pop_back();
    return id;
  }
  std::vector<TokenId> take(std::uint64_t id) {
    std::lock_guard lock(mutex_);
    return std::move(tokens_[id]);
  }

 private:
  std::mutex mutex_;
  std::condition_variable wake_;
  std::map<std::uint64_t, std::vector<TokenId>> tokens_;
  std::vector<std::uint64_t> finished_;
};

struct Options {
  std::string golden;
  engine::EngineOptions engine;
  std::size_t limit = SIZE_MAX, max_prompt = SIZE_MAX, concurrency = 1;
};

std::vector<Entry> read_entries(const Options& options) {
  std::vector<Entry> entries;
  std::ifstream file(options.golden);
  for (std::string line; std::getline(file, line) && entries.size() < options.limit;) {
    const nlohmann::json json = nlohmann::json::parse(line);
    Entry entry;
    entry.id = json.at("id");
    entry.prompt = json.at("prompt_ids").get<std::vector<TokenId>>();
    entry.output = json.at("output_ids").get<std::vector<TokenId>>();
    entry.compare = json.at("near_tie").get<bool>() ? json.at("near_tie_step").get<std::size_t>()
                                                    : entry.output.size();
    if (entry.prompt.size() <= options.max_prompt) entries.push_back(std::move(entry));
  }
  return entries;
}

bool same(const Entry& entry, const std::vector<TokenId>& tokens) {
  for (std::size_t i = 0; i < entry.compare; ++i) {
    if (i < tokens.size() && tokens[i] == entry.output[i]) continue;
    std::cout << entry.id << ": output token " << i << " is "
              << (i < tokens.size() ? std::to_string(tokens[i]) : "missing") << ", golden "
              << entry.output[i] << "\n";
    return false;
  }
  return true;
}

int compare_all(engine::Engine& model, const Options& options, const std::vector<Entry>& entries) {
  const kvd::kv::KvLayout& layout = model.info().layout;
  std::uint32_t pages_each = 1;
  for (const Entry& entry : entries) {
    const auto tokens = entry.prompt.size() + entry.output.size();
    pages_each = std::max(pages_each, layout.pages_for(tokens));
  }
  const auto slots = static_cast<std::uint32_t>(options.concurrency);
  const std::uint32_t page_count = pages_each * slots;
  auto pool = kvd::device::HostBuffer::allocate(page_count * layout.page_bytes());
  if (!pool.ok()) return std::cerr << pool.status().message() << "\n", 2;
  Collector collector;
  model.start(pool->data(), page_count, &collector);
  std::map<std::uint64_t, std::uint32_t> slot_of;
  std::vector<std::uint32_t> free_slots;
  for (std::uint32_t s = 0; s < slots; ++s) free_slots.push_back(s);
  std::size_t next = 0, done = 0, wrong = 0;
  while (done < entries.size()) {
    while (next < entries.size() && !free_slots.empty()) {
      engine::SequenceRequest request;
      request.id = next;
      request.prompt = entries[next].prompt;
      request.sampling.temperature = 0;
      request.sampling.max_tokens = static_cast<std::uint32_t>(entries[next].output.size());
      for (std::uint32_t p = 0; p < pages_each; ++p) {
        request.pages.push_back(free_slots.back() * pages_each + p);
      }
      slot_of[next++] = free_slots.back();
      free_slots.pop_back();
      if (!model.submit(std::move(request))) return 1;
    }
    const std::uint64_t id = collector.wait();
    free_slots.push_back(slot_of[id]);
    ++done;
    if (!same(entries[id], collector.take(id))) ++wrong;
    if (isatty(2) != 0) std::cerr << "\r" << done << "/" << entries.size() << std::flush;
  }
  model.stop();
  std::cout << done - wrong << " of " << done << " entries equal (" << model.info().kernels << ", "
            << options.concurrency << " at once)\n";
  return wrong == 0 && done != 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  options.engine.max_running = 64;
  if (const char* cpu = std::getenv("KVD_CPU")) options.engine.cpu = cpu;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string flag = argv[i], value = argv[i + 1];
    const auto number = [&] { return static_cast<std::uint32_t>(std::stoul(value)); };
    if (flag == "--model")
      options.engine.model_path = value;
    else if (flag == "--golden")
      options.golden = value;
    else if (flag == "--limit")
      options.limit = number();
    else if (flag == "--max-prompt")
      options.max_prompt = number();
    else if (flag == "--concurrency")
      options.concurrency = number();
    else if (flag == "--cpu")
      options.engine.cpu = value;
    else if (flag == "--threads")
      options.engine.threads = number();
    else if (flag == "--chunk")
      options.engine.chunk = number();
    else if (flag == "--page-size")
      options.engine.page_size = number();
    else
      return std::cerr << "unknown flag " << flag << "\n", 2;
  }
  if (access(options.engine.model_path.c_str(), R_OK) != 0 ||
      access(options.golden.c_str(), R_OK) != 0) {
    std::cerr << "skipped: --model or --golden is missing or not readable\n";
    return 77;
  }
  auto model = engine::create_engine(options.engine, nullptr);
  if (!model.ok()) return std::cerr << model.status().message() << "\n", 2;
  const std::vector<Entry> entries = read_entries(options);
  return compare_all(**model, options, entries);
}
