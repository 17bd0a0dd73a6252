"""Bad input to plan, run, bench, make_model and serve: status 2, and one line that names what is wrong and what was wanted.

usage: bad_input_test.py PLAN RUN BENCH MAKE_MODEL SERVE [--show] [--only TEXT] [--every N]
--show prints what each case gives, --only takes the cases whose command holds TEXT, --every each Nth of them. A case that
ought to work gives 0.
"""
import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor

from bad_input_cases import CPU, all_cases
from bad_input_files import make_files

# Nothing of this may stand on standard error, whatever the input.
NEVER = ("Exception raised from", "INTERNAL ASSERT", "terminate called", "Traceback", "frame #", "enforce fail",
         "what():", "AddressSanitizer", ".cpp:", ".cc:", ".h\":", "std::bad_alloc", "report a bug to PyTorch",
         "enhancement request to PyTorch", "filesystem error")
SECONDS = 20  # what takes longer has hung: a refusal takes less than one
WORKERS = 2


def what_is_wrong(status, out, err, expected, wanted):
    """Empty when a tool did as it should."""
    lines = [line for line in err.splitlines() if not re.match(r"\[W\d", line)]
    if status != expected:
        return f"status {status} instead of {expected}"
    if expected == 0:
        return "" if out and not lines else "nothing printed" if not out else "it wrote on standard error"
    if len(lines) != 1:
        return f"{len(lines)} lines on standard error"
    if out:
        return "it printed something, too"
    missing = [text for text in wanted if text not in lines[0]]
    if missing:
        return "the line does not hold " + ", ".join(repr(text) for text in missing)
    never = [text for text in NEVER if text in lines[0]]
    return "the line holds " + ", ".join(never) if never else ""


def run(command, environment):
    """Status, standard output, standard error; no status when it hangs."""
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          errors="replace", env=environment) as process:
        try:
            out, err = process.communicate(timeout=SECONDS)
            return process.returncode, out, err
        except subprocess.TimeoutExpired:
            process.kill()
            return ("none", *process.communicate())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("tools", nargs=5, metavar="TOOL", help="PLAN RUN BENCH MAKE_MODEL SERVE")
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--every", type=int, default=1)
    arguments = parser.parse_args()
    tools = dict(zip(("plan", "run", "bench", "make_model", "serve"), map(os.path.abspath, arguments.tools)))
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        environment = {**os.environ, "XDG_CACHE_HOME": os.path.join(folder, "cache"), "OMP_NUM_THREADS": "1"}
        make_files(tools["make_model"])
        planned = run([tools["plan"], *shlex.split(f"straight.pt {CPU} --format json")], environment)
        smallest = json.loads(planned[1])["budget"]["minimum"]

        def result_of(case):
            tool, text, expected, wanted = case
            text, *wanted = (part.format(smallest=smallest, below=smallest - 1) for part in (text, *wanted))
            status, out, err = run([tools[tool], *shlex.split(text)], environment)
            return f"{tool} {text}", status, err, expected, wanted, what_is_wrong(status, out, err, expected, wanted)

        cases = [case for case in all_cases() if arguments.only in f"{case[0]} {case[1]}"]
        if os.access("locked.pt", os.R_OK):  # as root
            cases = [case for case in cases if "locked.pt" not in case[1]]
        cases = cases[::arguments.every]
        failures = 0
        with ThreadPoolExecutor(WORKERS) as pool:
            for command, status, err, expected, wanted, wrong in pool.map(result_of, cases):
                failures += bool(wrong)
                if wrong:
                    print(f"FAILED: {command}\n  {wrong}\n  wanted status {expected} and {wanted}\n  "
                          f"came status {status} and {err.rstrip()!r}", flush=True)
                elif arguments.show:
                    print(f"{command}\n  {err.rstrip()}", flush=True)
        os.chdir("/")
    print(f"{len(cases)} cases, {failures} failures")
    sys.exit(1 if failures else 0)


main()
