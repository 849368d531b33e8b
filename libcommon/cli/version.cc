#include "cli/version.h"

namespace kvd::cli {

std::string version() { return KVD_VERSION; }
std::string commit() { return KVD_COMMIT; }
std::string build_type() { return KVD_BUILD_TYPE; }

}  // namespace kvd::cli
