"""What the end-to-end tests share: real daemons on port 0, their ready lines, requests, metrics.

Only the standard library. No test sleeps to let something happen: it waits for an event (a ready line,
an answer, a metric's value) under a deadline, and fails when the deadline passes.
"""
import contextlib
import http.client
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = pathlib.Path(os.environ.get("KVD_BIN", ROOT / "build" / "release" / "bin"))
SKIP = 77


def skip(why):
    print("SKIPPED:", why)
    sys.exit(SKIP)


def matter_of_time():
    """Skips a test of how long something takes where the kernels are the slow ones of the oracle."""
    if os.environ.get("KVD_CPU") == "scalar":
        skip("scalar kernels: too slow for a matter of time")


def model_path():
    """The default model, fetched once by scripts/fetch-model."""
    done = subprocess.run([ROOT / "scripts" / "fetch-model"], stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        skip("the default model is not here and cannot be fetched")
    return done.stdout.strip()


def check(condition, text):
    if not condition:
        raise AssertionError(text)


class Daemon:
    """One running program; its log goes to a file that is shown when the test fails."""

    def __init__(self, program, *args, netns=None, env=None, timeout=60, prefix=()):
        self.name = program
        command = [str(BIN / program), *map(str, args)]
        if netns:
            command = ["ip", "netns", "exec", netns, *command]
        command = [*prefix, *command]
        self.log = tempfile.NamedTemporaryFile("w+", prefix=os.path.basename(program) + "-", suffix=".log", delete=False)
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, text=True,
                                        env={**os.environ, **(env or {})})
        line = self._first_line(timeout)
        if not line:
            self.kill()
            raise AssertionError("%s gave no ready line; its log:\n%s" % (" ".join(command), self.text()))
        self.ready = json.loads(line)
        self.http = self.ready.get("http", "")
        self.control = self.ready.get("control", "")
        self.pid = self.ready["pid"]

    def _first_line(self, timeout):
        out = []
        reader = threading.Thread(target=lambda: out.append(self.process.stdout.readline()), daemon=True)
        reader.start()
        reader.join(timeout)
        return out[0] if out else ""

    def text(self):
        with open(self.log.name, encoding="utf-8", errors="replace") as f:
            return f.read()

    def signal(self, number):
        os.kill(self.pid, number)

    def stop(self, timeout=30):
        """SIGTERM; returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def rss_kib(self):
        with open("/proc/%d/status" % self.pid, encoding="ascii") as f:
            for line in f:
                if line.startswith("VmRSS:"):
                    return int(line.split()[1])
        return 0

    def metrics(self):
        status, body = request(self.http + "/metrics")
        check(status == 200, "/metrics answered %d" % status)
        out = {}
        for line in body.decode().splitlines():
            if line and not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                out[name] = float(value)
        return out

    def pages(self, state):
        return self.metrics().get('kvd_pages{state="%s"}' % state, -1)

    def wait_for_workers(self, prefills, decodes):
        """Of a router: it is healthy with the first of each, and the others join when their answers come."""
        for role, count in (("prefill", prefills), ("decode", decodes)):
            name = 'kvd_router_workers{role="%s",state="ready"}' % role
            wait_until("the router has %d ready, role %s" % (count, role),
                       lambda: self.metrics().get(name, 0) == count)  # noqa: B023 - called before the next


@contextlib.contextmanager
def cluster():
    """Daemons started through the yielded function are stopped at the end; logs are shown on failure."""
    started = []

    def start(program, *args, **kwargs):
        daemon = Daemon(program, *args, **kwargs)
        started.append(daemon)
        return daemon

    try:
        yield start
    except BaseException:
        for daemon in started:
            print("---- log of %s (pid %d)\n%s" % (daemon.name, daemon.pid, daemon.text()[-6000:]),
                  file=sys.stderr)
        raise
    finally:
        for daemon in started:
            daemon.kill()
            os.unlink(daemon.log.name)


def request(url, body=None, timeout=120, headers=None):
    """(status, body bytes); a refused or cut connection raises OSError or HTTPException."""
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout)
    try:
        if body is None:
            connection.request("GET", parts.path or "/", headers=headers or {})
        else:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            connection.request("POST", parts.path, data,
                               {"Content-Type": "application/json", **(headers or {})})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def complete(base, timeout=120, **fields):
    """POST /v1/completions; the parsed answer, which must be 200."""
    status, body = request(base + "/v1/completions", fields, timeout)
    check(status == 200, "status %d: %s" % (status, body[:500]))
    return json.loads(body)


class Stream:
    """A streamed completion, read event by event."""

    def __init__(self, base, path="/v1/completions", timeout=120, **fields):
        parts = urllib.parse.urlsplit(base)
        self.connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout)
        self.connection.request("POST", path, json.dumps({"stream": True, **fields}).encode(),
                                {"Content-Type": "application/json"})
        self.answer = self.connection.getresponse()
        self.status = self.answer.status

    def events(self):
        """Parsed data of each event; ends at [DONE]. A stream that is cut raises."""
        while True:
            line = self.answer.readline()
            if not line:
                raise ConnectionError("the stream ended without [DONE]")
            line = line.strip()
            if not line.startswith(b"data: "):
                continue
            if line == b"data: [DONE]":
                return
            yield json.loads(line[6:])

    def close(self):
        self.connection.close()
        self.answer.close()


def wait_until(what, condition, timeout=30, pause=0.02):
    """Polls an outside state (a metric) that cannot be waited for otherwise."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if condition():
            return
        threading.Event().wait(pause)
    raise AssertionError("not within %g s: %s" % (timeout, what))


class Namespaces:
    """Two hosts: network namespaces joined by a veth pair; `rate` shapes both directions (tc tbf)."""

    def __init__(self, rate=None):
        if os.geteuid() != 0:
            skip("network namespaces need root")
        tag = "kvd%d" % os.getpid()
        self.a, self.b = tag + "a", tag + "b"
        self.addr_a, self.addr_b = "10.77.0.1", "10.77.0.2"
        try:
            for ns in (self.a, self.b):
                self._ip("netns", "add", ns)
            va, vb = ("v%da" % os.getpid())[:15], ("v%db" % os.getpid())[:15]
            self.dev = {self.a: va, self.b: vb}
            self._ip("link", "add", va, "netns", self.a, "type", "veth", "peer", "name", vb, "netns", self.b)
            for ns, dev, addr in ((self.a, va, self.addr_a), (self.b, vb, self.addr_b)):
                self._ip("-n", ns, "addr", "add", addr + "/24", "dev", dev)
                self._ip("-n", ns, "link", "set", dev, "up")
                self._ip("-n", ns, "link", "set", "lo", "up")
            if rate:
                self.shape(rate)
        except subprocess.CalledProcessError as e:
            self.close()
            skip("cannot make network namespaces here: %s" % (e.stderr or e))

    @staticmethod
    def _ip(*args):
        subprocess.run(["ip", *args], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def shape(self, rate):
        for ns, dev in self.dev.items():
            subprocess.run(["ip", "netns", "exec", ns, "tc", "qdisc", "replace", "dev", dev, "root", "tbf",
                            "rate", rate, "burst", "256kb", "latency", "50ms"], check=True,
                           stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def close(self):
        for ns in (self.a, self.b):
            subprocess.run(["ip", "netns", "del", ns], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def run_in(netns, *command, **kwargs):
    prefix = ["ip", "netns", "exec", netns] if netns else []
    return subprocess.run([*prefix, *map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True, **kwargs)


WORKER = ("--http", "127.0.0.1:0", "--listen", "127.0.0.1:0")


def words(n, salt=0):
    """A deterministic text of n words, different for each salt."""
    pool = ("river stone window paper garden silver morning letter bridge candle forest market "
            "engine thunder pocket mirror harbor lemon winter signal").split()
    state = salt * 7919 + 17
    out = []
    for _ in range(n):
        state = (state * 1103515245 + 12345) & 0x7FFFFFFF
        out.append(pool[(state >> 8) % len(pool)])
    return " ".join(out)
