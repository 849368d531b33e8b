#!/usr/bin/env python3
"""Fails when a file includes past its module's doors (CONTRIBUTING.md, "Modules").

  doors.py             checks the tree
  doors.py --self-test plants violations in a copy and proves that each is found

A module may include itself, base, and the modules that its CMake link list (kvd_module DOORS) names; that
list may name only what ALLOWED has. Third-party headers have one door each. getenv stands only in cli;
nothing in libcommon/ or tools/ sleeps in place of waiting for something.
"""
import pathlib
import re
import shutil
import sys
import tempfile

# Who may have whom as a door. Unlisted is shut. base is open to all.
ALLOWED = {
    "base": set(), "proto": {"base"}, "device": {"base"}, "http": {"base"}, "cli": {"base"},
    "router": {"base"}, "kv": {"device"}, "fabric": {"device"}, "control": {"proto"}, "room": {"proto"},
    "engine": {"device", "kv"},
    # room's events and control's channel carry proto's messages: who drives both must name them.
    # Records wait in memory of the kind that the fabric writes from: device.
    "transfer": {"room", "kv", "fabric", "control", "proto", "device"},
    # Memory of its own, written to through fabric, ordered about through control.
    "probe": {"proto", "device", "fabric", "control"},
    "node": {"proto", "device", "kv", "room", "fabric", "control", "probe", "transfer", "engine", "router", "http"},
}
TOOL_DOORS = {"cli", "node"}
MEASURING_TOOL_DOORS = TOOL_DOORS | {"proto", "device", "fabric", "control", "http", "engine", "transfer",
                                     "kv", "room", "probe"}
MEASURING_TOOLS = {"kvd-probe", "kvd-bench", "peer"}

# Header of a library -> the paths that may include it.
THIRD_PARTY = [
    (r"rdma/", r"libcommon/fabric/ofi/"),
    (r"zmq", r"libcommon/control/zmq_[^/]*\.cc$"),
    (r"nlohmann/", r"libcommon/(http|cli)/[^/]*\.cc$"),
    (r"msgpack", r"libcommon/proto/[^/]*\.cc$"),
    (r"CLI/", r"libcommon/cli/[^/]*\.cc$"),
    (r"(xxh3|xxhash)", r"libcommon/.*\.cc$"),
    (r"boost/container/", r"libcommon/fabric/write_pipeline\.h$"),
    (r"boost/(?!container/)", r"libcommon/http/"),
    (r"pcre2", r"libcommon/engine/.*\.cc$"),
    (r"(spdlog|fmt|prometheus)/", r"libcommon/base/[^/]*\.cc$"),
    (r"(cuda|cublas)", r"libcommon/[^/]*/cuda/"),
]
BANNED = [
    (r"\b(secure_)?getenv\s*\(|\benviron\b", r"libcommon/cli/", "the environment is read in cli only"),
    # libfabric takes some settings from the environment alone.
    (r"\b(un)?setenv\s*\(|\bputenv\s*\(", r"libcommon/fabric/ofi/ofi_info\.cc$", "the environment is not written"),
    (r"\bsleep_(for|until)\b|\busleep\s*\(|\bnanosleep\s*\(|(?<![\w.])sleep\s*\(", r"(?!)",
     "wait for the event itself, under a deadline, instead of sleeping"),
]
SOURCES = {".h", ".cc", ".hpp", ".cpp", ".cu", ".cuh"}
# room and router are pure: no I/O, threads, clocks or logging.
PURE = {"room", "router"}
IMPURE = re.compile(r"^(thread|mutex|condition_variable|future|iostream|fstream|cstdio|sys/.*|unistd\.h|"
                    r"poll\.h|fcntl\.h|base/(log|metrics|bounded_queue)\.h)$")


def without_comments(text):
    """The code, comments and string contents blanked, line breaks kept."""
    token = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"', re.S)
    return token.sub(lambda m: re.sub(r"[^\n]", " ", m.group()) if m.group()[0] == "/" else '""', text)


def link_lists(root):
    """module -> (doors, place) from the kvd_module() calls."""
    out = {}
    for path in sorted(root.glob("libcommon/*/CMakeLists.txt")):
        text = re.sub(r"#[^\n]*", "", path.read_text())
        for call in re.findall(r"kvd_module\s*\(([^)]*)\)", text):
            words = call.split()
            doors, reading = set(), False
            for word in words[1:]:
                if word in ("SOURCES", "DOORS", "LIBRARIES", "PUBLIC_LIBRARIES"):
                    reading = word == "DOORS"
                elif reading:
                    doors.add(word)
            out[words[0]] = (doors, str(path.relative_to(root)))
    return out


class Tree:
    def __init__(self, root):
        self.root = root
        self.problems = []
        self.lists = link_lists(root)

    def report(self, place, text):
        self.problems.append("%s: %s" % (place, text))

    def check_lists(self):
        for module, (doors, place) in self.lists.items():
            if module not in ALLOWED:
                self.report(place, "module %s is not in doors.py" % module)
                continue
            for door in sorted(doors - ALLOWED[module] - {"base"}):
                self.report(place, "module %s must not have the door %s" % (module, door))
        known = {p.parent.name for p in self.root.glob("libcommon/*/CMakeLists.txt")}
        for module in sorted(known - set(self.lists)):
            self.report("libcommon/%s/CMakeLists.txt" % module, "has no kvd_module() call")
        for loose in self.root.glob("libcommon/*.*"):
            if loose.name not in ("CMakeLists.txt", "README.md"):
                self.report(str(loose.relative_to(self.root)), "no loose files in libcommon")

    def doors_of(self, path):
        """(own name, modules it may include) of a source file."""
        parts = path.parts
        if parts[0] == "libcommon":
            module = parts[1]
            return module, self.lists.get(module, (set(), ""))[0] | {module, "base"}
        doors = MEASURING_TOOL_DOORS if parts[1] in MEASURING_TOOLS else TOOL_DOORS
        return parts[1], doors | {"base"}

    def check_include(self, place, path, header, doors):
        first = header.split("/")[0]
        if first in ALLOWED and "/" in header:
            if first not in doors:
                self.report(place, "%s is past the doors; open here: %s" % (header, ", ".join(sorted(doors))))
            return
        for pattern, door in THIRD_PARTY:
            if re.match(pattern, header) and not re.match(door, path.as_posix()):
                self.report(place, "%s may be included only by %s" % (header, door))

    def check_file(self, path):
        text = (self.root / path).read_text()
        own, doors = self.doors_of(path)
        for number, line in enumerate(text.splitlines(), 1):
            found = re.match(r'\s*#\s*include\s*[<"]([^>"]+)[>"]', line)
            if found:
                place = "%s:%d" % (path, number)
                self.check_include(place, path, found.group(1), doors)
                if own in PURE and IMPURE.match(found.group(1)):
                    self.report(place, "%s is pure and must not include %s" % (own, found.group(1)))
        for number, line in enumerate(without_comments(text).splitlines(), 1):
            for pattern, door, why in BANNED:
                if re.search(pattern, line) and not re.match(door, path.as_posix()):
                    self.report("%s:%d" % (path, number), why)

    def check(self, only=None):
        """The whole tree, or the link lists and one file."""
        self.check_lists()
        if only is not None:
            if only.suffix in SOURCES and only.parent.name != "libcommon":
                self.check_file(only)
            return 1
        files = 0
        for top in ("libcommon", "tools"):
            for full in sorted((self.root / top).rglob("*")):
                if full.suffix in SOURCES:
                    self.check_file(full.relative_to(self.root))
                    files += 1
        if files == 0:
            self.report(str(self.root), "no sources found")
        return files


# (file, line to add, what the report must say)
PLANTED = [
    ("libcommon/kv/page_pool.h", '#include "fabric/fabric.h"', "fabric/fabric.h is past the doors"),
    ("libcommon/node/options.h", '#include "cli/option.h"', "cli/option.h is past the doors"),
    ("libcommon/base/status.h", "#include <nlohmann/json.hpp>", "nlohmann/json.hpp may be included only by"),
    ("libcommon/control/channel.h", "#include <zmq.hpp>", "zmq.hpp may be included only by"),
    ("libcommon/fabric/fabric.h", "#include <rdma/fabric.h>", "rdma/fabric.h may be included only by"),
    ("libcommon/cli/option.h", "#include <CLI/App.hpp>", "CLI/App.hpp may be included only by"),
    ("libcommon/router/policy.h", "#include <mutex>", "router is pure"),
    ("libcommon/kv/layout.h", 'inline auto kvd_home = getenv("HOME");', "the environment is read in cli only"),
    ("libcommon/kv/layout.h", 'inline int set() { return setenv("HOME", "", 1); }', "the environment is not written"),
    ("libcommon/kv/layout.h", "inline void nap() { usleep(1); }", "instead of sleeping"),
    ("tools/kvd-prefill/main.cc", '#include "engine/engine.h"', "engine/engine.h is past the doors"),
    ("libcommon/kv/CMakeLists.txt", "kvd_module(kv SOURCES a.cc DOORS base device fabric)",
     "module kv must not have the door fabric"),
    ("libcommon/loose.h", "", "no loose files in libcommon"),
]
# Lines that must pass.
INNOCENT = [
    ("libcommon/kv/layout.h", '// getenv("HOME") and sleep(1) in a comment'),
    ("libcommon/kv/layout.h", 'inline const char* kText = "usleep(1)";'),
    ("libcommon/kv/layout.h", '#include "base/units.h"'),
]


def self_test(root):
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder)
        for top in ("libcommon", "tools"):
            shutil.copytree(root / top, copy / top)

        def planted(file, line):
            path = copy / file
            before = path.read_text() if path.exists() else None
            path.write_text((before or "") + "\n" + line + "\n")
            tree = Tree(copy)
            tree.check(only=pathlib.Path(file))
            path.unlink() if before is None else path.write_text(before)
            return tree.problems

        clean = Tree(copy)
        clean.check()
        for file, line, expected in PLANTED:
            new = [p for p in planted(file, line) if p not in clean.problems]
            if not any(expected in p for p in new):
                print("self-test: not found: %s in %s (reported: %s)" % (line or "the file", file, new))
                failures += 1
        for file, line in INNOCENT:
            new = [p for p in planted(file, line) if p not in clean.problems]
            if new:
                print("self-test: wrongly reported: %s" % new)
                failures += 1
    print("self-test: %d planted violations found, %d lines rightly passed, %d failures"
          % (len(PLANTED), len(INNOCENT), failures))
    return 1 if failures else 0


def main():
    root = pathlib.Path(__file__).resolve().parents[1]
    if sys.argv[1:] == ["--self-test"]:
        return self_test(root)
    tree = Tree(root)
    files = tree.check()
    for problem in tree.problems:
        print(problem)
    print("doors: %d files, %d problems" % (files, len(tree.problems)))
    return 1 if tree.problems else 0


if __name__ == "__main__":
    sys.exit(main())
