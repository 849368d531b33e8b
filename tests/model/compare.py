#!/usr/bin/env python3
"""Compares the rows of lease.pml with the code's table of transitions, both ways.

  compare.py MODEL PRINT_TABLE

A row T(role, state, drain, event, state, drain, actions) or V(role, state, drain, event) of the model is a
row of the code's table, with '_' for '-', and 'skip' for no action. ABSTRACTED names the rows that the model
leaves out, each with its reason; a row that is in both, or in neither, is an error too.
"""
import re
import subprocess
import sys

ABSTRACTED: dict[str, str] = {}  # "role state drain event": why


def model_rows(path: str) -> list[str]:
    with open(path, encoding="utf-8") as file:
        text = re.sub(r"/\*.*?\*/", "", file.read(), flags=re.S)
    rows = []
    for kind, inside in re.findall(r"^\s*([TV])\(([^()]*)\)\s*$", text, flags=re.M):
        fields = [field.strip() for field in inside.split(",")]
        if len(fields) != (7 if kind == "T" else 4):
            raise SystemExit(f"{path}: {kind}({inside}) has {len(fields)} fields")
        actions = fields.pop().split() if kind == "T" else ["violation"]
        words = fields + [action for action in actions if action != "skip"]
        rows.append(" ".join(word.replace("_", "-") for word in words))
    return rows


def key(row: str) -> str:
    return " ".join(row.split()[:4])


def main() -> int:
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    model = model_rows(sys.argv[1])
    code = subprocess.run([sys.argv[2]], check=True, capture_output=True, text=True).stdout.splitlines()
    problems = [f"twice in the model: {row}" for row in sorted(set(model)) if model.count(row) > 1]
    problems += [f"only in the model: {row}" for row in model if row not in code]
    problems += [f"only in the code: {row}" for row in code if row not in model and key(row) not in ABSTRACTED]
    for row, why in ABSTRACTED.items():
        if row in map(key, model):
            problems.append(f"said to be left out of the model ({why}), but it is there: {row}")
        if row not in map(key, code):
            problems.append(f"said to be left out of the model ({why}), but no row of the code: {row}")
    for problem in problems:
        print(problem)
    print(f"{len(code)} rows in the code, {len(model)} in the model, {len(ABSTRACTED)} left out of it")
    return 1 if problems or not code else 0


if __name__ == "__main__":
    sys.exit(main())
