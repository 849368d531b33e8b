// The files of a host, read only: /sys, /proc and what else the checks look at. A recorded tree
// stands for another host.
//
// Besides the kernel's files a tree may hold facts that no file has, under kvd/ (facts.h makes them
// on a live host; a recording has them as files). Calling thread: one.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace kvd::doctor {

enum class Access {
  kOk,
  kAbsent,
  kDenied,  // there, but not for this user
};

struct Text {
  Access access = Access::kAbsent;
  std::string text;  // without trailing white space

  bool ok() const { return access == Access::kOk; }
};

// Paths are without a leading slash: "sys/class/net".
class Tree {
 public:
  virtual ~Tree() = default;
  // A regular file, at most kMaxFileBytes of it. What cannot be read for another reason than its
  // permissions (a link that is down has no speed) counts as absent.
  virtual Text read(const std::string& path) const = 0;
  // Names in a directory, sorted, at most kMaxEntries; none when there is no such directory.
  virtual std::vector<std::string> list(const std::string& path) const = 0;
  // Whether it can be opened for reading and writing, as device nodes must.
  virtual Access writable(const std::string& path) const = 0;
  // The path without links, from the root of the tree; as given where it cannot be told.
  virtual std::string real_path(const std::string& path) const = 0;
};

constexpr std::size_t kMaxFileBytes = 256 << 10;
constexpr std::size_t kMaxEntries = 4096;

// The files under `root`; "/" is this host. Links do not lead out of it. Errors: kInvalidArgument,
// no such directory.
Result<std::unique_ptr<Tree>> open_tree(const std::string& root);

// `under`, with the files of `facts` in front. `under` must outlive it.
std::unique_ptr<Tree> with_facts(const Tree& under, std::map<std::string, std::string> facts);

// A tree that is all in memory.
std::unique_ptr<Tree> memory_tree(std::map<std::string, std::string> files);

// The number in front of `text`; nothing when there is none or it does not fit. "0x" is read as
// hexadecimal.
std::optional<std::uint64_t> number_of(std::string_view text);
// Blank-separated words, at most 4096.
std::vector<std::string> words_of(std::string_view text);
std::vector<std::string> lines_of(std::string_view text);
// Of lines "KEY=value" (uevent) the value of one; empty when it is not there.
std::string value_of(std::string_view text, std::string_view key);
// "0-3,8" as a list, none above 8191; empty when malformed.
std::vector<int> cpu_list(std::string_view text);

}  // namespace kvd::doctor
