#!/usr/bin/env python3
"""Unpacks recorded trees of hosts (trees/NAME.tree): unpack.py FOLDER [NAME...]

A line of a description is one of
  # text                    for people
  base NAME                 all lines of another description first
  finding STATUS ID         what `kvd-probe doctor --root` must find: fail, warn or unknown
  unfinding ID              not what the base finds
  PATH = CONTENTS           a file; \\n and \\t stand for line break and tab
  drop PATH                 no such file or folder
{a,b} in a path makes one line for each. The paths are those of a host; later/ holds a second reading.
"""
import itertools
import pathlib
import re
import sys

TREES = pathlib.Path(__file__).resolve().parent / "trees"


def expand(path):
    parts = [part[1:-1].split(",") if part.startswith("{") else [part]
             for part in re.split(r"(\{[^}]*\})", path)]
    return ["".join(choice) for choice in itertools.product(*parts)]


def load(name):
    """(files, findings) of a description: path -> contents, id -> status."""
    files, findings = {}, {}
    for number, line in enumerate((TREES / (name + ".tree")).read_text().splitlines(), 1):
        words = line.split()
        if not words or line.startswith("#"):
            continue
        if words[0] == "base":
            files, findings = load(words[1])
        elif words[0] == "finding":
            findings[words[2]] = words[1]
        elif words[0] == "unfinding":
            del findings[words[1]]
        elif words[0] == "drop":
            for path in expand(words[1]):
                gone = [f for f in files if f == path or f.startswith(path + "/")]
                if not gone:
                    raise SystemExit("%s.tree:%d: nothing to drop at %s" % (name, number, path))
                for file in gone:
                    del files[file]
        else:
            path, equals, contents = line.partition(" =")
            if not equals:
                raise SystemExit("%s.tree:%d: not understood: %s" % (name, number, line))
            contents = contents[1:].replace("\\n", "\n").replace("\\t", "\t")
            files.update(dict.fromkeys(expand(path), contents))
    return files, findings


def names():
    return sorted(path.stem for path in TREES.glob("*.tree"))


def unpack(name, folder):
    files, findings = load(name)
    for path, contents in files.items():
        file = pathlib.Path(folder) / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(contents + "\n")
    return findings


if __name__ == "__main__":
    for wanted in sys.argv[2:] or names():
        unpack(wanted, pathlib.Path(sys.argv[1]) / wanted)
