#include <algorithm>
#include <memory>

#include "cli/exit_code.h"
#include "cli/output.h"
#include "fabric/provider_details.h"
#include "kvd-probe/doctor/host.h"
#include "kvd-probe/verbs.h"
#include "peer/provider_choice.h"

namespace kvd::tools {
namespace {

using fabric::ProviderDetails;

struct ListFields {
  std::string provider, device;
  bool require_rdma = false;
};

cli::Command list_command(ListFields* f) {
  cli::Command command;
  command.name = "list";
  command.log_level = LogLevel::kWarn;
  command.summary = "list providers, their devices, and what each can do for KV";
  command.options.group(
      "Choosing",
      {cli::text_option("provider", "P", &f->provider,
                        "only this one; status 3 when it is missing"),
       cli::text_option("device", "NAME", &f->device, "only this domain, such as eth0 or mlx5_0"),
       cli::flag_option("require-rdma", &f->require_rdma, "status 3 when there is no RDMA")});
  command.examples =
      "kvd-probe list\n"
      "kvd-probe list --json | jq -r '.missing[] | .message'";
  return command;
}

// What libfabric offers at one domain, with all its addresses, and where the device sits.
struct Row {
  ProviderDetails details;
  std::vector<std::string> addresses;
  std::string link_state;                           // "up", "down", "" when nothing says
  std::uint64_t link_bits_per_s = 0, link_mtu = 0;  // 0: nothing says
  doctor::PciFacts pci;
  std::optional<doctor::Gpu> gpu;
};

const doctor::RdmaDevice* find_rdma(const doctor::Host& host, const std::string& domain) {
  for (const doctor::RdmaDevice& device : host.rdma) {
    // libfabric adds what kind of endpoint a domain is for: efa_0-rdm, mlx5_0-xrc.
    if (domain == device.name || domain.starts_with(device.name + "-")) return &device;
  }
  return nullptr;
}

const doctor::CxiDevice* find_cxi(const doctor::Host& host, const std::string& domain) {
  for (const doctor::CxiDevice& device : host.cxi) {
    if (device.name == domain) return &device;
  }
  return nullptr;
}

// libfabric tells nothing of the links of TCP, so the kernel is asked.
void place(const doctor::Host& host, Row* row) {
  const std::string& domain = row->details.info.domain;
  row->link_state = row->details.link_state;
  row->link_bits_per_s = row->details.link_bits_per_s;
  const doctor::NetDevice* net = host.find_net(domain);
  bool device = net != nullptr && net->physical;
  if (device) row->pci = net->pci;
  if (const doctor::RdmaDevice* rdma = find_rdma(host, domain)) {
    row->pci = rdma->pci;
    device = true;
    if (!rdma->netdevs.empty()) net = host.find_net(rdma->netdevs.front());
  } else if (const doctor::CxiDevice* cxi = find_cxi(host, domain)) {
    row->pci = cxi->pci;
    device = true;
    if (!cxi->netdevs.empty()) net = host.find_net(cxi->netdevs.front());
  }
  if (net != nullptr) {
    row->link_mtu = net->mtu.value_or(0);
    if (row->link_bits_per_s == 0) row->link_bits_per_s = net->mbits_per_s.value_or(0) * 1'000'000;
    if (row->link_state.empty() && net->state != "unknown") row->link_state = net->state;
  }
  const doctor::Gpu* gpu = device ? doctor::nearest_gpu(host, row->pci) : nullptr;
  if (gpu != nullptr) row->gpu = *gpu;
}

std::vector<Row> rows_of(const std::vector<ProviderDetails>& found, const doctor::Host& host,
                         const ListFields& fields) {
  std::vector<Row> rows;
  for (const ProviderDetails& details : found) {
    if (!fields.device.empty() && details.info.domain != fields.device) continue;
    if (!fields.provider.empty() && details.info.name != fields.provider) continue;
    const auto same = std::find_if(rows.begin(), rows.end(), [&](const Row& row) {
      return row.details.info.name == details.info.name &&
             row.details.info.domain == details.info.domain;
    });
    if (same != rows.end()) {
      if (!details.info.address.empty()) same->addresses.push_back(details.info.address);
      continue;
    }
    Row row;
    row.details = details;
    if (!details.info.address.empty()) row.addresses.push_back(details.info.address);
    place(host, &row);
    rows.push_back(std::move(row));
  }
  return rows;
}

void text_or_null(cli::JsonWriter* json, std::string_view name, const std::string& text) {
  json->key(name);
  text.empty() ? json->null() : json->value(text);
}

constexpr std::uint64_t kUnlimited = 1ull << 62;  // what providers without a limit say, or more

void number_or_null(cli::JsonWriter* json, std::string_view name, std::uint64_t number) {
  json->key(name);
  number == 0 || number >= kUnlimited ? json->null() : json->value(number);
}

void write_place(cli::JsonWriter* json, const Row& row) {
  json->key("link").begin_object();
  text_or_null(json, "state", row.link_state);
  number_or_null(json, "bits_per_s", row.link_bits_per_s);
  number_or_null(json, "mtu_bytes", row.link_mtu);
  json->end_object();
  text_or_null(json, "pci_address",
               row.pci.address.empty() ? row.details.pci_address : row.pci.address);
  text_or_null(json, "driver", row.pci.driver);
  json->key("numa_node");
  row.pci.numa_node < 0 ? json->null() : json->value(row.pci.numa_node);
  json->key("nearest_gpu");
  if (!row.gpu) {
    json->null();
    return;
  }
  json->begin_object().field("vendor", row.gpu->vendor);
  text_or_null(json, "model", row.gpu->model);
  json->field("pci_address", row.gpu->pci.address).end_object();
}

void write_row(cli::JsonWriter* json, const Row& row) {
  const ProviderDetails& d = row.details;
  json->begin_object()
      .field("provider", d.info.name)
      .field("libfabric_name", d.info.libfabric_name);
  json->field("domain", d.info.domain).key("addresses").begin_array();
  for (const std::string& address : row.addresses) json->value(address);
  json->end_array().field("rdma", d.info.rdma).field("emulated", d.capabilities.emulated);
  json->field("rma_write", d.rma_write).field("rma_read", d.rma_read);
  json->field("delivery_complete", d.capabilities.delivery_complete);
  json->field("write_after_write", d.capabilities.write_after_write);
  json->field("remote_cq_data", d.capabilities.remote_cq_data);
  json->field("cq_data_bytes", d.cq_data_bytes);
  json->field("hmem", d.hmem).key("dmabuf");
  d.dmabuf ? json->value(*d.dmabuf) : json->null();
  json->key("mr_modes").begin_array();
  for (const std::string& mode : d.mr_modes) json->value(mode);
  json->end_array();
  number_or_null(json, "max_message_bytes", d.max_message_bytes);
  json->field("max_write_bytes", d.capabilities.max_write_bytes);
  json->field("iov_limit", d.iov_limit).field("rma_iov_limit", d.rma_iov_limit);
  json->field("inject_bytes", d.inject_bytes).field("tx_queue", d.tx_queue);
  number_or_null(json, "max_regions", d.max_regions);
  json->field("progress", d.progress);
  write_place(json, row);
  json->end_object();
}

std::string to_json(const std::vector<Row>& rows,
                    const std::vector<fabric::MissingProvider>& missing) {
  cli::JsonWriter json;
  json.begin_object().field("libfabric", fabric::libfabric_version());
  json.key("providers").begin_array();
  for (const Row& row : rows) write_row(&json, row);
  json.end_array().key("missing").begin_array();
  for (const fabric::MissingProvider& one : missing) {
    json.begin_object().field("provider", one.name);
    json.field("reason", fabric::to_string(one.reason)).field("message", one.message).end_object();
  }
  json.end_array().key("unused").begin_array();
  for (const std::string& name : fabric::unused_providers()) json.value(name);
  json.end_array().end_object();
  return json.take() + "\n";
}

std::string yes(bool b) { return b ? "yes" : "no"; }

std::string bytes_text(std::uint64_t bytes) {
  if (bytes >= kUnlimited) return "any";
  const char* const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  std::size_t unit = 0;
  while (bytes >= 1024 && bytes % 1024 == 0 && unit + 1 < std::size(units)) {
    bytes /= 1024;
    ++unit;
  }
  return std::to_string(bytes) + " " + units[unit];
}

std::string joined(const std::vector<std::string>& parts, const std::string& none) {
  std::string out;
  for (const std::string& part : parts) out += (out.empty() ? "" : ",") + part;
  return out.empty() ? none : out;
}

std::string link_text(const Row& row) {
  std::string out = row.link_state.empty() ? "-" : row.link_state;
  if (row.link_bits_per_s != 0) {
    out += " " + std::to_string(row.link_bits_per_s / 1'000'000'000) + " Gbit/s";
  }
  return out;
}

std::string to_text(const std::vector<Row>& rows,
                    const std::vector<fabric::MissingProvider>& missing) {
  cli::TableWriter table({"provider", "domain", "rdma", "write", "delivery", "cq data", "hmem",
                          "dmabuf", "mr modes", "max message", "iov", "inject", "link", "numa",
                          "gpu", "addresses"});
  for (const Row& row : rows) {
    const ProviderDetails& d = row.details;
    const std::string numa = row.pci.numa_node < 0 ? "-" : std::to_string(row.pci.numa_node);
    table.add_row({d.info.name, d.info.domain,
                   d.capabilities.emulated ? "emulated" : yes(d.info.rdma), yes(d.rma_write),
                   yes(d.capabilities.delivery_complete), yes(d.capabilities.remote_cq_data),
                   yes(d.hmem), d.dmabuf ? yes(*d.dmabuf) : "try", joined(d.mr_modes, "-"),
                   bytes_text(d.max_message_bytes),
                   std::to_string(d.iov_limit) + "/" + std::to_string(d.rma_iov_limit),
                   bytes_text(d.inject_bytes), link_text(row), numa,
                   row.gpu ? row.gpu->pci.address : "-", joined(row.addresses, "-")});
  }
  std::string text = rows.empty() ? "no provider\n" : table.render();
  for (const fabric::MissingProvider& one : missing) text += "missing: " + one.message + "\n";
  return text;
}

// Why `fields` cannot be met here.
Status check_choice(const ListFields& fields, const std::vector<Row>& rows,
                    const std::vector<fabric::MissingProvider>& missing) {
  const auto no = [](std::string why) { return Status(StatusCode::kNoProvider, std::move(why)); };
  for (const fabric::MissingProvider& one : missing) {
    if (one.name == fields.provider) return no(one.message);
  }
  if (!fields.device.empty() && rows.empty()) {
    return no("no provider has the domain " + fields.device +
              ": kvd-probe list without --device names them");
  }
  const bool rdma =
      std::any_of(rows.begin(), rows.end(), [](const Row& row) { return row.details.info.rdma; });
  if (fields.require_rdma && !rdma) {
    std::string why;
    for (const fabric::MissingProvider& one : missing) {
      if (!one.name.starts_with("tcp")) why += "; " + one.message;
    }
    return no("--require-rdma: no provider with RDMA here" + why);
  }
  return {};
}

int run_list(ListFields& fields, const cli::Invocation& invocation) {
  if (const Status known = check_provider_name(fields.provider); !known.ok()) {
    return cli::report_error(kProbeProgram, known, invocation.json);
  }
  fields.provider = full_provider_name(fields.provider);
  const auto tree = doctor::open_tree("/");
  if (!tree.ok()) return cli::report_error(kProbeProgram, tree.status(), invocation.json);
  const std::vector<ProviderDetails> found = fabric::list_providers();
  const std::string filter = cli::process_environment()("FI_PROVIDER").value_or("");
  const auto missing = fabric::missing_providers(found, filter);
  const std::vector<Row> rows = rows_of(found, doctor::read_host(**tree), fields);
  Status status = check_choice(fields, rows, missing);
  if (status.ok()) {
    status = cli::write_out(invocation.json ? to_json(rows, missing) : to_text(rows, missing));
  }
  return status.ok() ? cli::kExitOk : cli::report_error(kProbeProgram, status, invocation.json);
}

}  // namespace

Verb list_verb() {
  auto fields = std::make_shared<ListFields>();
  return {list_command(fields.get()),
          [fields](const cli::Invocation& invocation) { return run_list(*fields, invocation); }};
}

}  // namespace kvd::tools
