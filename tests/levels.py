#!/usr/bin/env python3
"""The levels of offload/ (offload/DESIGN.md draws them): each folder includes only from those below it, torch only where
it is allowed, and TorchScript's graphs nowhere above graph/; and no source is longer than a reader bears. Exit status: 0,
or 1 with a line for each that does not keep to it.
"""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent

# From the bottom. Headers of offload/ itself are public: everybody may include them, and they only each other.
LEVELS = ["core", "tensor", "io", "device", "ring", "feed", "plan", "load", "graph", "runtime"]
WITH_TORCH = {"tensor", "device", "load", "graph", "runtime"}
OURS = re.compile(r'^#include [<"]offload/([^>"]+)[>"]', re.M)
TORCH = re.compile(r"^#include <((?:ATen|torch|c10|cuda)[^>]*)>", re.M)

# How a program is made and run is known in graph/ only: no header that is used above it shows this.
GRAPHS = re.compile(r"torch/csrc/jit/(?:ir|runtime|passes)/|\btorch::jit::(?:Graph|Block|Node|Value|Code|InterpreterState)\b")

MOST_LINES = 400
LISTS = {"models/export.py", "tests/small_models.py"}  # of models


def folder_of(path):
    parts = pathlib.PurePath(path).parts
    return parts[0] if len(parts) > 1 else ""


def with_our_headers(path, seen):
    """A source, and all that it includes of offload/."""
    seen.add(path)
    text = (ROOT / "offload" / path).read_text()
    yield path, text
    for included in OURS.findall(text):
        if included not in seen:
            yield from with_our_headers(included, seen)


def faults_of_includes(path, text):
    me = folder_of(path)
    if me and me not in LEVELS:
        yield f"is in a folder that has no level: {me}"
        return
    for included in OURS.findall(text):
        other = folder_of(included)
        if other in ("", me):
            continue
        if not me or other not in LEVELS or LEVELS.index(other) > LEVELS.index(me):
            yield f"includes upwards: {included}"
    if me and me not in WITH_TORCH:
        for included in TORCH.findall(text):
            yield f"includes {included}, and {me}/ builds without torch"
    if me == "runtime":
        for reached, there in with_our_headers(path, set()):
            for shown in sorted(set(GRAPHS.findall(there))):
                yield f"shows {shown}" if reached == path else f"reaches {reached}, which shows {shown}"


def main():
    faults = []
    for path in sorted((ROOT / "offload").rglob("*.*")):
        if path.suffix in (".h", ".cpp"):
            name = path.relative_to(ROOT / "offload").as_posix()
            faults += [f"offload/{name} {fault}" for fault in faults_of_includes(name, path.read_text())]
    for folder in ("offload", "ops", "tools", "tests", "models", "python"):
        for path in sorted((ROOT / folder).rglob("*.*")):
            name = path.relative_to(ROOT).as_posix()
            if path.suffix in (".h", ".cpp", ".cu", ".cuh", ".py", ".sh") and name not in LISTS:
                lines = path.read_bytes().count(b"\n")
                if lines > MOST_LINES:
                    faults.append(f"{name} has {lines} lines, and {MOST_LINES} are the most")
    for fault in faults:
        print(fault)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
