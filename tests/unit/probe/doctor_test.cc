#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>
#include <set>

#include "kvd-probe/doctor/checks.h"

namespace kvd::doctor {
namespace {

namespace fs = std::filesystem;

// A folder that is gone with the test.
struct Folder {
  Folder() {
    std::string name = (fs::temp_directory_path() / "kvd-tree-XXXXXX").string();
    REQUIRE(mkdtemp(name.data()) != nullptr);
    path = name;
  }
  ~Folder() { fs::remove_all(path); }
  void write(const std::string& name, const std::string& text) const {
    fs::create_directories((path / name).parent_path());
    std::ofstream(path / name) << text;
  }
  fs::path path;
};

Finding run(const std::string& id, const std::map<std::string, std::string>& files,
            const Settings& settings = {}) {
  const auto tree = memory_tree(files);
  const Inputs in = make_inputs(*tree, nullptr, settings);
  for (const Check& check : all_checks()) {
    if (check.id == id) return run_check(check, in);
  }
  FAIL("no check " << id);
  return {};
}

const std::map<std::string, std::string> kRoce = {
    {"sys/class/infiniband/mlx5_0/ports/1/state", "4: ACTIVE"},
    {"sys/class/infiniband/mlx5_0/ports/1/link_layer", "Ethernet"},
    {"sys/class/infiniband/mlx5_0/ports/1/gids/0", "fe80:0000:0000:0000:0e42:a1ff:fe00:0001"},
    {"sys/class/infiniband/mlx5_0/ports/1/gid_attrs/ndevs/0", "eth0"},
    {"sys/class/net/eth0/operstate", "up"},
    {"sys/class/net/eth0/mtu", "1500"}};

}  // namespace

TEST_CASE("tree: files, folders and what is not there") {
  const Folder folder;
  folder.write("sys/a/one", "1\n");
  folder.write("sys/a/two", "2 \t\n\n");
  const auto tree = open_tree(folder.path);
  REQUIRE(tree.ok());
  CHECK((*tree)->read("sys/a/two").text == "2");
  CHECK((*tree)->read("sys/a/three").access == Access::kAbsent);
  CHECK((*tree)->read("sys/a").access == Access::kAbsent);
  CHECK((*tree)->list("sys/a") == std::vector<std::string>{"one", "two"});
  CHECK((*tree)->list("sys/b").empty());
  CHECK((*tree)->writable("sys/a/one") == Access::kOk);
  CHECK((*tree)->writable("sys/a/three") == Access::kAbsent);
  CHECK((*tree)->real_path("sys/a/../a/one") == "sys/a/one");
  CHECK(open_tree(folder.path / "none").status().code() == StatusCode::kInvalidArgument);
}

TEST_CASE("tree: links stay inside, pipes do not hold up, large files are cut") {
  const Folder outside;
  outside.write("secret", "not yours");
  const Folder folder;
  folder.write("etc/own", "own");
  fs::create_symlink(outside.path / "secret", folder.path / "out");
  fs::create_symlink("../../../../../../etc/own", folder.path / "up");
  fs::create_symlink("/etc/own", folder.path / "absolute");
  REQUIRE(mkfifo((folder.path / "pipe").c_str(), 0600) == 0);
  folder.write("large", std::string(kMaxFileBytes + 100000, 'x'));
  const auto tree = open_tree(folder.path);
  REQUIRE(tree.ok());
  CHECK((*tree)->read("out").access == Access::kAbsent);
  CHECK((*tree)->read("up").text == "own");
  CHECK((*tree)->read("absolute").text == "own");
  CHECK((*tree)->read("pipe").access == Access::kAbsent);
  CHECK((*tree)->read("large").text.size() <= kMaxFileBytes + 16384);
}

TEST_CASE("tree: what only root may read is denied, not absent") {
  if (geteuid() == 0) return;  // root reads all
  const Folder folder;
  folder.write("closed", "x");
  fs::permissions(folder.path / "closed", fs::perms::none);
  const auto tree = open_tree(folder.path);
  REQUIRE(tree.ok());
  CHECK((*tree)->read("closed").access == Access::kDenied);
  CHECK((*tree)->writable("closed") == Access::kDenied);
}

TEST_CASE("tree: facts stand in front of files") {
  const auto below = memory_tree({{"a/one", "1"}, {"a/two", "2"}});
  const auto tree = with_facts(*below, {{"a/two", "22"}, {"a/three/x", "3"}});
  CHECK(tree->read("a/one").text == "1");
  CHECK(tree->read("a/two").text == "22");
  CHECK(tree->list("a") == std::vector<std::string>{"one", "three", "two"});
  CHECK(tree->writable("a/three/x") == Access::kOk);
}

TEST_CASE("tree: numbers, lists of CPUs and values keep within bounds") {
  CHECK(number_of("0x1f ") == 31u);
  CHECK(number_of("200 Gb/sec") == 200u);
  CHECK_FALSE(number_of("-1"));
  CHECK_FALSE(number_of(""));
  CHECK_FALSE(number_of("99999999999999999999999"));
  CHECK(cpu_list("0-2,8") == std::vector<int>{0, 1, 2, 8});
  CHECK(cpu_list("0-99999999").empty());
  CHECK(cpu_list("3-1").empty());
  CHECK(cpu_list("x").empty());
  CHECK(value_of("A=1\nDRIVER=mlx5_core\nDRIVERX=2", "DRIVER") == "mlx5_core");
  CHECK(value_of("DRIVERX=2", "DRIVER").empty());
}

TEST_CASE("host: the nearest GPU shares the NUMA node and most of the PCI path") {
  Host host;
  const auto pci = [](const std::string& address, int node, const std::string& path) {
    PciFacts out;
    out.address = address;
    out.numa_node = node;
    out.path = "sys/devices/" + path;
    return out;
  };
  const std::string bridge = "pci0000:10/0000:10:01.0/0000:11:00.0/";
  for (const PciFacts& place : {pci("a", 0, "pci0000:00/0000:00:01.0/a"), pci("b", 0, bridge + "b"),
                                pci("c", 1, bridge + "c")}) {
    Gpu gpu;
    gpu.pci = place;
    host.gpus.push_back(gpu);
  }
  REQUIRE(nearest_gpu(host, pci("nic", 0, bridge + "nic")) != nullptr);
  CHECK(nearest_gpu(host, pci("nic", 0, bridge + "nic"))->pci.address == "b");
  CHECK(nearest_gpu(host, pci("nic", 2, bridge + "nic")) == nullptr);
  host.kernel = "5.12.0-rc1";
  CHECK(host.kernel_at_least(5, 12));
  CHECK_FALSE(host.kernel_at_least(5, 13));
  CHECK(host.kernel_at_least(4, 20));
}

TEST_CASE("doctor: ids are unique, and each check has all its texts") {
  std::set<std::string> ids;
  for (const Check& check : all_checks()) {
    INFO(check.id);
    CHECK(ids.insert(check.id).second);
    for (const char* text : {check.title, check.consequence, check.remedy}) {
      CHECK(std::string(text).size() > 5);
    }
  }
  CHECK(ids.size() > 50);
}

TEST_CASE("doctor: on a host without anything nothing fails, and TCP's settings are unknown") {
  const auto tree = memory_tree({});
  const Inputs in = make_inputs(*tree, nullptr, {});
  std::set<std::string> unknown;
  for (const Check& check : all_checks()) {
    const Finding finding = run_check(check, in);
    INFO(finding.id);
    CHECK(finding.outcome != Outcome::kFail);
    CHECK(finding.outcome != Outcome::kPass);
    CHECK_FALSE(finding.evidence.empty());
    if (finding.outcome == Outcome::kUnknown) unknown.insert(finding.id);
  }
  CHECK(unknown == std::set<std::string>{"ports", "shm", "tcp-buffers", "tcp-congestion"});
}

TEST_CASE("doctor: the worst of several devices is the outcome, and the only evidence") {
  auto files = kRoce;
  files["sys/class/infiniband/mlx5_1/ports/1/state"] = "1: DOWN";
  const Finding finding = run("port-down", files);
  CHECK(finding.outcome == Outcome::kFail);
  REQUIRE(finding.evidence.size() == 1);
  CHECK(finding.evidence.front().find("mlx5_1/1 is DOWN") == 0);
  CHECK_FALSE(finding.remedy.empty());
  CHECK(run("port-down", kRoce).outcome == Outcome::kPass);
}

TEST_CASE("doctor: what a file says cannot reach the terminal as a control sequence") {
  auto files = kRoce;
  files["sys/class/infiniband/mlx5_0/ports/1/state"] = "1: \x1b[31mDOWN\a" + std::string(9000, 'x');
  const Finding finding = run("port-down", files);
  CHECK(finding.outcome == Outcome::kFail);
  CHECK(finding.evidence.front().size() < 1000);
  for (const char c : finding.evidence.front()) CHECK(static_cast<unsigned char>(c) >= 0x20);
}

TEST_CASE("doctor: settings set the bounds") {
  auto files = kRoce;
  files["proc/self/limits"] =
      "Max locked memory         8388608              8388608         bytes";
  CHECK(run("memlock", files).outcome == Outcome::kFail);
  CHECK(run("memlock", files, {.pool_bytes = 8 << 20, .require_rdma = false}).outcome ==
        Outcome::kPass);
  CHECK(run("dev-none", {}).outcome == Outcome::kWarn);
  CHECK(run("dev-none", {}, {.pool_bytes = 1, .require_rdma = true}).outcome == Outcome::kFail);
}

TEST_CASE("doctor: more devices than a host has are cut, with their number told") {
  std::map<std::string, std::string> files;
  for (int i = 0; i < 60; ++i) {
    files["sys/class/infiniband/mlx5_" + std::to_string(i) + "/ports/1/state"] = "1: DOWN";
  }
  const Finding finding = run("port-down", files);
  CHECK(finding.evidence.size() < 30);
  CHECK(finding.evidence.back() == "and 36 more");
}

}  // namespace kvd::doctor
