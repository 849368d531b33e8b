#include "engine/mock/mock_model.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace kvd::engine {
namespace {

constexpr std::uint32_t kVocab = 257;  // of the byte tokenizer: bytes and the end
constexpr std::uint32_t kFirstPrintable = 32, kPrintable = 95;
constexpr std::size_t kLineBytes = 64;

struct ShapeRow {
  const char* name;
  std::uint32_t layers, kv_heads, head_dim, context;
};
constexpr ShapeRow kShapes[] = {
    {"smollm2-135m", 30, 3, 64, 8192},
    {"llama-3.1-8b", 32, 8, 128, 131072},
    {"llama-3.1-70b", 80, 8, 128, 131072},
    {"qwen3-32b", 64, 8, 128, 40960},
    {"tiny", 2, 1, 32, 65536},
};

// The finalizer of splitmix64: every bit of the input changes half of the output.
std::uint64_t mix(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9U;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBU;
  return x ^ (x >> 31);
}

std::uint64_t extend(std::uint64_t hash, TokenId token) {
  return mix(hash + 0x9E3779B97F4A7C15U * (static_cast<std::uint64_t>(token) + 1));
}

// Hash of each prefix: hashes[i] covers tokens[0..i].
std::vector<std::uint64_t> prefix_hashes(std::span<const TokenId> tokens) {
  std::vector<std::uint64_t> hashes;
  hashes.reserve(tokens.size());
  std::uint64_t hash = 0x6B766420656E67U;
  for (TokenId token : tokens) hashes.push_back(hash = extend(hash, token));
  return hashes;
}

// 8 bytes of K or V of one token in one layer and head; `word` counts within the head's row.
std::uint64_t pattern(std::uint64_t hash, std::uint32_t layer, bool value, std::uint32_t head,
                      std::uint64_t word) {
  const std::uint64_t place = (std::uint64_t{layer} * 2 + (value ? 1 : 0)) * 4096 + head;
  return mix(hash ^ (place << 32)) + word * 0x9E3779B97F4A7C15U;
}

class MockChatTemplate final : public ChatTemplate {
 public:
  explicit MockChatTemplate(const Tokenizer* tokenizer) : tokenizer_(tokenizer) {}
  std::string name() const override { return "mock"; }
  Result<std::vector<TokenId>> apply(std::span<const ChatMessage> messages,
                                     bool add_generation_prompt) const override {
    Result<std::string> text = render(messages, add_generation_prompt);
    if (!text.ok()) return text.status();
    return tokenizer_->encode(*text);
  }
  Result<std::string> render(std::span<const ChatMessage> messages,
                             bool add_generation_prompt) const override {
    if (messages.empty()) return invalid_argument("messages must not be empty");
    std::string text;
    for (const ChatMessage& message : messages) {
      text += message.role + ": " + message.content + "\n";
    }
    return add_generation_prompt ? text + "assistant: " : text;
  }

 private:
  const Tokenizer* tokenizer_;
};

}  // namespace

Result<MockShape> find_mock_shape(const std::string& name, std::uint32_t page_size) {
  std::string names;
  for (const ShapeRow& row : kShapes) {
    if (name == row.name) {
      MockShape shape;
      shape.name = name;
      shape.context = row.context;
      shape.layout.layers = row.layers;
      shape.layout.kv_heads = row.kv_heads;
      shape.layout.head_dim = row.head_dim;
      shape.layout.page_size = page_size;
      KVD_RETURN_IF_ERROR(shape.layout.validate());
      return shape;
    }
    names += (names.empty() ? "" : ", ") + std::string(row.name);
  }
  return invalid_argument("shape \"" + name + "\" is not known; use one of " + names);
}

MockModel::MockModel(const MockShape& shape, double us_per_token)
    : shape_(shape), us_per_token_(us_per_token) {}

std::uint32_t MockModel::vocab() const { return kVocab; }

void MockModel::attach_pool(std::byte* base, std::uint32_t) { pool_ = base; }

void MockModel::write_token(std::byte* page, std::uint32_t layer, std::uint32_t slot,
                            std::uint64_t hash) const {
  const kv::KvLayout& layout = shape_.layout;
  const std::size_t words = std::size_t{layout.head_dim} * layout.element_bytes / 8;
  for (const bool value : {false, true}) {
    for (std::uint32_t head = 0; head < layout.kv_heads; ++head) {
      std::byte* out = page + layout.offset(layer, value, head, slot);
      const std::uint64_t first = pattern(hash, layer, value, head, 0);
      for (std::size_t w = 0; w < words; ++w) {
        const std::uint64_t word = first + w * 0x9E3779B97F4A7C15U;
        std::memcpy(out + 8 * w, &word, 8);
      }
    }
  }
}

// Lines are taken in an order that meets every line of a page's valid tokens in turn.
Status MockModel::verify(const Segment& segment, std::span<const std::uint64_t> hashes) const {
  const kv::KvLayout& layout = shape_.layout;
  const std::uint64_t row_bytes = std::uint64_t{layout.head_dim} * layout.element_bytes;
  const std::uint64_t line_bytes = std::min<std::uint64_t>(kLineBytes, row_bytes);
  const std::uint64_t lines_a_row = row_bytes / line_bytes;
  const std::uint64_t rows = std::uint64_t{layout.layers} * 2 * layout.kv_heads;
  for (std::uint32_t begin = 0; begin < segment.position; begin += layout.page_size) {
    const std::uint32_t valid = std::min(layout.page_size, segment.position - begin);
    const std::uint64_t line = segment.position % (rows * valid * lines_a_row);
    const auto slot = static_cast<std::uint32_t>(line % valid);
    const std::uint64_t part = line / valid % lines_a_row;
    const std::uint64_t row = line / valid / lines_a_row;
    const auto head = static_cast<std::uint32_t>(row % layout.kv_heads);
    const bool value = row / layout.kv_heads % 2 != 0;
    const auto layer = static_cast<std::uint32_t>(row / layout.kv_heads / 2);
    const PageIndex page = segment.pages[begin / layout.page_size];
    const std::byte* at = pool_ + page * layout.page_bytes() +
                          layout.offset(layer, value, head, slot) + part * line_bytes;
    for (std::uint64_t w = 0; w < line_bytes / 8; ++w) {
      const std::uint64_t expected =
          pattern(hashes[begin + slot], layer, value, head, part * line_bytes / 8 + w);
      if (std::memcmp(at + 8 * w, &expected, 8) != 0) {
        return {StatusCode::kCorrupted,
                "page " + std::to_string(page) + " does not hold what was computed: layer " +
                    std::to_string(layer) + ", " + (value ? "V" : "K") + ", head " +
                    std::to_string(head) + ", token " + std::to_string(begin + slot)};
      }
    }
  }
  return {};
}

std::vector<Model::StepError> MockModel::forward(std::span<const Segment> segments,
                                                 const std::function<void(std::uint32_t)>& on_layer,
                                                 std::span<const float>* logits) {
  const TimePoint start = clock_.now();
  const kv::KvLayout& layout = shape_.layout;
  std::vector<StepError> errors;
  std::vector<std::vector<std::uint64_t>> hashes;
  std::size_t tokens = 0, wanted = 0;
  for (std::size_t i = 0; i < segments.size(); ++i) {
    hashes.push_back(prefix_hashes(segments[i].history));
    tokens += segments[i].tokens.size();
    wanted += segments[i].want_logits ? 1 : 0;
    if (segments[i].tokens.size() != 1) continue;
    Status status = verify(segments[i], hashes.back());
    if (!status.ok()) errors.push_back({i, std::move(status)});
  }
  const double total_ns = us_per_token_ * 1e3 * static_cast<double>(tokens);
  for (std::uint32_t layer = 0; layer < layout.layers; ++layer) {
    for (std::size_t i = 0; i < segments.size(); ++i) {
      for (std::size_t t = 0; t < segments[i].tokens.size(); ++t) {
        const auto position = segments[i].position + static_cast<std::uint32_t>(t);
        std::byte* page =
            pool_ + segments[i].pages[position / layout.page_size] * layout.page_bytes();
        write_token(page, layer, position % layout.page_size, hashes[i][position]);
      }
    }
    const double share = static_cast<double>(layer + 1) / layout.layers;
    wait_until(start + Duration(static_cast<std::int64_t>(total_ns * share)));
    if (on_layer) on_layer(layer);
  }
  logits_.assign(wanted * kVocab, -100.0F);
  std::size_t row = 0;
  for (std::size_t i = 0; i < segments.size(); ++i) {
    if (!segments[i].want_logits) continue;
    const std::uint64_t draw = mix(hashes[i].back() ^ 0x746F6B656EU);
    logits_[row++ * kVocab + kFirstPrintable + draw % kPrintable] = 100.0F;
  }
  *logits = logits_;
  return errors;
}

void MockModel::wait_until(TimePoint due) {
  const Duration left = due - clock_.now();
  // Shorter waits than a timer's slack are made up for by a later layer's.
  if (left < std::chrono::microseconds(50)) return;
  std::unique_lock lock(mutex_);
  wake_.wait_for(lock, left, [this] { return interrupted_; });
}

void MockModel::interrupt() {
  {
    std::lock_guard lock(mutex_);
    interrupted_ = true;
  }
  wake_.notify_all();
}

std::unique_ptr<ChatTemplate> make_mock_chat_template(const Tokenizer* tokenizer) {
  return std::make_unique<MockChatTemplate>(tokenizer);
}

}  // namespace kvd::engine
