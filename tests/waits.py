#!/usr/bin/env python3
"""Takes every wait out of the streamer's sources, one at a time, and shows which tests of core_tests notice.

A wait counts as found when a test fails for one of these reasons, not when only the calls that were made are others:
  bytes     wrong bytes: a read before its copy, or a copy before the read of what it overwrites
  deadlock  the test does not end
  crash     a signal; of a thread that nobody has joined, too
  busy      no byte can be wrong, since a loop looks again; without the wait it burns a processor
Works on a copy: this tree stays as it is. Exit status: 0 when all waits are found, 1 when one is not, 2 when this
program could not do its work.
"""

import argparse
import concurrent.futures
import os
import pathlib
import random
import re
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent

# What core_tests is built from and waits.
FILES = [
    "offload/ring/streamer.cpp",
    "offload/feed/staged_store.cpp",
    "offload/feed/staging.h",
    "offload/feed/transfers.h",
    "offload/feed/in_place_store.cpp",
    "offload/feed/transfer_fillers.cpp",
    "offload/io/file_reader.cpp",
    "offload/feed/host_fill.cpp",
    "offload/io/disk.cpp",
    "offload/feed/direct_store.cpp",
    "offload/feed/copies.h",
    "offload/device/host_link.cpp",
    "offload/device/lane_gate.cpp",
]

# The names of waits: of links (wait, wait_arrived, synchronize) and of those who call them, of condition variables, of
# threads. Functions of this project that wait are named wait_ or await_ something.
WAIT = re.compile(r"(?:(?:\.|->)(?:wait|wait_for|wait_until|join)|\b(?:a?wait_\w+|synchronize|drain))\s*\(")

# All before the name of a wait that is a statement: an object, or nothing. `void drain(` is a declaration.
OBJECT = re.compile(r"(?:[\w.]|->|\[\w+\])*$")

# Tests of what the streamer does with bytes, ...
LOOK = ["WaitsBytes*", "Streamer.*", "SharedPass.*", "StagedStore.*", "FileReader.*", "FileStore.*", "HostFillTest.*", "Failure.*", "*Failures.*", "HostLink.*", "LaneGate.*"]
# ... without those that only compare which calls were made, how many, or in which order. (StreamerWaits and the tests
# of scheduler, planner and fake link are not among those above: they do that, or test the tests.)
LEAVE_OUT = [
    "Streamer.WaitsForTheDeviceNowhereInACall",
    "Streamer.SendsNeighboursInOneCopy",
    "Streamer.MovesExactlyTheBytesOfEachPass",
    "Streamer.ReturnsTheStepsThatWereExecuted",
    "StagedStore.GathersSmallWeightsInOneBuffer",
    "StagedStore.SendsPageLockedWeightsFromWhereTheyAre",
    "LaneGate.GivesEachCallALaneOfItsOwn",
    "LaneGate.GivesTheLaneThatWasReleasedLast",
    "LaneGate.LetsCallsInInTheOrderInWhichTheyCame",
    "LaneGate.KeepsTheExclusiveCallerAloneAndInTurn",
]

# What a failure must say to count; tests that look at bytes may look at numbers of calls, too.
EVIDENCE = [
    ("bytes", re.compile(r"wrong bytes|is read before it arrives|is overwritten before it is read")),
    ("bytes", re.compile(r"^ +wrong$", re.M)),  # a count of wrong bytes, or of calls that share a lane
    ("deadlock", re.compile(r"\bdeadlock: ")),
    ("busy", re.compile(r"busy wait: ")),
]

# Longer than the tests' own limit: they are to find it themselves.
TEST_SECONDS = 25
MOST_HANGS = 2  # of one mutant; what follows would hang as well


class Wait:
    def __init__(self, file, text, begin, end):
        self.file = file
        self.begin = begin
        self.end = end
        self.line = text.count("\n", 0, begin) + 1
        self.code = " ".join(text[begin:end].split())

    def where(self):
        return f"{self.file}:{self.line}"

    def taken_out(self, text):
        """An empty statement is left; lines keep their numbers."""
        return text[: self.begin] + ";" + "\n" * text.count("\n", self.begin, self.end) + text[self.end :]


def without_comments(text):
    """The same text with blanks for comments and literals."""
    blank = lambda match: re.sub(r"[^\n]", " ", match.group())
    return re.sub(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])\'', blank, text, flags=re.S)


def closing(code, open_at):
    depth = 0
    for at in range(open_at, len(code)):
        depth += {"(": 1, ")": -1}.get(code[at], 0)
        if depth == 0:
            return at
    raise ValueError("parentheses do not match")


def find_waits(file):
    """The waits that are statements of their own, and the lines of those whose value is used."""
    text = (ROOT / file).read_text()
    code = without_comments(text)
    waits, used = [], []
    for match in WAIT.finditer(code):
        begin = match.start() - len(OBJECT.search(code[: match.start()]).group())
        after = closing(code, match.end() - 1) + 1
        before = code[:begin].rstrip()
        if any(wait.begin <= match.start() < wait.end for wait in waits):
            continue
        if before[-1:] in (";", "{", "}") and code[after] == ";":
            waits.append(Wait(file, text, begin, after + 1))
        elif not re.search(r"[\w>&*:]$", before):  # else it is declared here: a type stands before it, or a class
            used.append(Wait(file, text, begin, after))
    return waits, used


def copy_tree(target):
    """Copies what is built, and writes only what differs, so that a build directory is good for the next time."""
    names = [ROOT / "CMakeLists.txt"]
    for folder in ("offload", "tests", "tools"):
        files = (ROOT / folder).rglob("*")
        names += [path for path in files if path.suffix in (".h", ".cpp") or path.name == "CMakeLists.txt"]
    for path in names:
        to = target / path.relative_to(ROOT)
        content = path.read_bytes()
        if not to.exists() or to.read_bytes() != content:
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_bytes(content)


class Builder:
    def __init__(self, folder, jobs, together):
        self.source = folder / "source"
        self.build = folder / "build"
        self.jobs = jobs
        self.environment = dict(os.environ, CCACHE_BASEDIR=str(folder), CCACHE_NOHASHDIR="1")
        self.environment["PATH"] = f"{ROOT / 'build/venv/bin'}:{os.environ['PATH']}"
        copy_tree(self.source)
        # No optimisation: most of the time goes into compiling. No sanitizer: the fake device sees what matters here.
        self.run(["cmake", "-S", self.source, "-B", self.build, "-G", "Ninja", "-DOFFLOAD_WITH_TORCH=OFF",
                  "-DCMAKE_BUILD_TYPE=", "-DCMAKE_CXX_FLAGS=-O0 -w", f"-DCMAKE_UNITY_BUILD={'ON' if together else 'OFF'}"])

    def run(self, command):
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        done = subprocess.run(command, env=self.environment, text=True, **output)
        if done.returncode != 0:
            raise RuntimeError(f"{command[0]} failed:\n{done.stdout[-4000:]}")

    def make(self, name):
        """core_tests as the sources are now, under another name."""
        self.run(["cmake", "--build", self.build, "--target", "core_tests", "-j", str(self.jobs)])
        program = self.build / name
        shutil.copy2(self.build / "tests/core_tests", program)
        return program


def threads_sleep(pid):
    """True when no thread of the process computes, now and a little later."""
    for _ in range(5):
        for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
            try:
                if (task / "stat").read_text().rpartition(")")[2].split()[0] not in "SD":
                    return False
            except OSError:
                pass
        time.sleep(0.05)
    return True


class Tests:
    """Runs tests of a program; those that fail, and why."""

    def __init__(self, program, before=None):
        self.failed = {}  # test -> kinds of evidence, none when it is none that counts
        self.cut_short = False
        names = before or list_tests(program, ":".join(LOOK) + "-" + ":".join(LEAVE_OUT))
        self.names = names
        hangs = 0
        # Those that look for waits come first: they find what hangs by a limit of their own.
        for first in (True, False):
            left = [name for name in names if name.startswith(("WaitsBytes", "SharedPass")) == first]
            while left and not self.cut_short:
                left, hung = self.run(program, left)
                hangs += hung
                self.cut_short = hangs >= MOST_HANGS or (hangs > 0 and not left)

    def run(self, program, names):
        """Runs these tests until one ends the process. Those that have not run then, and whether one hung."""
        process = subprocess.Popen(
            [program, "--gtest_color=no", "--gtest_filter=" + ":".join(names)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0)
        current, last, text, left, hung = None, None, "", list(names), False
        watched = selectors.DefaultSelector()
        watched.register(process.stdout, selectors.EVENT_READ)
        rest, since = b"", time.monotonic()
        while True:
            if not watched.select(max(0.0, since + TEST_SECONDS - time.monotonic())):
                hung = True
                text += "\ndeadlock: all threads sleep\n" if threads_sleep(process.pid) else "\nit does not end\n"
                process.kill()
                break
            chunk = os.read(process.stdout.fileno(), 1 << 16)
            if not chunk:
                break
            *lines, rest = (rest + chunk).split(b"\n")
            for line in (line.decode(errors="replace") for line in lines):
                event = re.match(r"\[( RUN      |       OK |  FAILED  )\] ([\w/.]+)", line)
                if event is None or (event[1] == " RUN      " and current):  # in what a death test has printed, too
                    text += line + "\n"
                elif event[1] == " RUN      ":
                    current = last = event[2]
                    text, since = "", time.monotonic()
                    if current in left:
                        left.remove(current)
                elif event[2] == current:
                    if event[1] == "  FAILED  ":
                        self.note(current, text)
                    current = None
        process.wait()
        process.stdout.close()
        if last is None:
            raise RuntimeError(f"{program.name} runs no test: {text}")
        if current is not None:
            text += rest.decode(errors="replace")
            hung = hung or "deadlock: " in text
            self.note(current, text)
        if process.returncode < 0 and not hung:  # after a test: by a thread that it has left
            self.failed.setdefault(last, set()).add("crash " + signal.Signals(-process.returncode).name)
        return left, hung

    def note(self, test, text):
        self.failed[test] = {kind for kind, pattern in EVIDENCE if pattern.search(text)}

    def found(self):
        return any(self.failed.values())


def list_tests(program, pattern):
    command = [program, "--gtest_list_tests", "--gtest_filter=" + pattern]
    names, suite = [], ""
    for line in subprocess.run(command, text=True, stdout=subprocess.PIPE, check=True).stdout.splitlines():
        if line.startswith("  "):
            names.append(suite + line.split("#")[0].strip())
        elif line.split("#")[0].strip().endswith("."):
            suite = line.split("#")[0].strip()
    return names


def show(wait, tests):
    by_kind = {}
    for test, kinds in tests.failed.items():
        for kind in sorted(kinds) or ["does not count"]:
            by_kind.setdefault(kind, []).append(test)
    print(f"{wait.where():38} {wait.code[:80]}")
    for kind, names in by_kind.items():
        print(f"{'':6}{kind}: {', '.join(names[:4])}" + (f" and {len(names) - 4} more" if len(names) > 4 else ""))
    if tests.cut_short:
        print(f"{'':6}(the other tests were not run: too many hang)")
    if not tests.found():
        print(f"{'':6}SURVIVES")
    sys.stdout.flush()


def chosen(wait, only):
    if only is None:
        return True
    file, _, line = only.partition(":")
    return ("/" + wait.file).endswith("/" + file) and (not line or int(line) == wait.line)


def check(builder, waits):
    """The waits that survive."""
    intact = Tests(builder.make("intact"))
    if intact.failed or not intact.names:
        raise RuntimeError(f"tests fail as it is: {', '.join(intact.failed)}")
    survivors = []
    # The tests of one run while the next is built.
    with concurrent.futures.ThreadPoolExecutor(1) as runner:
        results = []
        for number, wait in enumerate(waits):
            path = builder.source / wait.file
            text = path.read_text()
            path.write_text(wait.taken_out(text))
            try:
                program = builder.make(f"mutant{number}")
            finally:
                path.write_text(text)
            results.append(runner.submit(Tests, program, intact.names))
            while results and (results[0].done() or number + 1 == len(waits)):
                done = waits[number + 1 - len(results)]
                tests = results.pop(0).result()
                show(done, tests)
                if not tests.found():
                    survivors.append(done)
    return survivors


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="FILE[:LINE]", help="the waits of this file, or on this line")
    parser.add_argument("--sample", metavar="N", type=int, help="only so many of them, drawn at random")
    parser.add_argument("--seed", metavar="N", type=int, help="draws the same again (default: another each time)")
    parser.add_argument("--build", metavar="DIR", type=pathlib.Path, help="keep the copy and its build here")
    parser.add_argument("--jobs", metavar="N", type=int, default=2, help="compilers at a time (default: 2)")
    parser.add_argument("--list", action="store_true", help="show the waits and build nothing")
    options = parser.parse_args()

    waits, used = [], []
    for file in FILES:
        found, of_value = find_waits(file)
        waits += [wait for wait in found if chosen(wait, options.only)]
        used += [wait for wait in of_value if chosen(wait, options.only)]
    for wait in used:
        print(f"{wait.where():38} {wait.code}: its value is used; the wait inside it is removed instead")
    if options.list:
        for wait in waits:
            print(f"{wait.where():38} {wait.code}")
        return 0
    if not waits:
        raise RuntimeError("there is no such wait")
    if options.sample is not None:
        seed = random.randrange(1 << 32) if options.seed is None else options.seed
        print(f"seed {seed}: {options.sample} of {len(waits)} waits")
        waits = random.Random(seed).sample(waits, min(options.sample, len(waits)))

    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="waits-") as temporary:
        folder = options.build.resolve() if options.build else pathlib.Path(temporary)
        if folder == ROOT or ROOT in folder.parents and folder.parts[len(ROOT.parts)] in ("offload", "tests"):
            raise RuntimeError("the copy must not lie among the sources")
        # Several sources are compiled as one only where few are compiled more than once.
        survivors = check(Builder(folder, options.jobs, together=len(waits) < 3), waits)
    print(f"{len(waits)} waits, {len(survivors)} survive, {time.monotonic() - begin:.0f} s")
    return 1 if survivors else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        print(f"waits.py: {error}", file=sys.stderr)
        sys.exit(2)
