#include "kvd-probe/doctor/checks.h"

#include <algorithm>
#include <array>

#include "kvd-probe/doctor/check_list.h"

namespace kvd::doctor {
namespace {

constexpr std::size_t kMaxEvidence = 24;
constexpr std::size_t kMaxEvidenceBytes = 300;

// Bytes of a tree go to a terminal: no control characters.
std::string shown(std::string text) {
  if (text.size() > kMaxEvidenceBytes) text = text.substr(0, kMaxEvidenceBytes) + "...";
  for (char& c : text) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = ' ';
  }
  return text;
}

std::vector<ProviderFact> parse_providers(const std::string& text) {
  std::vector<ProviderFact> out;
  for (const std::string& line : lines_of(text)) {
    const std::vector<std::string> words = words_of(line);
    if (words.size() < 2 || out.size() == kMaxEntries) continue;
    ProviderFact fact;
    fact.name = words[0];
    fact.domain = words[1];
    for (const std::string& word : words) {
      fact.hmem = fact.hmem || word == "hmem";
      fact.emulated = fact.emulated || word == "emulated";
      if (word.starts_with("regions=")) fact.regions = number_of(word.substr(8)).value_or(0);
    }
    out.push_back(std::move(fact));
  }
  return out;
}

std::map<std::string, std::string> parse_environment(const std::string& text) {
  std::map<std::string, std::string> out;
  for (const std::string& line : lines_of(text)) {
    const std::size_t equals = line.find('=');
    if (equals != std::string::npos && equals > 0 && out.size() < kMaxEntries) {
      out[line.substr(0, equals)] = line.substr(equals + 1);
    }
  }
  return out;
}

void add_counters(const Tree& tree, const std::string& folder, std::span<const char* const> names,
                  Counters* out) {
  for (const char* name : names) {
    const std::string path = folder + "/" + name;
    if (const auto value = number_of(tree.read(path).text)) (*out)[path] = *value;
  }
}

// Lines "  rx_prio3_pause: 12", as `ethtool -S` prints.
void add_statistics(const Tree& tree, const std::string& device, Counters* out) {
  const std::string path = "kvd/statistics/" + device;
  for (const std::string& line : lines_of(tree.read(path).text)) {
    const std::size_t colon = line.find(": ");
    const std::size_t begin = line.find_first_not_of(" \t");
    if (colon == std::string::npos || begin >= colon || out->size() >= kMaxEntries) continue;
    const std::string name = line.substr(begin, colon - begin);
    if (!name.ends_with("_pause")) continue;
    if (const auto value = number_of(line.substr(colon + 2))) (*out)[path + "/" + name] = *value;
  }
}

}  // namespace

std::string_view to_string(Outcome outcome) {
  switch (outcome) {
    case Outcome::kSkip:
      return "skip";
    case Outcome::kPass:
      return "pass";
    case Outcome::kUnknown:
      return "unknown";
    case Outcome::kWarn:
      return "warn";
    case Outcome::kFail:
      return "fail";
  }
  return "unknown";
}

void Verdict::add(Outcome outcome, std::string evidence) {
  outcome_ = std::max(outcome_, outcome);
  if (evidence_.size() == kMaxEvidence) {
    ++left_out_;
    return;
  }
  evidence_.emplace_back(outcome, shown(std::move(evidence)));
}

void Verdict::finish(Finding* finding) const {
  finding->outcome = outcome_;
  const bool bad = outcome_ == Outcome::kWarn || outcome_ == Outcome::kFail;
  for (const auto& [outcome, text] : evidence_) {
    // What is well says nothing about what is not.
    if (outcome == outcome_ || (bad && outcome == Outcome::kWarn))
      finding->evidence.push_back(text);
  }
  if (left_out_ > 0) finding->evidence.push_back("and " + std::to_string(left_out_) + " more");
  if (finding->evidence.empty()) finding->evidence.emplace_back("nothing to look at");
  if (outcome_ == Outcome::kUnknown) finding->command = command_;
  if (!bad) {
    finding->consequence.clear();
    finding->remedy.clear();
    return;
  }
  if (!remedy_.empty()) finding->remedy = remedy_;
  if (!consequence_.empty()) finding->consequence = consequence_;
}

Counters read_counters(const Tree& tree, const Host& host) {
  static constexpr std::array kErrors = {"symbol_error", "link_downed", "port_rcv_errors"};
  static constexpr std::array kRetransmits = {"out_of_sequence", "packet_seq_err",
                                              "local_ack_timeout_err", "rnr_nak_retry_err"};
  Counters out;
  for (const RdmaDevice& device : host.rdma) {
    for (const RdmaPort& port : device.ports) {
      add_counters(tree, port.path + "/counters", kErrors, &out);
      add_counters(tree, port.path + "/hw_counters", kRetransmits, &out);
    }
  }
  for (const NetDevice& device : host.net) {
    if (device.physical) add_statistics(tree, device.name, &out);
  }
  const std::string stat = cgroup_path(tree) + "/cpu.stat";
  for (const std::string& line : lines_of(tree.read(stat).text)) {
    const std::vector<std::string> words = words_of(line);
    if (words.size() != 2 || words[0] != "nr_throttled") continue;
    if (const auto value = number_of(words[1])) out[stat + "/nr_throttled"] = *value;
  }
  return out;
}

Inputs make_inputs(const Tree& tree, const Tree* later, const Settings& settings) {
  Inputs in{.tree = tree,
            .host = read_host(tree),
            .settings = settings,
            .providers = std::nullopt,
            .environment = std::nullopt,
            .before = {},
            .after = std::nullopt};
  if (const Text text = tree.read("kvd/providers"); text.ok()) {
    in.providers = parse_providers(text.text);
  }
  if (const Text text = tree.read("kvd/environment"); text.ok()) {
    in.environment = parse_environment(text.text);
  }
  in.before = read_counters(tree, in.host);
  if (later != nullptr) in.after = read_counters(*later, in.host);
  return in;
}

Finding run_check(const Check& check, const Inputs& in) {
  Finding finding;
  finding.id = check.id;
  finding.title = check.title;
  finding.consequence = check.consequence;
  finding.remedy = check.remedy;
  Verdict verdict;
  check.run(in, &verdict);
  verdict.finish(&finding);
  return finding;
}

bool any_rdma_port_active(const Inputs& in) {
  for (const RdmaDevice& device : in.host.rdma) {
    for (const RdmaPort& port : device.ports) {
      if (port.active()) return true;
    }
  }
  return std::any_of(in.host.cxi.begin(), in.host.cxi.end(), [&](const CxiDevice& device) {
    return std::any_of(device.netdevs.begin(), device.netdevs.end(), [&](const std::string& name) {
      const NetDevice* net = in.host.find_net(name);
      return net != nullptr && net->up();
    });
  });
}

std::vector<const NetDevice*> roce_netdevs(const Inputs& in) {
  std::vector<const NetDevice*> out;
  const auto add = [&](const std::string& name) {
    const NetDevice* net = in.host.find_net(name);
    if (net != nullptr && std::find(out.begin(), out.end(), net) == out.end()) out.push_back(net);
  };
  for (const RdmaDevice& device : in.host.rdma) {
    for (const RdmaPort& port : device.ports) {
      if (!port.roce() || !port.active()) continue;
      for (const Gid& gid : port.gids) {
        if (!gid.netdev.empty()) add(gid.netdev);
      }
      // Without a GID the PCI device still names its network devices.
      if (port.gids.empty()) std::for_each(device.netdevs.begin(), device.netdevs.end(), add);
    }
  }
  return out;
}

std::string joined(const std::vector<std::string>& parts) {
  std::string out;
  for (const std::string& part : parts) out += (out.empty() ? "" : ", ") + part;
  return out;
}

std::string cgroup_path(const Tree& tree) {
  for (const std::string& line : lines_of(tree.read("proc/self/cgroup").text)) {
    if (line.starts_with("0::/")) {
      const std::string path = line.substr(3);
      return "sys/fs/cgroup" + (path == "/" ? "" : path);
    }
  }
  return "sys/fs/cgroup";
}

std::vector<std::pair<std::string, std::uint64_t>> grown(const Inputs& in,
                                                         const std::vector<std::string>& endings) {
  std::vector<std::pair<std::string, std::uint64_t>> out;
  if (!in.after) return out;
  for (const auto& before : in.before) {
    const auto after = in.after->find(before.first);
    if (after == in.after->end() || after->second <= before.second) continue;
    if (std::any_of(endings.begin(), endings.end(),
                    [&](const std::string& ending) { return before.first.ends_with(ending); })) {
      out.emplace_back(before.first, after->second - before.second);
    }
  }
  return out;
}

}  // namespace kvd::doctor
