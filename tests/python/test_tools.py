"""The commands of the package."""

import json
import pathlib
import subprocess
import sys

import pytest

BIN = pathlib.Path(sys.executable).parent


def run(tool, *arguments):
    return subprocess.run([BIN / f"torch-offload-{tool}", *map(str, arguments)], capture_output=True, text=True, timeout=300)


def test_plan_and_run_work(scripted_path):
    given = (scripted_path, "--vram", "1MiB", "--input", "float32[4,256]", "--format", "json")
    planned, ran = run("plan", *given), run("run", *given, "--check")
    assert planned.returncode == 0 and json.loads(planned.stdout)["budget"]["vram"] == 2**20, planned.stderr
    assert ran.returncode == 0 and json.loads(ran.stdout)["check"] == "bit-identical", ran.stderr


@pytest.mark.parametrize("tool", ["plan", "run", "bench", "serve"])
def test_commands_describe_themselves(tool):
    done = run(tool, "--help")
    assert done.returncode == 0 and f"torch-offload-{tool}" in done.stdout, done.stderr
    refused = run(tool, "--nothing")
    assert refused.returncode == 2 and refused.stderr.startswith("error: ")
