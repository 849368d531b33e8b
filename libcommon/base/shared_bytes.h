// Bytes that do not change, and whatever owns them: a long message is handed on without a copy. A
// copy of the object refers to the same bytes.
//
// Calling thread: any.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>

namespace kvd {

class SharedBytes {
 public:
  SharedBytes() = default;
  SharedBytes(std::string bytes) {  // NOLINT(google-explicit-constructor): a string is bytes
    auto owner = std::make_shared<const std::string>(std::move(bytes));
    bytes_ = *owner;
    owner_ = std::move(owner);
  }
  // `bytes` live as long as `owner`.
  SharedBytes(std::string_view bytes, std::shared_ptr<const void> owner)
      : bytes_(bytes), owner_(std::move(owner)) {}

  // Moving copies, so that what was moved from refers to nothing that is gone.
  SharedBytes(const SharedBytes&) = default;
  SharedBytes& operator=(const SharedBytes&) = default;

  std::string_view view() const { return bytes_; }
  std::size_t size() const { return bytes_.size(); }
  bool empty() const { return bytes_.empty(); }
  friend bool operator==(const SharedBytes& a, std::string_view b) { return a.bytes_ == b; }

 private:
  std::string_view bytes_;
  std::shared_ptr<const void> owner_;
};

}  // namespace kvd
