#include "kvd-probe/doctor/net_query.h"

#include <linux/dcbnl.h>
#include <linux/ethtool.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

namespace kvd::doctor {
namespace {

constexpr std::uint32_t kMaxStatistics = 16384;

class Socket {
 public:
  Socket(int family, int type, int protocol)
      : fd_(::socket(family, type | SOCK_CLOEXEC, protocol)) {}
  ~Socket() {
    if (fd_ >= 0) ::close(fd_);
  }
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

bool ask(const Socket& socket, const std::string& device, void* command) {
  ifreq request{};
  if (device.size() >= sizeof request.ifr_name) return false;
  std::memcpy(request.ifr_name, device.data(), device.size());
  request.ifr_data = static_cast<char*>(command);
  return ioctl(socket.get(), SIOCETHTOOL, &request) == 0;
}

// A structure of ethtool's with its flexible end, in memory of its own.
template <typename Head>
class WithTail {
 public:
  explicit WithTail(std::size_t tail) : bytes_(sizeof(Head) + tail) {}
  Head* head() { return reinterpret_cast<Head*>(bytes_.data()); }
  const std::byte* tail() const { return bytes_.data() + sizeof(Head); }

 private:
  std::vector<std::byte> bytes_;
};

std::uint32_t count_statistics(const Socket& socket, const std::string& device) {
  WithTail<ethtool_sset_info> info(sizeof(std::uint32_t));
  info.head()->cmd = ETHTOOL_GSSET_INFO;
  info.head()->sset_mask = 1ull << ETH_SS_STATS;
  if (!ask(socket, device, info.head()) || info.head()->sset_mask == 0) return 0;
  std::uint32_t count = 0;
  std::memcpy(&count, info.tail(), sizeof count);
  return count <= kMaxStatistics ? count : 0;
}

struct Reply {
  alignas(nlmsghdr) std::array<char, 16384> bytes{};
  std::size_t size = 0;
};

bool exchange(const Socket& socket, const std::string& device, Reply* reply) {
  struct {
    nlmsghdr header;
    dcbmsg dcb;
    std::array<char, 64> attributes;
  } request{};
  request.header.nlmsg_type = RTM_GETDCB;
  request.header.nlmsg_flags = NLM_F_REQUEST;
  request.header.nlmsg_len = NLMSG_LENGTH(sizeof(dcbmsg));
  request.dcb.dcb_family = AF_UNSPEC;
  request.dcb.cmd = DCB_CMD_IEEE_GET;
  if (device.size() >= IFNAMSIZ) return false;
  auto* name = reinterpret_cast<nlattr*>(reinterpret_cast<char*>(&request) +
                                         NLMSG_ALIGN(request.header.nlmsg_len));
  name->nla_type = DCB_ATTR_IFNAME;
  name->nla_len = static_cast<std::uint16_t>(NLA_HDRLEN + device.size() + 1);
  std::memcpy(reinterpret_cast<char*>(name) + NLA_HDRLEN, device.c_str(), device.size() + 1);
  request.header.nlmsg_len = NLMSG_ALIGN(request.header.nlmsg_len) + NLMSG_ALIGN(name->nla_len);
  const timeval limit{1, 0};
  (void)setsockopt(socket.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  if (send(socket.get(), &request, request.header.nlmsg_len, 0) < 0) return false;
  const ssize_t n = recv(socket.get(), reply->bytes.data(), reply->bytes.size(), 0);
  if (n < static_cast<ssize_t>(NLMSG_LENGTH(sizeof(dcbmsg)))) return false;
  reply->size = static_cast<std::size_t>(n);
  const auto* header = reinterpret_cast<const nlmsghdr*>(reply->bytes.data());
  return header->nlmsg_type == RTM_GETDCB && header->nlmsg_len <= reply->size;
}

// Attribute `type` among those in [begin, begin + size).
std::pair<const char*, std::size_t> find_attribute(const char* begin, std::size_t size,
                                                   unsigned type) {
  while (size >= sizeof(nlattr)) {
    nlattr head{};
    std::memcpy(&head, begin, sizeof head);
    if (head.nla_len < NLA_HDRLEN || head.nla_len > size) break;
    if ((head.nla_type & NLA_TYPE_MASK) == type) {
      return {begin + NLA_HDRLEN, head.nla_len - NLA_HDRLEN};
    }
    const std::size_t step = std::min<std::size_t>(NLA_ALIGN(head.nla_len), size);
    begin += step;
    size -= step;
  }
  return {nullptr, 0};
}

}  // namespace

std::string offloads_of(const std::string& device) {
  constexpr std::array<std::pair<std::uint32_t, const char*>, 3> kQueries = {
      {{ETHTOOL_GTSO, "tcp-segmentation-offload"},
       {ETHTOOL_GGSO, "generic-segmentation-offload"},
       {ETHTOOL_GGRO, "generic-receive-offload"}}};
  const Socket socket(AF_INET, SOCK_DGRAM, 0);
  std::string out;
  for (const auto& [command, name] : kQueries) {
    ethtool_value value{command, 0};
    if (!ask(socket, device, &value)) continue;
    out += std::string(name) + ": " + (value.data != 0 ? "on" : "off") + "\n";
  }
  return out;
}

std::string statistics_of(const std::string& device) {
  const Socket socket(AF_INET, SOCK_DGRAM, 0);
  const std::uint32_t count = count_statistics(socket, device);
  if (count == 0) return "";
  WithTail<ethtool_gstrings> names(std::size_t{count} * ETH_GSTRING_LEN);
  names.head()->cmd = ETHTOOL_GSTRINGS;
  names.head()->string_set = ETH_SS_STATS;
  names.head()->len = count;
  WithTail<ethtool_stats> values(std::size_t{count} * sizeof(std::uint64_t));
  values.head()->cmd = ETHTOOL_GSTATS;
  values.head()->n_stats = count;
  if (!ask(socket, device, names.head()) || !ask(socket, device, values.head())) return "";
  std::string out;
  for (std::uint32_t i = 0; i < count; ++i) {
    const char* name =
        reinterpret_cast<const char*>(names.tail()) + std::size_t{i} * ETH_GSTRING_LEN;
    std::uint64_t value = 0;
    std::memcpy(&value, values.tail() + i * sizeof value, sizeof value);
    out += "  " + std::string(name, strnlen(name, ETH_GSTRING_LEN)) + ": " + std::to_string(value) +
           "\n";
  }
  return out;
}

std::string flow_control_of(const std::string& device) {
  const Socket socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
  Reply reply;
  if (!exchange(socket, device, &reply)) return "";
  const std::size_t begin = NLMSG_LENGTH(sizeof(dcbmsg));
  const auto ieee = find_attribute(reply.bytes.data() + begin, reply.size - begin, DCB_ATTR_IEEE);
  const auto pfc = find_attribute(ieee.first, ieee.second, DCB_ATTR_IEEE_PFC);
  if (pfc.second < sizeof(ieee_pfc)) return "";
  ieee_pfc what{};
  std::memcpy(&what, pfc.first, sizeof what);
  std::string out = "prio-pfc";
  for (unsigned priority = 0; priority < 8; ++priority) {
    out += " " + std::to_string(priority) + ((what.pfc_en >> priority & 1) != 0 ? ":on" : ":off");
  }
  return out + "\n";
}

}  // namespace kvd::doctor
