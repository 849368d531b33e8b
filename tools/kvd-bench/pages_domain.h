// What both processes of `kvd-bench pages` open alike.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "fabric/fabric.h"
#include "kvd-bench/pages_options.h"
#include "transfer/options.h"

namespace kvd::tools {

// --provider, or the best one here. kNoProvider with the reason.
Result<std::string> choose_pages_provider(const PagesOptions& options);
// `isolated`: a domain that claims no order between writes, so that KvSender asks for the delivery
// of each page and posts the record alone after the last.
Result<std::unique_ptr<fabric::Domain>> open_pages_domain(const PagesOptions& options,
                                                          const std::string& provider,
                                                          bool isolated);
transfer::TransferOptions pages_transfer_options(const PagesPlan& plan,
                                                 const std::string& provider);
std::string pages_fingerprint(const PagesPlan& plan);
// The calling thread, and those it starts, stay on pin[index]; nothing when there is none.
void pin_to(const std::vector<int>& pin, std::size_t index);

}  // namespace kvd::tools
