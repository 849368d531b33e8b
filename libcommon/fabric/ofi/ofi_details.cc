#include <rdma/fabric.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <filesystem>

#include "fabric/ofi/ofi_info.h"
#include "fabric/provider_details.h"

namespace kvd::fabric {
namespace {

constexpr std::uint32_t kApi = FI_VERSION(FI_MAJOR_VERSION, FI_MINOR_VERSION);

std::vector<std::string> mr_mode_names(int mode) {
  static constexpr std::array<std::pair<int, const char*>, 9> kNames = {
      {{FI_MR_LOCAL, "local"},
       {FI_MR_RAW, "raw"},
       {FI_MR_VIRT_ADDR, "virt_addr"},
       {FI_MR_ALLOCATED, "allocated"},
       {FI_MR_PROV_KEY, "prov_key"},
       {FI_MR_RMA_EVENT, "rma_event"},
       {FI_MR_ENDPOINT, "endpoint"},
       {FI_MR_HMEM, "hmem"},
       {FI_MR_COLLECTIVE, "collective"}}};
  std::vector<std::string> out;
  for (const auto& [bit, name] : kNames) {
    if ((mode & bit) != 0) out.emplace_back(name);
  }
  return out;
}

bool takes_device_memory(const ofi::Offer& offer) {
  ofi::InfoPtr hints =
      ofi::make_hints(offer.capabilities.provider, offer.info->fabric_attr->prov_name,
                      offer.info->domain_attr->name, 0);
  if (hints == nullptr) return false;
  hints->caps |= FI_HMEM;
  hints->domain_attr->mr_mode |= FI_MR_HMEM;
  fi_info* found = nullptr;
  if (fi_getinfo(kApi, nullptr, nullptr, 0, hints.get(), &found) != 0) return false;
  fi_freeinfo(found);
  return true;
}

// The flag came with 1.20. Where both are there only a registration tells whether it works.
std::optional<bool> takes_dmabuf(bool hmem) {
#ifdef FI_MR_DMABUF
  if (FI_VERSION_GE(fi_version(), FI_VERSION(1, 20)) && hmem) return std::nullopt;
#endif
  (void)hmem;
  return false;
}

std::string pci_text(const fi_pci_attr& pci) {
  const auto hex = [](unsigned value, std::size_t digits) {
    static constexpr char kDigits[] = "0123456789abcdef";
    std::string out(digits, '0');
    for (std::size_t i = digits; i-- > 0; value >>= 4) out[i] = kDigits[value & 15];
    return out;
  };
  return hex(pci.domain_id, 4) + ":" + hex(pci.bus_id, 2) + ":" + hex(pci.device_id, 2) + "." +
         hex(pci.function_id, 1);
}

void add_nic(const fid_nic* nic, ProviderDetails* out) {
  if (nic == nullptr) return;
  if (nic->link_attr != nullptr) {
    out->link_bits_per_s = nic->link_attr->speed;
    if (nic->link_attr->state == FI_LINK_UP) out->link_state = "up";
    if (nic->link_attr->state == FI_LINK_DOWN) out->link_state = "down";
  }
  if (nic->bus_attr != nullptr && nic->bus_attr->bus_type == FI_BUS_PCI) {
    out->pci_address = pci_text(nic->bus_attr->attr.pci);
  }
}

ProviderDetails details_of(const ofi::Offer& offer) {
  const fi_info& info = *offer.info;
  ProviderDetails out;
  out.info = {.name = offer.capabilities.provider,
              .libfabric_name = offer.capabilities.libfabric_name,
              .domain = info.domain_attr->name,
              .address = offer.address,
              .rdma = offer.capabilities.rdma};
  out.capabilities = offer.capabilities;
  // FI_RMA without its modifiers means all of them.
  constexpr std::uint64_t kModifiers = FI_READ | FI_WRITE | FI_REMOTE_READ | FI_REMOTE_WRITE;
  const bool rma = (info.caps & FI_RMA) != 0;
  const bool plain = (info.caps & kModifiers) == 0;
  out.rma_write = rma && (plain || (info.caps & FI_WRITE) != 0);
  out.rma_read = rma && (plain || (info.caps & FI_READ) != 0);
  out.cq_data_bytes = info.domain_attr->cq_data_size;
  out.remote_cq_data = out.cq_data_bytes >= 4;
  out.hmem = takes_device_memory(offer);
  out.dmabuf = takes_dmabuf(out.hmem);
  out.mr_modes = mr_mode_names(info.domain_attr->mr_mode);
  out.max_message_bytes = info.ep_attr->max_msg_size;
  out.inject_bytes = info.tx_attr->inject_size;
  out.tx_queue = info.tx_attr->size;
  out.max_regions = info.domain_attr->mr_cnt;
  out.iov_limit = info.tx_attr->iov_limit;
  out.rma_iov_limit = info.tx_attr->rma_iov_limit;
  out.progress = info.domain_attr->data_progress == FI_PROGRESS_AUTO ? "auto" : "manual";
  add_nic(info.nic, &out);
  return out;
}

// A transport of kvd's own: libfabric knows nothing of it.
void add_own(const std::string& name, std::vector<ProviderDetails>* out) {
  for (const ProviderInfo& info : available_providers("", "")) {
    if (info.name != name) continue;
    const auto domain =
        open_domain({.provider = name, .source_address = "", .device = info.domain});
    if (!domain.ok()) continue;
    ProviderDetails details;
    details.info = info;
    details.capabilities = (*domain)->capabilities();
    details.rma_write = true;
    details.remote_cq_data = details.capabilities.remote_cq_data;
    details.dmabuf = false;
    details.max_message_bytes = details.capabilities.max_write_bytes;
    details.tx_queue = details.capabilities.max_inflight_ops;
    details.iov_limit = details.capabilities.iov_limit;
    details.rma_iov_limit = details.capabilities.rma_iov_limit;
    details.progress = "manual";
    out->push_back(std::move(details));
  }
}

// Of "tcp;ofi_rxm" the part that libfabric's filter looks at: rxm comes along by itself.
std::string core_name(const std::string& provider) {
  if (provider == "tcp") return FI_VERSION_LT(fi_version(), FI_VERSION(1, 18)) ? "net" : "tcp";
  return provider.substr(0, provider.find(';'));
}

std::vector<std::string> entries(const char* folder, const std::string& prefix) {
  std::vector<std::string> out;
  std::error_code error;
  std::filesystem::directory_iterator it(folder, error), end;
  for (; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (name.starts_with(prefix)) out.push_back(it->path().string());
  }
  return out;
}

bool any_usable(const std::vector<std::string>& devices) {
  return std::any_of(devices.begin(), devices.end(), [](const std::string& path) {
    return access(path.c_str(), R_OK | W_OK) == 0;
  });
}

MissingProvider missing(const std::string& name, const std::string& fi_provider) {
  const auto because = [&](MissingReason reason) {
    return MissingProvider{name, reason, explain_missing(name).message()};
  };
  if (is_filtered(fi_provider, core_name(name))) {
    return {name, MissingReason::kFiltered,
            "provider " + name + ": FI_PROVIDER=" + fi_provider + " leaves out " + core_name(name) +
                ": unset FI_PROVIDER, or add " + core_name(name) + " to it"};
  }
  if (name.starts_with("tcp")) return because(MissingReason::kNotInstalled);
  if (ofi::libfabric_names(name).empty()) return because(MissingReason::kNoPermission);
  const bool cxi = name == "cxi";
  const std::vector<std::string> nodes =
      cxi ? entries("/dev", "cxi") : entries("/dev/infiniband", "uverbs");
  const bool hardware = !entries(cxi ? "/sys/class/cxi" : "/sys/class/infiniband", "").empty();
  if (!hardware && nodes.empty()) return because(MissingReason::kNoDevice);
  if (!any_usable(nodes)) {
    const std::string node = cxi ? "/dev/cxi*" : "/dev/infiniband/uverbs*";
    return {name, MissingReason::kNoPermission,
            "provider " + name + ": the host has a device, but " + node +
                " cannot be opened here: map it into the container, or give this user access"};
  }
  return because(MissingReason::kNotInstalled);
}

}  // namespace

std::string_view to_string(MissingReason reason) {
  switch (reason) {
    case MissingReason::kFiltered:
      return "filtered";
    case MissingReason::kNoDevice:
      return "no_device";
    case MissingReason::kNoPermission:
      return "no_permission";
    case MissingReason::kNotInstalled:
      return "not_installed";
  }
  return "unknown";
}

bool is_filtered(std::string_view fi_provider, std::string_view libfabric_name) {
  const bool excludes = fi_provider.starts_with('^');
  if (excludes) fi_provider.remove_prefix(1);
  if (fi_provider.empty()) return false;
  bool named = false;
  while (!fi_provider.empty()) {
    const std::size_t end = std::min(fi_provider.find_first_of(",;"), fi_provider.size());
    named = named || fi_provider.substr(0, end) == libfabric_name;
    fi_provider.remove_prefix(std::min(end + 1, fi_provider.size()));
  }
  return named == excludes;
}

std::vector<ProviderDetails> list_providers() {
  std::vector<ProviderDetails> out;
  for (const std::string_view view : provider_preference()) {
    const std::string name(view);
    if (ofi::libfabric_names(name).empty()) {
      add_own(name, &out);
      continue;
    }
    for (const ofi::Offer& offer : ofi::find_all_offers(name)) out.push_back(details_of(offer));
  }
  return out;
}

std::vector<MissingProvider> missing_providers(const std::vector<ProviderDetails>& found,
                                               const std::string& fi_provider) {
  std::vector<MissingProvider> out;
  for (const std::string_view name : provider_preference()) {
    const bool here = std::any_of(found.begin(), found.end(), [&](const ProviderDetails& details) {
      return details.info.name == name;
    });
    if (!here) out.push_back(missing(std::string(name), fi_provider));
  }
  return out;
}

std::vector<std::string> unused_providers() {
  std::vector<std::string> out;
  fi_info* found = nullptr;
  if (fi_getinfo(kApi, nullptr, nullptr, FI_PROV_ATTR_ONLY, nullptr, &found) != 0) return out;
  const ofi::InfoPtr list(found);
  for (const fi_info* info = list.get(); info != nullptr; info = info->next) {
    const std::string name = info->fabric_attr->prov_name;
    // Layers and hooks stand on another provider; the others are used under their own name.
    if (name.starts_with("ofi_") || name == "efa" || name == "cxi" || name == "verbs" ||
        name == "tcp" || name == "net") {
      continue;
    }
    if (std::find(out.begin(), out.end(), name) == out.end()) out.push_back(name);
  }
  return out;
}

std::string libfabric_version() {
  const std::uint32_t version = fi_version();
  return std::to_string(FI_MAJOR(version)) + "." + std::to_string(FI_MINOR(version));
}

}  // namespace kvd::fabric
