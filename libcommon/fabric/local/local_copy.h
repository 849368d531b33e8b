// The one copy of the `local` transport.
#pragma once

#include <cstddef>

namespace kvd::fabric::local {

// Copies between two places that do not overlap and are in no cache. From a few KiB on it stores
// past the cache (non-temporal): the bytes are read next by attention, long after, and a line that
// is not fetched before it is overwritten saves a third of the memory traffic. Measured on
// scattered pages that were in no cache: 1.3 to 1.7 times memcpy from 4 KiB to 1 MiB.
// What was written is visible to whoever is told of it afterwards by a release store.
void copy_bytes(std::byte* to, const std::byte* from, std::size_t bytes);

// Fetches the first lines of what is copied next, and the translation of its page.
void prefetch(const std::byte* from, std::size_t bytes);

}  // namespace kvd::fabric::local
