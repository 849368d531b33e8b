// Plain scattered RMA writes between two processes over libfabric, with nothing of kvd: what the
// ceiling of `kvd-bench pages` is compared with.
//
//   plain_writes PROVIDER|memcpy WRITE_BYTES COUNT DEPTH PIECES SECONDS
//
// A round is COUNT writes of PIECES pieces each, at random places of two pools of 512 MiB, at most
// DEPTH in flight; the last one asks for delivery-complete and signals the receiver. Both sides
// spin. Prints one line of JSON: the median of the rounds, on the sender's clock, from the first
// post to the completion of the last write. `memcpy` copies between the two pools in one process
// and thread: what `local` is compared with.
#include <netinet/in.h>
#include <rdma/fabric.h>
#include <rdma/fi_cm.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <rdma/fi_eq.h>
#include <rdma/fi_errno.h>
#include <rdma/fi_rma.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

namespace {

constexpr std::size_t kPool = 512u << 20, kHuge = 2u << 20, kMost = 16;
constexpr std::uint64_t kKey = 0x706c61696eULL;

void must(long rc, const char* what) {
  if (rc >= 0) return;
  std::fprintf(stderr, "plain_writes: %s: %s\n", what, fi_strerror(static_cast<int>(-rc)));
  std::exit(3);
}

char* make_pool() {
  void* raw =
      mmap(nullptr, kPool + kHuge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == MAP_FAILED) must(-FI_ENOMEM, "mmap");
  auto at = (reinterpret_cast<std::uintptr_t>(raw) + kHuge - 1) / kHuge * kHuge;
  madvise(reinterpret_cast<void*>(at), kPool, MADV_HUGEPAGE);
  return static_cast<char*>(std::memset(reinterpret_cast<void*>(at), 7, kPool));
}

struct Side {
  fi_info* info = nullptr;
  fid_fabric* fabric = nullptr;
  fid_domain* domain = nullptr;
  fid_ep* ep = nullptr;
  fid_cq* cq = nullptr;
  fid_av* av = nullptr;
  fid_eq* eq = nullptr;
  fid_mr* mr = nullptr;
  char* pool = make_pool();
  fi_context2 receive{};

  explicit Side(const char* provider) {
    fi_info* hints = fi_allocinfo();
    hints->caps = FI_MSG | FI_RMA;
    hints->mode = FI_CONTEXT | FI_CONTEXT2;
    hints->ep_attr->type = FI_EP_RDM;
    hints->domain_attr->threading = FI_THREAD_DOMAIN;
    hints->domain_attr->data_progress = hints->domain_attr->control_progress = FI_PROGRESS_MANUAL;
    hints->tx_attr->msg_order = hints->rx_attr->msg_order = FI_ORDER_WAW;
    hints->fabric_attr->prov_name = strdup(provider);
    const auto api = FI_VERSION(FI_MAJOR_VERSION, FI_MINOR_VERSION);
    must(fi_getinfo(api, "127.0.0.1", nullptr, FI_SOURCE, hints, &info), "fi_getinfo");
    must(fi_fabric(info->fabric_attr, &fabric, nullptr), "fi_fabric");
    must(fi_domain(fabric, info, &domain, nullptr), "fi_domain");
    fi_cq_attr cq_attr{};
    cq_attr.format = FI_CQ_FORMAT_DATA;
    cq_attr.size = 1024;
    cq_attr.wait_obj = FI_WAIT_NONE;
    fi_eq_attr eq_attr{};
    eq_attr.wait_obj = FI_WAIT_NONE;
    fi_av_attr av_attr{};
    must(fi_cq_open(domain, &cq_attr, &cq, nullptr), "fi_cq_open");
    must(fi_eq_open(fabric, &eq_attr, &eq, nullptr), "fi_eq_open");
    must(fi_av_open(domain, &av_attr, &av, nullptr), "fi_av_open");
    must(fi_endpoint(domain, info, &ep, nullptr), "fi_endpoint");
    must(fi_ep_bind(ep, &av->fid, 0), "bind av");
    must(fi_ep_bind(ep, &eq->fid, 0), "bind eq");
    must(fi_ep_bind(ep, &cq->fid, FI_TRANSMIT | FI_RECV), "bind cq");
    must(fi_enable(ep), "fi_enable");
    must(fi_mr_reg(domain, pool, kPool, FI_WRITE | FI_REMOTE_WRITE, 0, kKey, 0, &mr, nullptr),
         "fi_mr_reg");
    must(fi_recv(ep, &receive, 0, nullptr, FI_ADDR_UNSPEC, &receive), "fi_recv");
  }
};

std::array<char, 256> exchange(int fd, Side* side) {
  std::array<char, 256> mine{}, theirs{};
  std::size_t length = mine.size();
  must(fi_getname(&side->ep->fid, mine.data(), &length), "fi_getname");
  if (write(fd, mine.data(), 256) != 256 || recv(fd, theirs.data(), 256, MSG_WAITALL) != 256)
    std::exit(3);
  return theirs;
}

// Reaps; how many of `wanted` flags came.
int reap(fid_cq* cq, std::uint64_t wanted) {
  fi_cq_data_entry entries[32];
  const ssize_t got = fi_cq_read(cq, entries, 32);
  if (got == -FI_EAGAIN) return 0;
  must(got, "fi_cq_read");
  return static_cast<int>(std::count_if(entries, entries + got,
                                        [&](const auto& e) { return (e.flags & wanted) != 0; }));
}

[[noreturn]] void receive(const char* provider, int fd) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  Side side(provider);
  exchange(fd, &side);
  for (;;) (void)reap(side.cq, 0);
}

struct Plan {
  std::size_t bytes, count, depth, pieces;
};

double round_of(Side* side, fi_addr_t peer, const Plan& plan, std::mt19937_64* random,
                void** contexts) {
  const std::size_t piece = plan.bytes / plan.pieces, places = kPool / piece;
  const auto begin = std::chrono::steady_clock::now();
  std::size_t posted = 0, done = 0;
  while (done < plan.count) {
    while (posted < plan.count && posted - done < plan.depth) {
      iovec local[kMost];
      fi_rma_iov remote[kMost];
      for (std::size_t i = 0; i < plan.pieces; ++i) {
        local[i] = {side->pool + (*random)() % places * piece, piece};
        remote[i] = {(*random)() % places * piece, piece, kKey};
      }
      const bool last = posted + 1 == plan.count;
      fi_msg_rma message{local,
                         nullptr,
                         plan.pieces,
                         peer,
                         remote,
                         plan.pieces,
                         &contexts[8 * (posted % plan.depth)],
                         1};
      const ssize_t rc =
          fi_writemsg(side->ep, &message,
                      FI_COMPLETION | (last ? FI_DELIVERY_COMPLETE | FI_REMOTE_CQ_DATA : 0));
      if (rc == -FI_EAGAIN) break;
      must(rc, "fi_writemsg");
      ++posted;
    }
    done += static_cast<std::size_t>(reap(side->cq, FI_WRITE));
  }
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

double copies_of(char* from, char* to, const Plan& plan, std::mt19937_64* random) {
  const std::size_t places = kPool / plan.bytes;
  const auto begin = std::chrono::steady_clock::now();
  for (std::size_t i = 0; i < plan.count; ++i) {
    std::memcpy(to + (*random)() % places * plan.bytes, from + (*random)() % places * plan.bytes,
                plan.bytes);
  }
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// The rates of rounds, sorted: those of the first moments are left out.
template <typename Round>
std::vector<double> rates_of(const Plan& plan, double seconds, Round round) {
  std::vector<double> rates;
  for (double spent = -0.2; spent < seconds || rates.size() < 5;) {
    const double took = round();
    if (spent >= 0) rates.push_back(static_cast<double>(plan.bytes * plan.count) / took);
    spent += took;
  }
  std::sort(rates.begin(), rates.end());
  return rates;
}

void print(const char* provider, const Plan& plan, const std::vector<double>& rates) {
  std::printf(
      "{\"provider\":\"%s\",\"write_bytes\":%zu,\"depth\":%zu,\"pieces\":%zu,\"rounds\":%zu,"
      "\"bytes_per_s\":%.0f,\"p10\":%.0f,\"p90\":%.0f}\n",
      provider, plan.bytes, plan.depth, plan.pieces, rates.size(), rates[rates.size() / 2],
      rates[rates.size() / 10], rates[rates.size() * 9 / 10]);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 7) {
    std::fprintf(stderr, "usage: plain_writes PROVIDER WRITE_BYTES COUNT DEPTH PIECES SECONDS\n");
    return 2;
  }
  // Writes are read in place, as kvd has them; a value that is set stands.
  setenv("FI_NET_PREFETCH_RBUF_SIZE", "0", 0);
  setenv("FI_TCP_PREFETCH_RBUF_SIZE", "0", 0);
  const auto number = [&](int i) { return static_cast<std::size_t>(std::atoll(argv[i])); };
  const Plan plan{number(2), number(3), number(4), number(5)};
  const double seconds = std::atof(argv[6]);
  if (plan.pieces == 0 || plan.pieces > kMost || plan.bytes < plan.pieces || plan.bytes > kPool ||
      plan.bytes % plan.pieces != 0 || plan.count == 0 || plan.depth == 0 || plan.depth > 256) {
    std::fprintf(stderr, "plain_writes: a number is out of range\n");
    return 2;
  }
  if (std::strcmp(argv[1], "memcpy") == 0) {
    std::mt19937_64 places(1);
    char* const from = make_pool();
    char* const to = make_pool();
    print(argv[1], plan,
          rates_of(plan, seconds, [&] { return copies_of(from, to, plan, &places); }));
    return 0;
  }
  int fds[2];
  if (socketpair(AF_UNIX, SOCK_STREAM, 0, fds) != 0) return 3;
  const pid_t child = fork();
  if (child == 0) receive(argv[1], fds[1]);
  Side side(argv[1]);
  const auto theirs = exchange(fds[0], &side);
  fi_addr_t peer = 0;
  if (fi_av_insert(side.av, theirs.data(), 1, &peer, 0, nullptr) != 1) return 3;
  std::mt19937_64 random(1);
  std::vector<void*> contexts(8 * plan.depth);
  print(argv[1], plan, rates_of(plan, seconds, [&] {
          return round_of(&side, peer, plan, &random, contexts.data());
        }));
  kill(child, SIGKILL);
  return waitpid(child, nullptr, 0) == child ? 0 : 3;
}
