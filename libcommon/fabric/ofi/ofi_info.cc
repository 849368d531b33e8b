#include "fabric/ofi/ofi_info.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <rdma/fi_endpoint.h>
#include <rdma/fi_errno.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>

#include "fabric/ofi/send_buffer.h"
#include "fabric/provider_details.h"

namespace kvd::fabric::ofi {
namespace {

constexpr std::uint32_t kApi = FI_VERSION(FI_MAJOR_VERSION, FI_MINOR_VERSION);
constexpr std::uint64_t kMaxWriteBytes = 1u << 20;
// Fewer, larger writes move faster; under bbr only on the loopback with short send buffers (why is
// not known). GB/s of pages of 4 MiB in 32 layers, with long send buffers on the loopback: in
// writes of 1 MiB 5.9, of 768 KiB 7.0. Between network namespaces, with short ones: in writes of 4
// MiB 4.6, of 768 KiB 6.1. On the loopback with short ones, CPUs that share no cache, in writes of
// 768 KiB and of 4 MiB: pages of 720 KiB 6.03 and 6.17, groups 5.6 and 5.8.
// Closing the endpoint fences all the same, and no more bytes are in flight.
constexpr std::uint64_t kMaxTcpWriteBytes = 4u << 20, kBestBbrWriteBytes = 768u << 10;
constexpr std::uint64_t kTcpInflightBytes = 4u << 20;
// What Linux sends at once: on the loopback 64 KiB without the headers of IP and TCP, elsewhere
// whole segments (45 of an MTU of 1500; with another MTU long and short ends come as they would
// anyhow). Under bbr the kernel keeps each of these back until the one before it would be gone at
// the rate that it measured, and sets a timer for it: a short one, as the last of a write may be,
// is ready too early. A timer costs a virtual machine up to 40 us of the sender's processor. (On a
// Xeon, GB/s, with a short last packet and with one of 37 KB: four pieces of 144 KiB a write 4.0
// and 5.1, of 128 KiB, polling, 4.1 and 4.8, of 64 KiB 2.4 and 3.1; between network namespaces of
// 64 KiB 1.6 and 2.6.)
constexpr std::uint64_t kLoopbackPacketBytes = 65'483, kLoopbackPacketBytes6 = 65'464,
                        kPacketBytes = 65'160;
static_assert(kMaxTcpWriteBytes <= kTcpInflightBytes);

// libfabric's TCP providers read up to 9000 bytes of each write into a buffer of their own and copy
// them from there, unless told not to: of four pages of 4 KiB that is half of the bytes. (GB/s of
// scattered pages on the loopback, with and without: 4 KiB 1.95 and 2.18, 24 KiB 3.88 and 4.20,
// groups 4.9 and 5.0; a commit then takes 8.2 us instead of 7.7.)
constexpr std::array<const char*, 2> kReadInPlace = {"FI_NET_PREFETCH_RBUF_SIZE",
                                                     "FI_TCP_PREFETCH_RBUF_SIZE"};
constexpr const char* kReadInPlaceValue = "0";
// Before main, as other threads may read the environment afterwards. What the user has set stands.
[[maybe_unused]] const bool kReadsInPlace =
    std::all_of(kReadInPlace.begin(), kReadInPlace.end(),
                [](const char* name) { return setenv(name, kReadInPlaceValue, 0) == 0; });

// The default congestion control of this network namespace; unreadable is taken for another.
bool has_bbr() {
  std::ifstream file("/proc/sys/net/ipv4/tcp_congestion_control");
  std::string name;
  file >> name;
  return name.starts_with("bbr");
}

bool is_tcp(const std::string& provider) { return provider.starts_with("tcp"); }
// Providers whose addresses are IP addresses; efa and cxi have their own and take only a device.
bool has_ip_address(const std::string& provider) {
  return is_tcp(provider) || provider == "verbs;ofi_rxm";
}

}  // namespace

std::vector<const char*> libfabric_names(const std::string& provider) {
  if (provider == "tcp") return {"net", "tcp"};
  if (provider == "tcp;ofi_rxm") return {"tcp;ofi_rxm"};
  if (provider == "verbs;ofi_rxm") return {"verbs;ofi_rxm"};
  if (provider == "efa") return {"efa"};
  if (provider == "cxi") return {"cxi"};
  return {};
}

InfoPtr make_hints(const std::string& provider, const char* libfabric_name,
                   const std::string& device, std::uint64_t tx_op_flags) {
  InfoPtr hints(fi_allocinfo());
  if (hints == nullptr) return hints;
  hints->caps = FI_MSG | FI_RMA;
  hints->mode = FI_CONTEXT | FI_CONTEXT2;
  hints->ep_attr->type = FI_EP_RDM;
  hints->domain_attr->threading = FI_THREAD_DOMAIN;
  // Manual progress keeps libfabric from starting threads of its own (rxm would).
  hints->domain_attr->control_progress = FI_PROGRESS_MANUAL;
  hints->domain_attr->data_progress = FI_PROGRESS_MANUAL;
  hints->domain_attr->resource_mgmt = FI_RM_ENABLED;
  hints->domain_attr->mr_mode =
      FI_MR_VIRT_ADDR | FI_MR_ALLOCATED | FI_MR_PROV_KEY | FI_MR_LOCAL | FI_MR_ENDPOINT;
  if (is_tcp(provider) || provider == "verbs;ofi_rxm") {
    // Asked for only where the reference found it; efa has none, cxi's is not relied upon.
    hints->tx_attr->msg_order = FI_ORDER_WAW;
    hints->rx_attr->msg_order = FI_ORDER_WAW;
  }
  hints->tx_attr->op_flags = tx_op_flags;
  hints->fabric_attr->prov_name = strdup(libfabric_name);
  if (!device.empty()) hints->domain_attr->name = strdup(device.c_str());
  return hints;
}

namespace {

std::string printable(const fi_info& info) {
  if (info.src_addr == nullptr) return {};
  char text[INET6_ADDRSTRLEN] = {};
  const auto* any = static_cast<const sockaddr*>(info.src_addr);
  if (info.addr_format == FI_SOCKADDR_IN || any->sa_family == AF_INET) {
    const auto* in = static_cast<const sockaddr_in*>(info.src_addr);
    if (inet_ntop(AF_INET, &in->sin_addr, text, sizeof text) != nullptr) return text;
  } else if (info.addr_format == FI_SOCKADDR_IN6 || any->sa_family == AF_INET6) {
    const auto* in = static_cast<const sockaddr_in6*>(info.src_addr);
    if (inet_ntop(AF_INET6, &in->sin6_addr, text, sizeof text) != nullptr) return text;
  }
  return {};
}

// A provider that refuses FI_DELIVERY_COMPLETE as a default cannot prove delivery either.
bool proves_delivery(const std::string& provider, const char* libfabric_name,
                     const std::string& device) {
  if (is_tcp(provider)) return true;  // measured
  InfoPtr hints = make_hints(provider, libfabric_name, device, FI_DELIVERY_COMPLETE);
  fi_info* found = nullptr;
  if (hints == nullptr || fi_getinfo(kApi, nullptr, nullptr, 0, hints.get(), &found) != 0) {
    return false;
  }
  fi_freeinfo(found);
  return true;
}

Capabilities capabilities_of(const std::string& provider, const fi_info& info, bool delivery,
                             bool short_writes) {
  const bool tcp = is_tcp(provider);
  const std::uint64_t most = tcp ? kMaxTcpWriteBytes : kMaxWriteBytes;
  Capabilities out;
  out.provider = provider;
  out.libfabric_name = info.fabric_attr->prov_name;
  out.write_after_write = (tcp || provider == "verbs;ofi_rxm") &&
                          (info.tx_attr->msg_order & FI_ORDER_WAW) != 0 &&
                          info.ep_attr->max_order_waw_size >= most;
  // kvd's remote data are 32 bits. cxi took FI_REMOTE_CQ_DATA in fi_writemsg only lately and only
  // with an environment switch: there the commit is told by a message.
  out.remote_cq_data = provider != "cxi" && info.domain_attr->cq_data_size >= 4;
  out.delivery_complete = delivery;
  out.endpoint_per_peer = tcp;
  out.endpoint_close_fences = tcp;
  // Not established on any provider; on TCP it is measured to be false.
  out.region_close_fences = false;
  out.rdma = !tcp;
  // Before 1.19 efa carried every write as messages that the target's CPU copies.
  out.emulated = provider == "efa" && FI_VERSION_LT(fi_version(), FI_VERSION(1, 19));
  const auto limit = [](std::size_t n) {
    return static_cast<std::uint32_t>(std::clamp<std::size_t>(n, 1, 16));
  };
  out.iov_limit = limit(info.tx_attr->iov_limit);
  out.rma_iov_limit = limit(info.tx_attr->rma_iov_limit);
  out.max_write_bytes = std::min<std::uint64_t>(most, info.ep_attr->max_msg_size);
  if (short_writes) out.best_write_bytes = kBestBbrWriteBytes;
  const std::size_t queue = std::max<std::size_t>(info.tx_attr->size, 2);
  out.max_inflight_ops =
      static_cast<std::uint32_t>(std::min<std::size_t>(tcp ? 64 : 256, queue / 2));
  out.max_inflight_bytes = tcp ? kTcpInflightBytes : 32u << 20;
  return out;
}

std::uint64_t packet_bytes_of(const fi_info& info, bool loopback) {
  if (!loopback) return kPacketBytes;
  const auto* any = static_cast<const sockaddr*>(info.src_addr);
  return any->sa_family == AF_INET6 ? kLoopbackPacketBytes6 : kLoopbackPacketBytes;
}

Offer make_offer(const std::string& provider, InfoPtr info, bool delivery) {
  const bool bbr = is_tcp(provider) && has_bbr();
  const bool loopback =
      bbr && is_loopback(FabricAddress(static_cast<const char*>(info->src_addr),
                                       info->src_addr == nullptr ? 0 : info->src_addrlen));
  const bool short_writes = bbr && !(loopback && may_shorten_send_buffers());
  Capabilities capabilities = capabilities_of(provider, *info, delivery, short_writes);
  if (bbr) capabilities.packet_bytes = packet_bytes_of(*info, loopback);
  std::string address = printable(*info);
  return {std::move(info), std::move(capabilities), std::move(address), bbr};
}

}  // namespace

std::string describe(const char* call, long rc) {
  return std::string(call) + ": " + fi_strerror(static_cast<int>(rc < 0 ? -rc : rc));
}

Status check_source(const std::string& provider, const std::string& source_address) {
  if (!has_ip_address(provider) || source_address.empty()) return {};
  const auto no = [&](const std::string& why) {
    return Status(StatusCode::kNoProvider, "provider " + provider + ": " + source_address + " " +
                                               why +
                                               ": give --fabric-addr an address of this host");
  };
  addrinfo hints{}, *found = nullptr;
  hints.ai_socktype = SOCK_STREAM;
  const int rc = getaddrinfo(source_address.c_str(), nullptr, &hints, &found);
  if (rc != 0) return no(std::string("does not resolve (") + gai_strerror(rc) + ")");
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> list(found, &freeaddrinfo);
  const sockaddr* any = found->ai_addr;
  const bool wildcard =
      (any->sa_family == AF_INET &&
       reinterpret_cast<const sockaddr_in*>(any)->sin_addr.s_addr == INADDR_ANY) ||
      (any->sa_family == AF_INET6 &&
       IN6_IS_ADDR_UNSPECIFIED(&reinterpret_cast<const sockaddr_in6*>(any)->sin6_addr));
  if (wildcard) return no("is no address that a peer could write to");
  // fi_getinfo takes any address of a subnet it knows; only bind tells whether it is ours.
  const int probe = socket(any->sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (probe < 0) return no("cannot be tried");
  const bool ours = bind(probe, any, found->ai_addrlen) == 0;
  close(probe);
  return ours ? Status() : no("is not an address of this host");
}

std::vector<Offer> find_offers(const std::string& provider, const std::string& source_address,
                               const std::string& device) {
  std::vector<Offer> offers;
  if (!check_source(provider, source_address).ok()) return offers;
  const std::string source = source_address.empty() ? "127.0.0.1" : source_address;
  const bool ip = has_ip_address(provider);
  for (const char* name : libfabric_names(provider)) {
    InfoPtr hints = make_hints(provider, name, device, 0);
    if (hints == nullptr) return offers;
    fi_info* found = nullptr;
    const int rc = fi_getinfo(kApi, ip ? source.c_str() : nullptr, nullptr, ip ? FI_SOURCE : 0,
                              hints.get(), &found);
    if (rc != 0) continue;
    InfoPtr list(found);
    for (const fi_info* info = list.get(); info != nullptr; info = info->next) {
      // Asking for `tcp` may be answered by a layered `tcp;ofi_rxm`, which is another transport.
      if (std::strcmp(info->fabric_attr->prov_name, name) != 0) continue;
      const std::string domain = info->domain_attr->name;
      const bool known = std::any_of(offers.begin(), offers.end(), [&](const Offer& offer) {
        return domain == offer.info->domain_attr->name;
      });
      if (known || (!device.empty() && domain != device)) continue;
      InfoPtr copy(fi_dupinfo(info));
      if (copy == nullptr) return offers;
      offers.push_back(
          make_offer(provider, std::move(copy), proves_delivery(provider, name, device)));
    }
    if (!offers.empty()) break;
  }
  return offers;
}

std::vector<Offer> find_all_offers(const std::string& provider) {
  std::vector<Offer> offers;
  for (const char* name : libfabric_names(provider)) {
    InfoPtr hints = make_hints(provider, name, "", 0);
    fi_info* found = nullptr;
    if (hints == nullptr || fi_getinfo(kApi, nullptr, nullptr, 0, hints.get(), &found) != 0) {
      continue;
    }
    InfoPtr list(found);
    for (const fi_info* info = list.get(); info != nullptr; info = info->next) {
      if (std::strcmp(info->fabric_attr->prov_name, name) != 0) continue;
      const std::string domain = info->domain_attr->name;
      const std::string address = printable(*info);
      const bool known = std::any_of(offers.begin(), offers.end(), [&](const Offer& offer) {
        return domain == offer.info->domain_attr->name && address == offer.address;
      });
      InfoPtr copy(known ? nullptr : fi_dupinfo(info));
      if (copy == nullptr) continue;
      offers.push_back(
          make_offer(provider, std::move(copy), proves_delivery(provider, name, domain)));
    }
    if (!offers.empty()) break;
  }
  return offers;
}

}  // namespace kvd::fabric::ofi

namespace kvd::fabric {

bool is_own_setting(std::string_view name, std::string_view value) {
  return value == ofi::kReadInPlaceValue &&
         std::find(ofi::kReadInPlace.begin(), ofi::kReadInPlace.end(), name) !=
             ofi::kReadInPlace.end();
}

}  // namespace kvd::fabric
