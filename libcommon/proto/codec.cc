#include "proto/codec.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <exception>
#include <msgpack/null_visitor.hpp>
#include <msgpack/object.hpp>
#include <msgpack/pack.hpp>
#include <msgpack/unpack.hpp>
#include <optional>

#include "base/units.h"
#include "proto/wire.h"

static_assert(std::endian::native == std::endian::little,
              "tokens and runs are copied as they lie in memory");
static_assert(sizeof(kvd::proto::PageRunInfo) == 8, "and nothing lies between");

namespace kvd::proto {
namespace {

// A struct has a few dozen fields; more entries than this are not kvd's.
constexpr std::uint32_t kMaxFields = 256;

struct StringSink {
  std::string* out;
  void write(const char* data, std::size_t size) { out->append(data, size); }
};

// Walks the bytes without building anything, so that what is built afterwards is bounded by what
// was really sent: msgpack's own unpacker reserves for an array's claimed length at its header.
class BoundsVisitor : public msgpack::null_visitor {
 public:
  bool visit_nil() { return item(); }
  bool visit_boolean(bool) { return item(); }
  bool visit_positive_integer(std::uint64_t) { return item(); }
  bool visit_negative_integer(std::int64_t) { return item(); }
  bool visit_float32(float) { return item(); }
  bool visit_float64(double) { return item(); }
  bool visit_str(const char*, std::uint32_t size) {
    return item() && check(size <= Bounds::kMaxString, "a string is too long");
  }
  bool visit_bin(const char*, std::uint32_t) { return item(); }
  bool visit_ext(const char*, std::uint32_t) { return item(); }
  bool start_array(std::uint32_t count) { return open(count); }
  bool start_map(std::uint32_t count) { return open(count); }
  bool end_array() { return close(); }
  bool end_map() { return close(); }
  void parse_error(std::size_t, std::size_t) { fault_ = "not MessagePack"; }
  void insufficient_bytes(std::size_t, std::size_t) { fault_ = "cut short"; }

  const char* fault() const { return fault_; }

 private:
  bool check(bool good, const char* fault) {
    if (!good) fault_ = fault;
    return good;
  }
  bool item() { return check(++items_ <= Bounds::kMaxItems, "too many items"); }
  bool open(std::uint32_t count) {
    return item() && check(count <= Bounds::kMaxItems, "too many items") &&
           check(++depth_ <= Bounds::kMaxDepth, "nested too deep");
  }
  bool close() {
    --depth_;
    return true;
  }

  std::uint32_t depth_ = 0;
  std::uint64_t items_ = 0;  // of the whole message
  const char* fault_ = "malformed";
};

// A long prompt has 131,072 tokens: this looks at sixteen at a time.
bool any_negative(std::span<const TokenId> tokens) {
  std::array<TokenId, 16> all{};
  std::size_t i = 0;
  for (; i + all.size() <= tokens.size(); i += all.size()) {
    for (std::size_t k = 0; k < all.size(); ++k) all[k] |= tokens[i + k];
  }
  for (; i < tokens.size(); ++i) all[0] |= tokens[i];
  return std::any_of(all.begin(), all.end(), [](TokenId token) { return token < 0; });
}

const msgpack::object& object_of(const Value& value) {
  return reinterpret_cast<const msgpack::object&>(value);
}
const Value& value_of(const msgpack::object& object) {
  return reinterpret_cast<const Value&>(object);
}

}  // namespace

Result<std::size_t> skip_object(std::string_view bytes, std::size_t offset) {
  try {
    BoundsVisitor visitor;
    if (!msgpack::parse(bytes.data(), bytes.size(), offset, visitor)) {
      return invalid_argument(visitor.fault());
    }
    return offset;
  } catch (const std::exception& error) {
    return invalid_argument(std::string("malformed: ") + error.what());
  }
}

std::optional<std::uint64_t> read_uint(std::string_view object) {
  struct UintVisitor : msgpack::null_visitor {
    std::optional<std::uint64_t> value;
    bool visit_positive_integer(std::uint64_t v) {
      value = v;
      return true;
    }
  } visitor;
  std::size_t offset = 0;
  try {
    if (!msgpack::parse(object.data(), object.size(), offset, visitor)) return std::nullopt;
  } catch (const std::exception&) {
    return std::nullopt;
  }
  return visitor.value;
}

// --- Writer ------------------------------------------------------------------------------------

void Writer::put_array(std::uint32_t count) {
  StringSink sink{out_};
  msgpack::packer<StringSink>(sink).pack_array(count);
}
void Writer::put_map(std::uint32_t count) {
  StringSink sink{out_};
  msgpack::packer<StringSink>(sink).pack_map(count);
}
void Writer::put_uint(std::uint64_t value) {
  StringSink sink{out_};
  msgpack::packer<StringSink>(sink).pack_uint64(value);
}
void Writer::put_str(std::string_view value) {
  StringSink sink{out_};
  msgpack::packer<StringSink> packer(sink);
  packer.pack_str(static_cast<std::uint32_t>(value.size()));
  packer.pack_str_body(value.data(), static_cast<std::uint32_t>(value.size()));
}
void Writer::put_bin(std::string_view value) {
  // A prompt is long, and the pages that follow it shall not make the string move it.
  constexpr std::size_t kLong = 4096;
  if (value.size() > kLong) out_->reserve(out_->size() + value.size() + value.size() / 4 + kLong);
  StringSink sink{out_};
  msgpack::packer<StringSink> packer(sink);
  packer.pack_bin(static_cast<std::uint32_t>(value.size()));
  packer.pack_bin_body(value.data(), static_cast<std::uint32_t>(value.size()));
}
void Writer::put(float value, Real) {
  StringSink sink{out_};
  msgpack::packer<StringSink>(sink).pack_float(value);
}
void Writer::put(bool value, Flag) {
  StringSink sink{out_};
  msgpack::packer<StringSink> packer(sink);
  value ? packer.pack_true() : packer.pack_false();
}

void Writer::put(const std::string& value, Prose bound) {
  std::string_view text = value;
  if (text.size() > bound.max) {
    std::size_t end = bound.max;
    while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xc0) == 0x80) --end;
    text = text.substr(0, end);
  }
  if (is_valid_utf8(text)) return put_str(text);
  std::string ascii(text);
  for (char& c : ascii) {
    if (static_cast<unsigned char>(c) >= 0x80) c = '?';
  }
  put_str(ascii);
}

void Writer::put(const std::vector<TokenId>& value, TokenBin) {
  put_bin({reinterpret_cast<const char*>(value.data()), value.size() * sizeof(TokenId)});
}

void Writer::put(const std::vector<std::string>& value, Texts) {
  put_array(static_cast<std::uint32_t>(value.size()));
  for (const std::string& item : value) put_str(item);
}

void Writer::put(const std::vector<PageRunInfo>& value, Runs) {
  put_bin({reinterpret_cast<const char*>(value.data()), value.size() * sizeof(PageRunInfo)});
}

// --- Reader ------------------------------------------------------------------------------------

struct Document::Impl {
  msgpack::zone zone;
  msgpack::object root;
};

Document::Document(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Document::Document(Document&&) noexcept = default;
Document& Document::operator=(Document&&) noexcept = default;
Document::~Document() = default;
const Value& Document::root() const { return value_of(impl_->root); }

Result<Document> Document::parse(std::string_view bytes) {
  if (bytes.size() > Bounds::kMaxBytes) return invalid_argument("longer than 8 MiB");
  Result<std::size_t> end = skip_object(bytes, 0);
  if (!end.ok()) return end.status();
  if (*end != bytes.size()) return invalid_argument("bytes after the end");
  try {
    auto impl = std::make_unique<Impl>();
    std::size_t offset = 0;
    // Strings stay in `bytes`, which outlives the document.
    const auto by_reference = [](msgpack::type::object_type, std::size_t, void*) { return true; };
    impl->root = msgpack::unpack(impl->zone, bytes.data(), bytes.size(), offset, by_reference);
    return Document(std::move(impl));
  } catch (const std::exception& error) {
    return invalid_argument(std::string("malformed: ") + error.what());
  }
}

Reader::Reader(const Value& map, std::string path) : map_(&map), path_(std::move(path)) {
  const msgpack::object& object = object_of(map);
  if (object.type != msgpack::type::MAP) {
    status_ = invalid_argument(path_ + ": not a map");
    return;
  }
  if (object.via.map.size > kMaxFields) {
    status_ = invalid_argument(path_ + ": too many fields");
    return;
  }
  for (std::uint32_t i = 0; i < object.via.map.size; ++i) {
    if (object.via.map.ptr[i].key.type != msgpack::type::STR) {
      status_ = invalid_argument(path_ + ": a field's name is not a string");
      return;
    }
  }
}

void Reader::fail(std::string_view name, std::string_view what) {
  status_ = invalid_argument(path_ + "." + std::string(name) + ": " + std::string(what));
}

const Value* Reader::find(std::string_view name, bool required) {
  if (!status_.ok()) return nullptr;
  const msgpack::object_map& map = object_of(*map_).via.map;
  const msgpack::object* found = nullptr;
  for (std::uint32_t i = 0; i < map.size; ++i) {
    const msgpack::object_str& key = map.ptr[i].key.via.str;
    if (std::string_view(key.ptr, key.size) != name) continue;
    if (found != nullptr) {
      fail(name, "given twice");
      return nullptr;
    }
    found = &map.ptr[i].val;
  }
  if (found == nullptr) {
    if (required) fail(name, "missing");
    return nullptr;
  }
  return &value_of(*found);
}

bool Reader::get_uint(const Value& value, std::string_view name, std::uint64_t max, Uint bound,
                      std::uint64_t* out) {
  const msgpack::object& object = object_of(value);
  if (object.type != msgpack::type::POSITIVE_INTEGER) {
    fail(name, "not an unsigned integer");
    return false;
  }
  const std::uint64_t number = object.via.u64;
  max = std::min(max, bound.max);
  if (number < bound.min || number > max) {
    fail(name, std::to_string(number) + " is not within " + std::to_string(bound.min) + ".." +
                   std::to_string(max));
    return false;
  }
  *out = number;
  return true;
}

void Reader::get(const Value& value, std::string_view name, float& out, Real bound) {
  const msgpack::object& object = object_of(value);
  double number = 0;
  switch (object.type) {
    case msgpack::type::FLOAT32:
    case msgpack::type::FLOAT64:
      number = object.via.f64;
      break;
    case msgpack::type::POSITIVE_INTEGER:
      number = static_cast<double>(object.via.u64);
      break;
    case msgpack::type::NEGATIVE_INTEGER:
      number = static_cast<double>(object.via.i64);
      break;
    default:
      return fail(name, "not a number");
  }
  // Compared as it will be stored: a double just above 0 may become a float that is 0. Not a number
  // and infinity are within no bounds.
  const bool finite =
      std::isfinite(number) && std::abs(number) <= std::numeric_limits<float>::max();
  const float narrow = finite ? static_cast<float>(number) : 0.0F;
  if (!finite || narrow < bound.min || narrow > bound.max || (bound.open && narrow == bound.min)) {
    return fail(name, std::to_string(number) + " is out of range");
  }
  out = narrow;
}

void Reader::get(const Value& value, std::string_view name, bool& out, Flag) {
  const msgpack::object& object = object_of(value);
  if (object.type != msgpack::type::BOOLEAN) return fail(name, "not a boolean");
  out = object.via.boolean;
}

bool Reader::get_str(const Value& value, std::string_view name, std::size_t min, std::size_t max,
                     std::string* out) {
  const msgpack::object& object = object_of(value);
  if (object.type != msgpack::type::STR) {
    fail(name, "not a string");
    return false;
  }
  const std::string_view text(object.via.str.ptr, object.via.str.size);
  if (text.size() < min || text.size() > max) {
    fail(name, text.size() < min ? "too short" : "too long");
    return false;
  }
  if (!is_valid_utf8(text)) {
    fail(name, "not UTF-8");
    return false;
  }
  out->assign(text);
  return true;
}

void Reader::get(const Value& value, std::string_view name, std::string& out, OneOf bound) {
  std::string text;
  if (!get_str(value, name, 0, Text::kMaxName, &text)) return;
  if (std::find(bound.names.begin(), bound.names.end(), text) == bound.names.end()) {
    return fail(name, "not one of its values");
  }
  out = std::move(text);
}

void Reader::get(const Value& value, std::string_view name, std::string& out, Bin bound) {
  const msgpack::object& object = object_of(value);
  if (object.type != msgpack::type::BIN) return fail(name, "not binary");
  const std::size_t size = object.via.bin.size;
  if (size < bound.min || size > bound.max) {
    return fail(name, size < bound.min ? "too short" : "too long");
  }
  out.assign(object.via.bin.ptr, size);
}

void Reader::get(const Value& value, std::string_view name, std::vector<TokenId>& out,
                 TokenBin bound) {
  const msgpack::object& object = object_of(value);
  if (object.type != msgpack::type::BIN) return fail(name, "not binary");
  const std::size_t bytes = object.via.bin.size, count = bytes / sizeof(TokenId);
  if (bytes % sizeof(TokenId) != 0) return fail(name, "not whole tokens");
  if (count < bound.min || count > bound.max) {
    return fail(name, count < bound.min ? "too few tokens" : "too many tokens");
  }
  // They lie in the message at any address. A part at a time is looked at while it is in the cache.
  std::array<TokenId, 1024> part;
  out.clear();
  out.reserve(count);
  for (std::size_t at = 0; at < count; at += part.size()) {
    const std::size_t n = std::min(part.size(), count - at);
    std::memcpy(part.data(), object.via.bin.ptr + at * sizeof(TokenId), n * sizeof(TokenId));
    if (any_negative({part.data(), n})) return fail(name, "a token is negative");
    out.insert(out.end(), part.begin(), part.begin() + static_cast<std::ptrdiff_t>(n));
  }
}

bool Reader::get_list(const Value& value, std::string_view name, std::size_t max,
                      std::vector<const Value*>* out) {
  const msgpack::object& object = object_of(value);
  if (object.type != msgpack::type::ARRAY) {
    fail(name, "not an array");
    return false;
  }
  const msgpack::object_array& array = object.via.array;
  if (array.size > max) {
    fail(name, "too many items");
    return false;
  }
  out->reserve(array.size);
  for (std::uint32_t i = 0; i < array.size; ++i) out->push_back(&value_of(array.ptr[i]));
  return true;
}

void Reader::get(const Value& value, std::string_view name, std::vector<std::string>& out,
                 Texts bound) {
  std::vector<const Value*> items;
  if (!get_list(value, name, bound.max_count, &items)) return;
  out.clear();
  for (const Value* item : items) {
    if (!get_str(*item, name, bound.min_bytes, bound.max_bytes, &out.emplace_back())) return;
  }
}

void Reader::get(const Value& value, std::string_view name, std::vector<PageRunInfo>& out,
                 Runs bound) {
  const msgpack::object& object = object_of(value);
  if (object.type != msgpack::type::BIN) return fail(name, "not binary");
  const std::size_t bytes = object.via.bin.size, count = bytes / sizeof(PageRunInfo);
  if (bytes % sizeof(PageRunInfo) != 0) return fail(name, "not whole runs");
  if (count > bound.max) return fail(name, "too many runs");
  out.resize(count);
  if (count != 0) std::memcpy(out.data(), object.via.bin.ptr, bytes);
}

}  // namespace kvd::proto
