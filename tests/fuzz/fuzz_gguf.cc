// A GGUF file of any bytes is parsed or refused; what is parsed lies inside the file.
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/check.h"
#include "engine/gguf.h"
#include "engine/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::span bytes(reinterpret_cast<const std::byte*>(data), size);
  const auto file = kvd::engine::Gguf::parse(bytes, "fuzz");
  if (!file.ok()) {
    KVD_CHECK(file.status().message().find('\n') == std::string::npos);
    return 0;
  }
  for (const auto& tensor : file->tensors()) {
    KVD_CHECK(tensor.data >= bytes.data());
    KVD_CHECK(tensor.bytes <= static_cast<std::size_t>(bytes.data() + size - tensor.data));
    KVD_CHECK(file->find(tensor.name) == &tensor);
  }
  KVD_CHECK(file->fingerprint().size() == 32);
  const auto tokenizer = kvd::engine::make_bpe_tokenizer(*file);
  if (tokenizer.ok()) static_cast<void>((*tokenizer)->encode("The 3 ways\n\xff"));
  return 0;
}
