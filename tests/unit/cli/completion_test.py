#!/usr/bin/env python3
"""The scripts of --completion parse, and offer each program's verbs, options and values."""
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[3]
BIN = pathlib.Path(os.environ.get("KVD_BIN", ROOT / "build" / "release" / "bin"))
SHELLS = ("bash", "zsh", "fish")

problems = []


def run(*command, **kwargs):
    return subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          timeout=60, **kwargs)


def check(what, condition):
    if not condition:
        problems.append(what)


def offered(script, *words):
    """What bash completes the last word to."""
    quoted = " ".join("'%s'" % word for word in words)
    text = ("source '%s'; COMP_WORDS=(%s); COMP_CWORD=%d; %s; printf '%%s\\n' \"${COMPREPLY[@]}\""
            % (script, quoted, len(words) - 1, "_" + words[0].replace("-", "_")))
    done = run("bash", "-c", text)
    check("bash, %s: %s" % (words, done.stderr), done.stderr == "")
    return set(done.stdout.split())


def options_of(program, verb):
    """name -> values of a choice, from --help-all."""
    text = run(BIN / program, *verb, "--help-all").stdout.split("\nExamples\n")[0]
    found = re.findall(r"^  (--[a-z0-9-]+)(?: (\S+))?", text, re.M)
    return {name: meta.split("|") if "|" in meta else [] for name, meta in found}


def verbs_of(program):
    top = run(BIN / program, "--help").stdout
    if "\nCommands\n" not in top:
        return [()]
    return [(verb,) for verb in re.findall(r"^  ([a-z]+) ", top.split("Commands\n")[1].split("\n\n")[0], re.M)]


def check_bash(program, script):
    verbs = verbs_of(program)
    if verbs != [()]:
        first = offered(script, program, "")
        check("%s: verbs %s, offered %s" % (program, verbs, first), {v[0] for v in verbs} <= first)
    for verb in verbs:
        wanted = options_of(program, verb)
        check("%s %s has no options" % (program, verb), wanted)
        got = offered(script, program, *verb, "--")
        check("%s %s: %s" % (program, verb, sorted(got ^ set(wanted))), got == set(wanted))
        check("%s %s: --he" % (program, verb), offered(script, program, *verb, "--he") == {"--help", "--help-all"})
        for name, values in wanted.items():
            if values:
                check("%s %s %s" % (program, verb, name), offered(script, program, *verb, name, "") == set(values))
                check("%s %s %s=" % (program, verb, name),
                      offered(script, program, *verb, name, "=", values[0][:1]) >= {values[0]})


def check_shell(program, shell, folder):
    done = run(BIN / program, "--completion", shell)
    check("%s --completion %s: %d %s" % (program, shell, done.returncode, done.stderr),
          done.returncode == 0 and done.stderr == "" and done.stdout)
    script = pathlib.Path(folder) / (program + "." + shell)
    script.write_text(done.stdout)
    if shutil.which(shell):
        parsed = run(shell, "-n", script)
        check("%s: %s -n: %s" % (program, shell, parsed.stderr), parsed.returncode == 0 and parsed.stderr == "")
    for verb in verbs_of(program):
        for name in options_of(program, verb):
            flag = "-l " + name[2:] + " " if shell == "fish" else name
            check("%s: %s is not in the script for %s" % (program, name, shell), flag in done.stdout)
    return script


def main():
    programs = sorted(p.name for p in BIN.glob("kvd-*") if p.is_file() and os.access(p, os.X_OK))
    check("no programs in %s" % BIN, "kvd-probe" in programs and "kvd-route" in programs)
    with tempfile.TemporaryDirectory() as folder:
        for program in programs:
            scripts = {shell: check_shell(program, shell, folder) for shell in SHELLS}
            check_bash(program, scripts["bash"])
    refused = run(BIN / "kvd-probe", "--completion", "csh")
    check("an unknown shell is refused: %s" % refused.stderr, refused.returncode == 2 and "bash, zsh, fish" in refused.stderr)
    for problem in problems:
        print(problem)
    print("completions: %d programs, parsed by %s; %d problems"
          % (len(programs), ", ".join(s for s in SHELLS if shutil.which(s)), len(problems)))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
