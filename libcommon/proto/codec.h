// How a message's fields go to the wire and back. Private to proto/*.cc.
//
// A message is described once, by a function template `fields(visitor, message)` beside its
// `validate(message)`. Three visitors walk it: Writer, Reader and Lister (for the specification's
// test). KVD_PROTO_MESSAGE instantiates all three, so a message without one of the two functions
// does not compile, and messages.cc does not compile while a type of KVD_MESSAGE_TYPES has no
// struct.
//
// Bounds are given with the field. Reader enforces them; Writer only shortens Prose, because a text
// that quotes somebody else's error may be of any length. Errors: kInvalidArgument, naming the
// field.
#pragma once

#include <concepts>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "base/sampling.h"
#include "proto/envelope.h"
#include "proto/messages.h"

namespace kvd::proto {

template <typename M, typename T>
concept Is = std::same_as<std::remove_const_t<M>, T>;

// Bounds of one field.
struct Uint {  // an unsigned integer; max is also cut to the C++ type's range
  std::uint64_t min = 0;
  std::uint64_t max = std::numeric_limits<std::uint64_t>::max();
};
struct Real {  // finite, min <= x <= max, or min < x where `open`
  float min, max;
  bool open = false;
};
struct Flag {};
struct Text {  // UTF-8
  std::size_t max = kMaxName;
  std::size_t min = 0;
  static constexpr std::size_t kMaxName = 1024;
};
struct Prose {  // UTF-8 for people, shortened by the sender
  std::size_t max = 4096;
};
struct OneOf {
  std::span<const std::string_view> names;
};
struct Bin {
  std::size_t max, min = 0;
};
constexpr std::size_t kMaxAddress = 256;  // of a fabric address, bytes
struct TokenBin {  // little-endian int32, each at least 0
  std::size_t max, min = 0;
};
struct Texts {
  std::size_t max_count, max_bytes, min_bytes = 0;
};
struct Runs {  // little-endian uint32: first, count, first, count, ...
  std::size_t max;
};
struct Map {};  // a nested struct
struct Maps {   // an array of nested structs
  std::size_t max;
};

// --- writing -----------------------------------------------------------------------------------

class FieldCounter {
 public:
  template <typename T, typename Bound>
  void must(std::string_view, const T&, Bound) {
    ++count_;
  }
  template <typename T, typename Bound>
  void may(std::string_view, const T&, Bound) {
    ++count_;
  }
  std::uint32_t count() const { return count_; }

 private:
  std::uint32_t count_ = 0;
};

class Writer {
 public:
  explicit Writer(std::string* out) : out_(out) {}

  template <typename T, typename Bound>
  void must(std::string_view name, const T& value, Bound bound) {
    put_str(name);
    put(value, bound);
  }
  template <typename T, typename Bound>
  void may(std::string_view name, const T& value, Bound bound) {
    must(name, value, bound);
  }

  template <typename Struct>
  void map(const Struct& value) {
    FieldCounter counter;
    fields(counter, value);
    put_map(counter.count());
    fields(*this, value);
  }

  void put_array(std::uint32_t count);
  void put_map(std::uint32_t count);
  void put_uint(std::uint64_t value);
  void put_str(std::string_view value);
  void put_bin(std::string_view value);

 private:
  void put(std::uint64_t value, Uint) { put_uint(value); }
  void put(float value, Real);
  void put(bool value, Flag);
  void put(const std::string& value, Text) { put_str(value); }
  void put(const std::string& value, OneOf) { put_str(value); }
  void put(const std::string& value, Prose bound);
  void put(const std::string& value, Bin) { put_bin(value); }
  void put(const std::vector<TokenId>& value, TokenBin);
  void put(const std::vector<std::string>& value, Texts);
  void put(const std::vector<PageRunInfo>& value, Runs);
  template <typename Struct>
  void put(const Struct& value, Map) {
    map(value);
  }
  template <typename Struct>
  void put(const std::vector<Struct>& value, Maps) {
    put_array(static_cast<std::uint32_t>(value.size()));
    for (const Struct& item : value) map(item);
  }

  std::string* out_;
};

// --- reading -----------------------------------------------------------------------------------

struct Value;  // one decoded MessagePack object, owned by a Document

// A parsed body. Nothing is allocated for what the bytes only claim to hold.
class Document {
 public:
  static Result<Document> parse(std::string_view bytes);
  Document(Document&&) noexcept;
  Document& operator=(Document&&) noexcept;
  ~Document();
  const Value& root() const;

 private:
  struct Impl;
  explicit Document(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

class Reader {
 public:
  // `path` is what errors call the map: "Register.layout".
  Reader(const Value& map, std::string path);

  template <typename T, typename Bound>
  void must(std::string_view name, T& out, Bound bound) {
    if (const Value* value = find(name, true)) get(*value, name, out, bound);
  }
  template <typename T, typename Bound>
  void may(std::string_view name, T& out, Bound bound) {
    if (const Value* value = find(name, false)) get(*value, name, out, bound);
  }

  // The first fault; reading goes no further after it.
  const Status& status() const { return status_; }

 private:
  const Value* find(std::string_view name, bool required);
  void fail(std::string_view name, std::string_view what);
  bool get_uint(const Value& value, std::string_view name, std::uint64_t max, Uint bound,
                std::uint64_t* out);
  bool get_str(const Value& value, std::string_view name, std::size_t min, std::size_t max,
               std::string* out);
  bool get_list(const Value& value, std::string_view name, std::size_t max,
                std::vector<const Value*>* out);

  template <std::unsigned_integral T>
  requires(!std::same_as<T, bool>) void get(const Value& value, std::string_view name, T& out,
                                            Uint bound) {
    std::uint64_t number = 0;
    if (get_uint(value, name, std::numeric_limits<T>::max(), bound, &number)) {
      out = static_cast<T>(number);
    }
  }
  void get(const Value& value, std::string_view name, float& out, Real bound);
  void get(const Value& value, std::string_view name, bool& out, Flag);
  void get(const Value& value, std::string_view name, std::string& out, Text bound) {
    get_str(value, name, bound.min, bound.max, &out);
  }
  void get(const Value& value, std::string_view name, std::string& out, Prose bound) {
    get_str(value, name, 0, bound.max, &out);
  }
  void get(const Value& value, std::string_view name, std::string& out, OneOf bound);
  void get(const Value& value, std::string_view name, std::string& out, Bin bound);
  void get(const Value& value, std::string_view name, std::vector<TokenId>& out, TokenBin bound);
  void get(const Value& value, std::string_view name, std::vector<std::string>& out, Texts bound);
  void get(const Value& value, std::string_view name, std::vector<PageRunInfo>& out, Runs bound);
  template <typename Struct>
  void get(const Value& value, std::string_view name, Struct& out, Map) {
    Reader inner(value, path_ + "." + std::string(name));
    if (inner.status().ok()) fields(inner, out);
    if (!inner.status().ok()) status_ = inner.status();
  }
  template <typename Struct>
  void get(const Value& value, std::string_view name, std::vector<Struct>& out, Maps bound) {
    std::vector<const Value*> items;
    if (!get_list(value, name, bound.max, &items)) return;
    out.clear();
    for (const Value* item : items) {
      get(*item, name, out.emplace_back(), Map{});
      if (!status_.ok()) return;
    }
  }

  const Value* map_;
  std::string path_;
  Status status_;
};

// --- listing -----------------------------------------------------------------------------------

// Names and wire types of the fields, for the test that holds kvd-protocol.7 against the code.
class Lister {
 public:
  Lister(std::vector<FieldInfo>* out, std::string prefix) : out_(out), prefix_(std::move(prefix)) {}

  template <typename T, typename Bound>
  void must(std::string_view name, T& value, Bound bound) {
    list(name, value, bound, true);
  }
  template <typename T, typename Bound>
  void may(std::string_view name, T& value, Bound bound) {
    list(name, value, bound, false);
  }

 private:
  template <typename T>
  static constexpr std::string_view wire_type(const T&, Uint) {
    return sizeof(T) == 8 ? "uint64" : "uint32";
  }
  static constexpr std::string_view wire_type(float, Real) { return "float"; }
  static constexpr std::string_view wire_type(bool, Flag) { return "bool"; }
  static constexpr std::string_view wire_type(const std::string&, Bin) { return "bin"; }
  template <typename Bound>
  static constexpr std::string_view wire_type(const std::string&, Bound) {
    return "str";
  }
  template <typename T>
  static constexpr std::string_view wire_type(const T&, TokenBin) {
    return "tokens";
  }
  template <typename T>
  static constexpr std::string_view wire_type(const T&, Texts) {
    return "strs";
  }
  template <typename T>
  static constexpr std::string_view wire_type(const T&, Runs) {
    return "runs";
  }

  template <typename T, typename Bound>
  void list(std::string_view name, T& value, Bound bound, bool required) {
    const std::string full = prefix_ + std::string(name);
    if constexpr (std::same_as<Bound, Map>) {
      out_->push_back({full, "map", required});
      Lister inner(out_, full + ".");
      fields(inner, value);
    } else if constexpr (std::same_as<Bound, Maps>) {
      out_->push_back({full, "maps", required});
      Lister inner(out_, full + ".");
      typename T::value_type item;
      fields(inner, item);
    } else {
      out_->push_back({full, wire_type(value, bound), required});
    }
  }

  std::vector<FieldInfo>* out_;
  std::string prefix_;
};

// Load travels in messages of several files.
template <typename V>
void fields(V& v, Is<Load> auto& m) {
  v.may("queue", m.queue, Uint{});
  v.may("running", m.running, Uint{});
  v.may("free_pages", m.free_pages, Uint{});
  v.may("total_pages", m.total_pages, Uint{});
  v.may("draining", m.draining, Flag{});
}

// --- the public templates ----------------------------------------------------------------------

// The eight elements before the body.
std::string begin_frame(const Envelope& header, MessageType type);

template <typename Message>
std::string encode(const Envelope& header, const Message& message) {
  std::string out = begin_frame(header, Message::kType);
  Writer(&out).map(message);
  return out;
}

template <typename Message>
Result<Message> decode_body(const Envelope& envelope) {
  const std::string name(to_string(Message::kType));
  if (envelope.type != Message::kType) {
    return invalid_argument("expected " + name + ", got " + std::string(to_string(envelope.type)));
  }
  Result<Document> document = Document::parse(envelope.body());
  if (!document.ok()) return document.status().with_context(name);
  Reader reader(document->root(), name);
  Message message;
  if (reader.status().ok()) fields(reader, message);
  KVD_RETURN_IF_ERROR(reader.status());
  if (Status valid = validate(message); !valid.ok()) return valid.with_context(name);
  return message;
}

template <typename Message>
std::vector<FieldInfo> list_fields() {
  std::vector<FieldInfo> out;
  Lister lister(&out, "");
  Message message;
  fields(lister, message);
  return out;
}

}  // namespace kvd::proto

#define KVD_PROTO_MESSAGE(Message)                                             \
  template std::string encode(const Envelope& header, const Message& message); \
  template Result<Message> decode_body<Message>(const Envelope& envelope);     \
  template std::vector<FieldInfo> list_fields<Message>()
