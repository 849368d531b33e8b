#include "kvd-probe/doctor/tree.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <climits>
#include <optional>

namespace kvd::doctor {
namespace {

class File {
 public:
  explicit File(int fd) : fd_(fd) {}
  ~File() {
    if (fd_ >= 0) ::close(fd_);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  int get() const { return fd_; }
  int release() { return std::exchange(fd_, -1); }

 private:
  int fd_;
};

std::string trimmed(std::string text) {
  while (!text.empty() && (text.back() == '\n' || text.back() == ' ' || text.back() == '\t' ||
                           text.back() == '\0')) {
    text.pop_back();
  }
  return text;
}

class DiskTree : public Tree {
 public:
  explicit DiskTree(int root) : root_(root) {}

  Text read(const std::string& path) const override {
    // A pipe in a recorded tree must not hold us up.
    const File file(open(path, O_RDONLY | O_NONBLOCK));
    if (file.get() < 0)
      return {errno == EACCES || errno == EPERM ? Access::kDenied : Access::kAbsent, ""};
    struct stat what {};
    if (fstat(file.get(), &what) != 0 || !S_ISREG(what.st_mode)) return {};
    std::string text;
    char buffer[16384];
    while (text.size() < kMaxFileBytes) {
      const ssize_t n = ::read(file.get(), buffer, sizeof buffer);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return {errno == EACCES || errno == EPERM ? Access::kDenied : Access::kAbsent, ""};
      if (n == 0) break;
      text.append(buffer, static_cast<std::size_t>(n));
    }
    return {Access::kOk, trimmed(std::move(text))};
  }

  std::vector<std::string> list(const std::string& path) const override {
    std::vector<std::string> names;
    File file(open(path, O_RDONLY | O_DIRECTORY));
    if (file.get() < 0) return names;
    DIR* folder = fdopendir(file.get());
    if (folder == nullptr) return names;
    file.release();
    while (const dirent* entry = readdir(folder)) {
      const std::string name = entry->d_name;
      if (name != "." && name != "..") names.push_back(name);
      if (names.size() == kMaxEntries) break;
    }
    closedir(folder);
    std::sort(names.begin(), names.end());
    return names;
  }

  Access writable(const std::string& path) const override {
    const File file(open(path, O_RDWR | O_NONBLOCK));
    if (file.get() >= 0) return Access::kOk;
    return errno == ENOENT || errno == ENOTDIR ? Access::kAbsent : Access::kDenied;
  }

  std::string real_path(const std::string& path) const override {
    const File file(open(path, O_PATH));
    const File root(openat(root_.get(), ".", O_PATH | O_DIRECTORY | O_CLOEXEC));
    const std::string full = link_of(file.get()), base = link_of(root.get());
    if (full.empty() || base.empty() || !full.starts_with(base)) return path;
    const std::size_t begin = full.find_first_not_of('/', base.size());
    return begin == std::string::npos ? path : full.substr(begin);
  }

 private:
  int open(const std::string& path, int flags) const {
    open_how how{};
    how.flags = static_cast<std::uint64_t>(flags | O_CLOEXEC);
    how.resolve = RESOLVE_IN_ROOT;
    const long fd = syscall(SYS_openat2, root_.get(), path.c_str(), &how, sizeof how);
    // Before Linux 5.6 there is no openat2: links are followed as they are.
    if (fd < 0 && errno == ENOSYS) return openat(root_.get(), path.c_str(), flags | O_CLOEXEC);
    return static_cast<int>(fd);
  }

  static std::string link_of(int fd) {
    char target[PATH_MAX];
    const std::string name = "/proc/self/fd/" + std::to_string(fd);
    const ssize_t n = fd < 0 ? -1 : readlink(name.c_str(), target, sizeof target);
    return n <= 0 ? "" : std::string(target, static_cast<std::size_t>(n));
  }

  File root_;
};

class MapTree : public Tree {
 public:
  MapTree(const Tree* under, std::map<std::string, std::string> files)
      : under_(under), files_(std::move(files)) {}

  Text read(const std::string& path) const override {
    const auto it = files_.find(path);
    if (it != files_.end()) return {Access::kOk, trimmed(it->second.substr(0, kMaxFileBytes))};
    return under_ == nullptr ? Text{} : under_->read(path);
  }
  std::vector<std::string> list(const std::string& path) const override {
    std::vector<std::string> names;
    if (under_ != nullptr) names = under_->list(path);
    const std::string prefix = path.empty() ? "" : path + "/";
    for (auto it = files_.lower_bound(prefix); it != files_.end(); ++it) {
      if (!it->first.starts_with(prefix) || names.size() >= kMaxEntries) break;
      const std::string name =
          it->first.substr(prefix.size(), it->first.find('/', prefix.size()) - prefix.size());
      if (!name.empty() && (names.empty() || names.back() != name)) names.push_back(name);
    }
    std::sort(names.begin(), names.end());
    names.erase(std::unique(names.begin(), names.end()), names.end());
    return names;
  }
  Access writable(const std::string& path) const override {
    if (files_.contains(path)) return Access::kOk;
    return under_ == nullptr ? Access::kAbsent : under_->writable(path);
  }
  std::string real_path(const std::string& path) const override {
    return under_ == nullptr ? path : under_->real_path(path);
  }

 private:
  const Tree* under_;
  std::map<std::string, std::string> files_;
};

}  // namespace

Result<std::unique_ptr<Tree>> open_tree(const std::string& root) {
  const int fd = ::open(root.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return invalid_argument(root + ": no such directory");
  return std::unique_ptr<Tree>(new DiskTree(fd));
}

std::unique_ptr<Tree> with_facts(const Tree& under, std::map<std::string, std::string> facts) {
  return std::make_unique<MapTree>(&under, std::move(facts));
}

std::unique_ptr<Tree> memory_tree(std::map<std::string, std::string> files) {
  return std::make_unique<MapTree>(nullptr, std::move(files));
}

std::optional<std::uint64_t> number_of(std::string_view text) {
  const bool hex = text.starts_with("0x") || text.starts_with("0X");
  if (hex) text.remove_prefix(2);
  std::uint64_t value = 0;
  const auto [stop, error] =
      std::from_chars(text.data(), text.data() + text.size(), value, hex ? 16 : 10);
  if (error != std::errc() || stop == text.data()) return std::nullopt;
  return value;
}

std::vector<std::string> words_of(std::string_view text) {
  std::vector<std::string> out;
  std::size_t begin = 0;
  while ((begin = text.find_first_not_of(" \t\r\n", begin)) != std::string_view::npos &&
         out.size() < kMaxEntries) {
    const std::size_t end = std::min(text.find_first_of(" \t\r\n", begin), text.size());
    out.emplace_back(text.substr(begin, end - begin));
    begin = end;
  }
  return out;
}

std::vector<std::string> lines_of(std::string_view text) {
  std::vector<std::string> out;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    out.emplace_back(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return out;
}

std::string value_of(std::string_view text, std::string_view key) {
  for (const std::string& line : lines_of(text)) {
    if (line.size() > key.size() && line.starts_with(key) && line[key.size()] == '=') {
      return line.substr(key.size() + 1);
    }
  }
  return "";
}

std::vector<int> cpu_list(std::string_view text) {
  constexpr std::uint64_t kMaxCpu = 8191;
  std::vector<int> out;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find(','), text.size());
    const std::string_view part = text.substr(0, end);
    const std::size_t dash = part.find('-');
    const auto first = number_of(part.substr(0, dash));
    const auto last = dash == std::string_view::npos ? first : number_of(part.substr(dash + 1));
    if (!first || !last || *last < *first || *last > kMaxCpu) return {};
    for (std::uint64_t cpu = *first; cpu <= *last && out.size() <= kMaxCpu; ++cpu) {
      out.push_back(static_cast<int>(cpu));
    }
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return out;
}

}  // namespace kvd::doctor
