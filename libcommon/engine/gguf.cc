#include "engine/gguf.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstring>
#include <limits>
#include <system_error>
#include <type_traits>
#include <utility>

#include "base/ids.h"

namespace kvd::engine {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF data is used where it lies");

constexpr std::uint32_t kVersion = 3;
constexpr std::uint64_t kMaxKeyBytes = 65535;       // ggml docs/gguf.md
constexpr std::uint64_t kMaxTensorNameBytes = 255;  // ggml itself stops at 63
constexpr std::uint32_t kMaxRank = 4;               // GGML_MAX_DIMS
constexpr std::uint64_t kMaxAlignment = std::uint64_t{1} << 20;
// Strings and numbers grow up to eightfold when they are unpacked; no vocabulary comes near this.
constexpr std::uint64_t kMaxArray = std::uint64_t{1} << 24;
constexpr std::uint64_t kMinEntryBytes = 8 + 1 + 4 + 1;
constexpr std::uint64_t kMinTensorInfoBytes = 8 + 1 + 4 + 8 + 4 + 8;

enum class ValueType : std::uint32_t {
  kU8,
  kI8,
  kU16,
  kI16,
  kU32,
  kI32,
  kF32,
  kBool,
  kString,
  kArray,
  kU64,
  kI64,
  kF64,
};

constexpr std::array<TensorTypeInfo, 11> kTensorTypes{{
    {TensorType::kF32, "F32", 1, 4},
    {TensorType::kF16, "F16", 1, 2},
    {TensorType::kQ4_0, "Q4_0", 32, 18},
    {TensorType::kQ4_1, "Q4_1", 32, 20},
    {TensorType::kQ5_0, "Q5_0", 32, 22},
    {TensorType::kQ5_1, "Q5_1", 32, 24},
    {TensorType::kQ8_0, "Q8_0", 32, 34},
    {TensorType::kQ4_K, "Q4_K", 256, 144},
    {TensorType::kQ5_K, "Q5_K", 256, 176},
    {TensorType::kQ6_K, "Q6_K", 256, 210},
    {TensorType::kBF16, "BF16", 1, 2},
}};

// Names come from the file: an error stays one printable line whatever they hold.
std::string quoted(std::string_view text) {
  constexpr std::size_t kShown = 80;
  std::string out = "'";
  for (char c : text.substr(0, kShown)) out += c >= 0x20 && c < 0x7f ? c : '?';
  return out + (text.size() > kShown ? "...'" : "'");
}

struct Parsed {
  std::map<std::string, GgufValue> meta;
  std::vector<Tensor> tensors;
  std::map<std::string, std::size_t> by_name;
};

// Reads front to back. Every function is false after an error, which status() then holds.
class Parser {
 public:
  Parser(std::span<const std::byte> bytes, const std::string& name) : bytes_(bytes), name_(name) {}

  bool run(Parsed* out) {
    std::uint64_t tensors = 0;
    std::uint64_t entries = 0;
    return header(&tensors, &entries) && metadata(entries, out) && infos(tensors, out) &&
           place(out);
  }
  const Status& status() const { return status_; }

 private:
  std::uint64_t left() const { return bytes_.size() - pos_; }
  bool fail(std::uint64_t offset, const std::string& what) {
    status_ = invalid_argument(name_ + ": invalid GGUF at offset " + std::to_string(offset) + ": " +
                               what);
    return false;
  }
  bool need(std::uint64_t count, std::string_view what) {
    if (count <= left()) return true;
    status_ = invalid_argument(name_ + ": truncated at offset " + std::to_string(pos_) + ": " +
                               std::string(what) + " needs " + std::to_string(count) +
                               " bytes, the file has " + std::to_string(left()) +
                               " more; fetch the file again");
    return false;
  }
  template <typename T>
  T take() {
    T value;
    std::memcpy(&value, bytes_.data() + pos_, sizeof(T));
    pos_ += sizeof(T);
    return value;
  }
  template <typename T>
  bool read(T* out, std::string_view what) {
    if (!need(sizeof(T), what)) return false;
    *out = take<T>();
    return true;
  }
  bool string(std::uint64_t max, std::string* out, std::string_view what) {
    const std::uint64_t at = pos_;
    std::uint64_t length = 0;
    if (!read(&length, what)) return false;
    if (!need(length, what)) return false;
    if (length > max) {
      return fail(at, std::string(what) + " of " + std::to_string(length) + " bytes, at most " +
                          std::to_string(max) + " are allowed");
    }
    out->assign(reinterpret_cast<const char*>(bytes_.data()) + pos_, length);
    pos_ += length;
    return true;
  }

  bool header(std::uint64_t* tensors, std::uint64_t* entries);
  bool metadata(std::uint64_t entries, Parsed* out);
  bool value(ValueType type, GgufValue* out);
  bool boolean(bool* out);
  bool array(GgufValue* out);
  template <typename T, typename Wide>
  bool numbers(std::uint64_t count, GgufValue* out);
  bool strings(std::uint64_t count, GgufValue* out);
  bool infos(std::uint64_t count, Parsed* out);
  bool info(Tensor* tensor);
  bool size_of(std::uint64_t at, std::uint32_t type, Tensor* tensor);
  bool alignment(const Parsed& parsed, std::uint64_t* out);
  bool place(Parsed* out);

  std::span<const std::byte> bytes_;
  const std::string& name_;
  std::uint64_t pos_ = 0;
  std::vector<std::uint64_t> offsets_;  // of each tensor, from the start of the data
  std::vector<std::uint64_t> info_at_;
  Status status_;
};

bool Parser::header(std::uint64_t* tensors, std::uint64_t* entries) {
  if (bytes_.size() < 4 || std::memcmp(bytes_.data(), "GGUF", 4) != 0) {
    status_ = invalid_argument(name_ + ": not a GGUF file (it does not begin with \"GGUF\")");
    return false;
  }
  pos_ = 4;
  std::uint32_t version = 0;
  if (!read(&version, "the version")) return false;
  if (version == __builtin_bswap32(kVersion)) {
    return fail(4, "the file is big-endian; convert it to little-endian");
  }
  if (version != kVersion) {
    return fail(4, "GGUF version " + std::to_string(version) +
                       ", only version 3 is read; convert the model again");
  }
  if (!read(tensors, "the tensor count") || !read(entries, "the metadata count")) return false;
  if (*entries > left() / kMinEntryBytes) {
    return fail(16, std::to_string(*entries) + " metadata entries do not fit the file");
  }
  if (*tensors > left() / kMinTensorInfoBytes) {
    return fail(8, std::to_string(*tensors) + " tensors do not fit the file");
  }
  return true;
}

bool Parser::metadata(std::uint64_t entries, Parsed* out) {
  for (std::uint64_t i = 0; i < entries; ++i) {
    const std::uint64_t at = pos_;
    std::string key;
    std::uint32_t type = 0;
    if (!string(kMaxKeyBytes, &key, "a metadata key") || !read(&type, "a value type")) return false;
    if (key.empty()) return fail(at, "an empty metadata key");
    GgufValue v;
    if (!value(static_cast<ValueType>(type), &v)) {
      status_ = Status(status_.code(), status_.message() + " (key " + quoted(key) + ")");
      return false;
    }
    if (!out->meta.emplace(key, std::move(v)).second) {
      return fail(at, "the key " + quoted(key) + " is there twice");
    }
  }
  return true;
}

bool Parser::boolean(bool* out) {
  std::uint8_t raw = 0;
  if (!read(&raw, "a boolean")) return false;
  if (raw > 1) return fail(pos_ - 1, "a boolean of value " + std::to_string(raw));
  *out = raw == 1;
  return true;
}

bool Parser::value(ValueType type, GgufValue* out) {
  const auto scalar = [&]<typename T, typename Wide>(T raw, Wide) {
    if (!read(&raw, "a value")) return false;
    *out = static_cast<Wide>(raw);
    return true;
  };
  switch (type) {
    case ValueType::kU8:
      return scalar(std::uint8_t{}, std::uint64_t{});
    case ValueType::kI8:
      return scalar(std::int8_t{}, std::int64_t{});
    case ValueType::kU16:
      return scalar(std::uint16_t{}, std::uint64_t{});
    case ValueType::kI16:
      return scalar(std::int16_t{}, std::int64_t{});
    case ValueType::kU32:
      return scalar(std::uint32_t{}, std::uint64_t{});
    case ValueType::kI32:
      return scalar(std::int32_t{}, std::int64_t{});
    case ValueType::kF32:
      return scalar(float{}, double{});
    case ValueType::kU64:
      return scalar(std::uint64_t{}, std::uint64_t{});
    case ValueType::kI64:
      return scalar(std::int64_t{}, std::int64_t{});
    case ValueType::kF64:
      return scalar(double{}, double{});
    case ValueType::kBool: {
      bool flag = false;
      if (!boolean(&flag)) return false;
      *out = flag;
      return true;
    }
    case ValueType::kString: {
      std::string text;
      if (!string(std::numeric_limits<std::uint64_t>::max(), &text, "a string")) return false;
      *out = std::move(text);
      return true;
    }
    case ValueType::kArray:
      return array(out);
  }
  return fail(pos_ - 4, "unknown value type " + std::to_string(static_cast<std::uint32_t>(type)));
}

template <typename T, typename Wide>
bool Parser::numbers(std::uint64_t count, GgufValue* out) {
  if (count > left() / sizeof(T)) return need(count * sizeof(T), "an array");
  std::vector<Wide> values(count);
  for (Wide& v : values) {
    const T raw = take<T>();
    if constexpr (std::is_same_v<T, std::uint64_t>) {
      if (raw > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
        return fail(pos_ - sizeof(T), "an array element above 2^63-1");
      }
    }
    v = static_cast<Wide>(raw);
  }
  *out = std::move(values);
  return true;
}

bool Parser::strings(std::uint64_t count, GgufValue* out) {
  if (count > left() / 8) return need(count * 8, "an array of strings");
  std::vector<std::string> values(count);
  for (std::string& v : values) {
    if (!string(std::numeric_limits<std::uint64_t>::max(), &v, "a string of an array")) {
      return false;
    }
  }
  *out = std::move(values);
  return true;
}

bool Parser::array(GgufValue* out) {
  const std::uint64_t at = pos_;
  std::uint32_t type = 0;
  std::uint64_t count = 0;
  if (!read(&type, "an array's type") || !read(&count, "an array's count")) return false;
  if (count > kMaxArray) {
    return fail(at + 4, "an array of " + std::to_string(count) + " elements, at most " +
                            std::to_string(kMaxArray) + " are allowed");
  }
  switch (static_cast<ValueType>(type)) {
    case ValueType::kU8:
      return numbers<std::uint8_t, std::int64_t>(count, out);
    case ValueType::kI8:
      return numbers<std::int8_t, std::int64_t>(count, out);
    case ValueType::kU16:
      return numbers<std::uint16_t, std::int64_t>(count, out);
    case ValueType::kI16:
      return numbers<std::int16_t, std::int64_t>(count, out);
    case ValueType::kU32:
      return numbers<std::uint32_t, std::int64_t>(count, out);
    case ValueType::kI32:
      return numbers<std::int32_t, std::int64_t>(count, out);
    case ValueType::kU64:
      return numbers<std::uint64_t, std::int64_t>(count, out);
    case ValueType::kI64:
      return numbers<std::int64_t, std::int64_t>(count, out);
    case ValueType::kBool:
      return numbers<std::uint8_t, std::int64_t>(count, out);
    case ValueType::kF32:
      return numbers<float, double>(count, out);
    case ValueType::kF64:
      return numbers<double, double>(count, out);
    case ValueType::kString:
      return strings(count, out);
    case ValueType::kArray:
      return fail(at, "an array of arrays");
  }
  return fail(at, "an array of unknown type " + std::to_string(type));
}

// Dimensions to bytes, with the overflow that a hostile file asks for.
bool Parser::size_of(std::uint64_t at, std::uint32_t type, Tensor* tensor) {
  const TensorTypeInfo* info = tensor_type_info(type);
  if (info == nullptr) {
    return fail(at, "tensor " + quoted(tensor->name) + " has type " + std::to_string(type) +
                        "; take a model in F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, "
                        "Q5_K or Q6_K");
  }
  std::uint64_t elements = 1;
  for (std::uint64_t d : tensor->dims) {
    if (d == 0) return fail(at, "tensor " + quoted(tensor->name) + " has an empty dimension");
    if (__builtin_mul_overflow(elements, d, &elements)) {
      return fail(at, "the size of tensor " + quoted(tensor->name) + " overflows");
    }
  }
  if (tensor->dims[0] % info->block != 0) {
    return fail(at, "tensor " + quoted(tensor->name) + " has rows of " +
                        std::to_string(tensor->dims[0]) + " elements, no multiple of the " +
                        std::to_string(info->block) + " of a " + std::string(info->name) +
                        " block");
  }
  if (__builtin_mul_overflow(elements / info->block, std::uint64_t{info->bytes}, &tensor->bytes)) {
    return fail(at, "the size of tensor " + quoted(tensor->name) + " overflows");
  }
  tensor->type = info->type;
  return true;
}

bool Parser::info(Tensor* tensor) {
  const std::uint64_t at = pos_;
  std::uint32_t rank = 0;
  if (!string(kMaxTensorNameBytes, &tensor->name, "a tensor name")) return false;
  if (tensor->name.empty()) return fail(at, "an empty tensor name");
  if (!read(&rank, "a tensor's rank")) return false;
  if (rank == 0 || rank > kMaxRank) {
    return fail(at, "tensor " + quoted(tensor->name) + " has " + std::to_string(rank) +
                        " dimensions, 1 to 4 are allowed");
  }
  tensor->dims.resize(rank);
  for (std::uint64_t& d : tensor->dims) {
    if (!read(&d, "a dimension")) return false;
  }
  std::uint32_t type = 0;
  std::uint64_t offset = 0;
  if (!read(&type, "a tensor's type") || !read(&offset, "a tensor's offset")) return false;
  offsets_.push_back(offset);
  info_at_.push_back(at);
  return size_of(at, type, tensor);
}

bool Parser::infos(std::uint64_t count, Parsed* out) {
  if (count > left() / kMinTensorInfoBytes)
    return need(count * kMinTensorInfoBytes, "tensor infos");
  out->tensors.resize(count);
  for (std::uint64_t i = 0; i < count; ++i) {
    const std::uint64_t at = pos_;
    if (!info(&out->tensors[i])) return false;
    const std::string& name = out->tensors[i].name;
    if (!out->by_name.emplace(name, i).second) {
      return fail(at, "tensor " + quoted(name) + " is there twice");
    }
  }
  return true;
}

bool Parser::alignment(const Parsed& parsed, std::uint64_t* out) {
  *out = 32;
  const auto found = parsed.meta.find("general.alignment");
  if (found == parsed.meta.end()) return true;
  const auto* given = std::get_if<std::uint64_t>(&found->second);
  if (given == nullptr || *given < 8 || *given > kMaxAlignment || !std::has_single_bit(*given)) {
    return fail(pos_, "general.alignment is no power of two from 8 to 1048576");
  }
  *out = *given;
  return true;
}

bool Parser::place(Parsed* out) {
  std::uint64_t align = 0;
  if (!alignment(*out, &align)) return false;
  const std::uint64_t start =
      (pos_ + align - 1) / align * align;  // pos_ is at most the file's size
  for (std::size_t i = 0; i < out->tensors.size(); ++i) {
    Tensor& t = out->tensors[i];
    if (offsets_[i] % align != 0) {
      return fail(info_at_[i], "tensor " + quoted(t.name) + " is not aligned to " +
                                   std::to_string(align) + " bytes");
    }
    std::uint64_t begin = 0;
    std::uint64_t end = 0;
    if (__builtin_add_overflow(start, offsets_[i], &begin) ||
        __builtin_add_overflow(begin, t.bytes, &end)) {
      return fail(info_at_[i], "the place of tensor " + quoted(t.name) + " overflows");
    }
    if (end > bytes_.size()) {
      status_ = invalid_argument(name_ + ": truncated at offset " + std::to_string(bytes_.size()) +
                                 ": tensor " + quoted(t.name) + " ends at " + std::to_string(end) +
                                 "; fetch the file again");
      return false;
    }
    t.data = bytes_.data() + begin;
  }
  return true;
}

std::string system_message(int error) { return std::system_category().message(error); }

class FileDescriptor {
 public:
  explicit FileDescriptor(int fd) : fd_(fd) {}
  ~FileDescriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

}  // namespace

const TensorTypeInfo* tensor_type_info(std::uint32_t type) {
  for (const TensorTypeInfo& info : kTensorTypes) {
    if (static_cast<std::uint32_t>(info.type) == type) return &info;
  }
  return nullptr;
}

Result<Gguf> Gguf::parse(std::span<const std::byte> bytes, const std::string& name) {
  Parsed parsed;
  Parser parser(bytes, name);
  if (!parser.run(&parsed)) return parser.status();
  Gguf file;
  file.path_ = name;
  file.bytes_ = bytes;
  file.meta_ = std::move(parsed.meta);
  file.tensors_ = std::move(parsed.tensors);
  file.by_name_ = std::move(parsed.by_name);
  return file;
}

Result<Gguf> Gguf::open(const std::string& path) {
  // O_NONBLOCK: a FIFO by that name must not hang the program.
  const FileDescriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (fd.get() < 0) return invalid_argument(path + ": cannot open: " + system_message(errno));
  struct stat info {};
  if (::fstat(fd.get(), &info) != 0) {
    return invalid_argument(path + ": cannot read: " + system_message(errno));
  }
  if (!S_ISREG(info.st_mode)) return invalid_argument(path + ": not a regular file");
  if (info.st_size == 0) return invalid_argument(path + ": not a GGUF file (it is empty)");
  const auto size = static_cast<std::size_t>(info.st_size);
  void* base = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd.get(), 0);
  if (base == MAP_FAILED) return invalid_argument(path + ": cannot map: " + system_message(errno));
  Result<Gguf> file = parse({static_cast<const std::byte*>(base), size}, path);
  if (!file.ok()) {
    ::munmap(base, size);
    return file;
  }
  file->mapped_ = true;
  return file;
}

Gguf::Gguf(Gguf&& other) noexcept { *this = std::move(other); }

Gguf& Gguf::operator=(Gguf&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(bytes_, other.bytes_);
  std::swap(mapped_, other.mapped_);
  std::swap(meta_, other.meta_);
  std::swap(tensors_, other.tensors_);
  std::swap(by_name_, other.by_name_);
  return *this;
}

Gguf::~Gguf() {
  if (mapped_) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

const Tensor* Gguf::find(const std::string& name) const {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? nullptr : &tensors_[found->second];
}

const GgufValue* Gguf::meta(const std::string& key) const {
  const auto found = meta_.find(key);
  return found == meta_.end() ? nullptr : &found->second;
}

std::optional<std::string> Gguf::meta_string(const std::string& key) const {
  const GgufValue* v = meta(key);
  const auto* text = v == nullptr ? nullptr : std::get_if<std::string>(v);
  return text == nullptr ? std::nullopt : std::optional(*text);
}

std::optional<std::uint64_t> Gguf::meta_uint(const std::string& key) const {
  const GgufValue* v = meta(key);
  if (v == nullptr) return std::nullopt;
  if (const auto* u = std::get_if<std::uint64_t>(v)) return *u;
  const auto* i = std::get_if<std::int64_t>(v);
  if (i == nullptr || *i < 0) return std::nullopt;
  return static_cast<std::uint64_t>(*i);
}

std::optional<double> Gguf::meta_number(const std::string& key) const {
  const GgufValue* v = meta(key);
  if (v == nullptr) return std::nullopt;
  if (const auto* d = std::get_if<double>(v)) return *d;
  if (const auto* u = std::get_if<std::uint64_t>(v)) return static_cast<double>(*u);
  if (const auto* i = std::get_if<std::int64_t>(v)) return static_cast<double>(*i);
  return std::nullopt;
}

std::optional<bool> Gguf::meta_bool(const std::string& key) const {
  const GgufValue* v = meta(key);
  const auto* flag = v == nullptr ? nullptr : std::get_if<bool>(v);
  return flag == nullptr ? std::nullopt : std::optional(*flag);
}

const std::vector<std::string>* Gguf::meta_strings(const std::string& key) const {
  const GgufValue* v = meta(key);
  return v == nullptr ? nullptr : std::get_if<std::vector<std::string>>(v);
}

const std::vector<std::int64_t>* Gguf::meta_ints(const std::string& key) const {
  const GgufValue* v = meta(key);
  return v == nullptr ? nullptr : std::get_if<std::vector<std::int64_t>>(v);
}

std::string Gguf::fingerprint() const {
  constexpr std::uint64_t kSample = 4096;
  const std::byte* data = bytes_.data() + bytes_.size();
  for (const Tensor& t : tensors_) data = std::min(data, t.data);
  XXH3_state_t* state = XXH3_createState();
  XXH3_128bits_reset(state);
  const std::uint64_t size = bytes_.size();
  XXH3_128bits_update(state, &size, sizeof(size));
  XXH3_128bits_update(state, bytes_.data(), static_cast<std::size_t>(data - bytes_.data()));
  for (const Tensor& t : tensors_) {
    const std::uint64_t piece = std::min(kSample, t.bytes);
    XXH3_128bits_update(state, t.data, piece);
    XXH3_128bits_update(state, t.data + (t.bytes - piece) / 2, piece);
    XXH3_128bits_update(state, t.data + (t.bytes - piece), piece);
  }
  const XXH128_hash_t hash = XXH3_128bits_digest(state);
  XXH3_freeState(state);
  return hex(hash.high64) + hex(hash.low64);
}

void Gguf::drop_cache(const Tensor& tensor) const {
  if (!mapped_) return;
  // Outward to whole pages: the mapping is read-only and private, so a neighbour that is still
  // wanted is only read again from the file.
  const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto base = reinterpret_cast<std::uintptr_t>(bytes_.data());
  const std::uintptr_t begin = reinterpret_cast<std::uintptr_t>(tensor.data) / page * page;
  const std::uintptr_t end =
      std::min(reinterpret_cast<std::uintptr_t>(tensor.data) + tensor.bytes, base + bytes_.size());
  ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

}  // namespace kvd::engine
