#!/usr/bin/env python3
"""Holds the pages of man/ against the programs and the code, both ways.

Lint is silent; each program's options and its page's options are the same; EXIT STATUS is the enum;
kvd-metrics(7) has the metrics of the code; what kvd(7) says is logged is logged.
"""
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[3]
MAN = ROOT / "man"
BIN = pathlib.Path(os.environ.get("KVD_BIN", ROOT / "build" / "release" / "bin"))
PROGRAMS = ("kvd-prefill", "kvd-decode", "kvd-route", "kvd-probe", "kvd-bench")
WITH_COMMANDS = ("kvd-route", "kvd-probe", "kvd-bench")
GENERAL = "General"
# Of package mandoc; not in the path of an ordinary user.
INDEXER = "/usr/sbin/makewhatis"

problems = []


def expect_same(what, left_name, left, right_name, right):
    for item in sorted(left - right):
        problems.append("%s: %s is in %s and not in %s" % (what, item, left_name, right_name))
    for item in sorted(right - left):
        problems.append("%s: %s is in %s and not in %s" % (what, item, right_name, left_name))
    if not left:
        problems.append("%s: nothing found in %s" % (what, left_name))


def check_lint():
    if not shutil.which("mandoc") or not os.path.exists(INDEXER):
        problems.append("mandoc is not installed; scripts/packages installs it")
        return
    with tempfile.TemporaryDirectory() as folder:
        # Pages must be in place, or their references to each other look missing.
        for page in MAN.iterdir():
            section = pathlib.Path(folder) / ("man" + page.suffix[1:])
            section.mkdir(exist_ok=True)
            shutil.copy(page, section)
        subprocess.run([INDEXER, folder], check=True)
        for page in sorted(pathlib.Path(folder).rglob("*.[157]")):
            done = subprocess.run(["mandoc", "-T", "lint", "-W", "style", page], stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, text=True, env={**os.environ, "MANPATH": folder})
            problems.extend(done.stdout.replace(folder + "/", "").splitlines())


def help_options(*command):
    """(category, "--name METAVAR") of each option that --help-all lists."""
    text = subprocess.run([BIN / command[0], *command[1:], "--help-all"], stdout=subprocess.PIPE, text=True,
                          check=True).stdout
    out, category = set(), None
    for line in text.split("\nExamples\n")[0].splitlines():
        found = re.match(r"  (--[a-z0-9-]+)(?: (\S+))?", line)
        if found:
            out.add((category, (found.group(1) + " " + (found.group(2) or "")).strip()))
        elif line and line[0] != " ":
            category = line
    return out


def page_options(page):
    """(subsection, "--name METAVAR") of each `.It Fl` of a page."""
    out, section = set(), None
    for line in page.read_text().splitlines():
        if line.startswith(".Ss "):
            section = line[4:]
        found = re.match(r"\.It Fl -(\S+)(.*)", line)
        if found:
            words = [w for w in found.group(2).split() if w not in ("Ar", "Cm")]
            meta = "".join(words)
            out.add((section, ("--" + found.group(1) + " " + meta).strip()))
    return out


def check_options():
    for program in PROGRAMS:
        page = page_options(MAN / (program + ".1"))
        if program not in WITH_COMMANDS:
            expect_same(program, "--help-all", help_options(program), "its page", page)
            continue
        top = subprocess.run([BIN / program, "--help"], stdout=subprocess.PIPE, text=True, check=True).stdout
        commands = re.findall(r"^  ([a-z]+) ", top.split("Commands\n")[1].split("\n\n")[0], re.M)
        wanted = set()
        for command in commands:
            for category, option in help_options(program, command):
                wanted.add((GENERAL if category == GENERAL else command, option))
        expect_same(program, "--help-all", wanted, "its page", page)


def check_exit_status():
    header = (ROOT / "libcommon" / "cli" / "exit_code.h").read_text()
    enum = set(re.findall(r"kExit\w+ = (\d+)", header))
    for program in PROGRAMS:
        text = (MAN / (program + ".1")).read_text()
        section = text.split(".Sh EXIT STATUS")[1].split("\n.Sh ")[0]
        expect_same(program + " EXIT STATUS", "exit_code.h", enum, "its page",
                    set(re.findall(r"^\.It (\d+)$", section, re.M)))


def sources():
    for path in sorted((ROOT / "libcommon").rglob("*.cc")):
        yield path.read_text()


def check_metrics():
    registered = set()
    for text in sources():
        registered |= set(re.findall(r'\b(?:counter|gauge|histogram)\(\s*"(kvd_\w+)"', text))
    page = (MAN / "kvd-metrics.7").read_text()
    documented = set(re.findall(r"^\.It Li (kvd_\w+)", page, re.M))
    expect_same("metrics", "the code", registered, "kvd-metrics.7", documented)
    for name in set(re.findall(r"kvd_\w+", (MAN / "kvd.7").read_text())) - {"kvd_prefill"}:
        if name not in documented:
            problems.append("kvd.7: %s is not in kvd-metrics.7" % name)


def check_log_lines():
    logged = set()
    for text in sources():
        logged |= set(re.findall(r'\blog_(?:debug|info|warn|error)\(\s*"([^"]+)"', text))
    steps = (MAN / "kvd.7").read_text().split(".Ss The eight steps")[1].split(".Ss Pages")[0]
    named = set(re.findall(r"^\.Dq (.*?)(?: [.,;])?$", steps, re.M))
    for line in sorted(named - logged):
        problems.append('kvd.7: no code logs "%s"' % line)
    if len(named) < 8:
        problems.append("kvd.7: fewer log lines than steps")


def main():
    check_lint()
    check_options()
    check_exit_status()
    check_metrics()
    check_log_lines()
    for problem in problems:
        print(problem)
    print("pages: %d problems" % len(problems))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
