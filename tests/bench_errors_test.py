"""bench --errors, --monotone and --rules on the host: what they measure, and that a row which fails spoils no other.

usage: bench_errors_test.py BENCH MAKE_MODEL
"""
import json
import os
import subprocess
import sys
import tempfile

import torch

FEATURES = 512
LAYERS = 8
WEIGHTS = LAYERS * FEATURES * FEATURES * 4
ROWS = (4, 32)
MOST_SECONDS = 5  # of timed calls in a row: 2, but other programs may slow the machine down in the middle of a block


def bench(program, *arguments):
    """Status, what it printed as JSON, and its errors."""
    done = subprocess.run([program, "--device", "cpu", "--format", "json", *arguments], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, check=False)
    return done.returncode, json.loads(done.stdout), done.stderr


def check_row(row):
    measured, after = row["measured"], row["after"]
    assert row["before_by"] == "calls", row
    assert row["before"]["time_us"] > 0 and after["time_us"] > 0 and measured["time_us"] > 0, row
    assert 0 < measured["calls_s"] < MOST_SECONDS, row
    assert measured["time_us"] * measured["calls"] < 3 * measured["calls_s"] * 1e6, row
    assert 0 < measured["peak_device_bytes"] <= row["budget_bytes"], row
    assert measured["streamed_bytes"] == after["streamed_bytes"], row


def check_shape(rows):
    """The rows of one shape: from everything streamed to nothing."""
    budgets = [row["budget_bytes"] for row in rows]
    assert len(budgets) == 3 and abs(budgets[0] + budgets[2] - 2 * budgets[1]) <= 1, budgets
    assert budgets[0] < WEIGHTS / 2 < WEIGHTS <= budgets[2], budgets
    for row in rows:
        check_row(row)
    assert rows[0]["measured"]["streamed_bytes"] > WEIGHTS / 2, rows[0]
    assert rows[2]["before"]["streamed_bytes"] == rows[2]["measured"]["streamed_bytes"] == 0, rows[2]


def check_modes(program):
    status, printed, errors = bench(program, "--monotone", "--budgets", "3", "--model", "stack.pt", "--output-dir", "out")
    assert status == 1 and f"float32[4,{FEATURES + 1}]" in errors and "mat2" in errors, (status, errors)
    rows = printed["errors"]["rows"]
    for i, count in enumerate(ROWS):
        assert all(row["shape"] == f"float32[{count},{FEATURES}]" for row in rows[3 * i:3 * i + 3]), rows
        check_shape(rows[3 * i:3 * i + 3])
    assert len(rows) == 7 and "mat2" in rows[6]["error"] and "measured" not in rows[6], rows[6:]
    summary = printed["errors"]["summary"]
    assert summary["failed"] == 1 and summary["before"]["rows"] == summary["after"]["rows"] == 6, summary
    whole = printed["monotone"]
    assert len(whole) == 3 and "mat2" in whole[2]["error"], whole
    for shape in whole[:2]:
        assert shape["whole_range"]["points"] == -(-(shape["most"] - shape["least"]) // 65536) + 1, shape
        assert shape["after"]["points"] == shape["measured"]["points"] == 3, shape
        assert 0 < shape["planning_s"] < 25, shape
    with open("out/bench.svg", encoding="utf-8") as file:
        assert file.read().count("r='3.5'") == 12
    with open("out/bench.md", encoding="utf-8") as file:
        assert "| before the first call | 6 |" in file.read()


def check_machine(program):
    """For another machine the call is told from sizes; its budgets are measured here."""
    status, printed, errors = bench(program, "--errors", "--budgets", "2", "--machine", "rtx4090", "--model", "good.pt")
    assert status == 0 and not errors, (status, errors)
    rows = printed["errors"]["rows"]
    assert [row["before_by"] for row in rows] == ["sizes", "sizes"], rows
    assert rows[0]["before"]["streamed_bytes"] > 0 and rows[0]["measured"]["time_us"] > 0, rows[0]
    assert printed["errors"]["summary"]["failed"] == 0 and printed["monotone"] == [], printed


def check_rules(program):
    """Each budget by each rule, and by the fastest once more."""
    status, printed, errors = bench(program, "--rules", "--budgets", "2", "--model", "good.pt")
    assert status == 0 and not errors, (status, errors)
    rows = printed["rules"]["rows"]
    assert len(rows) == 2 and "errors" not in printed, printed
    for row in rows:
        for rule in ("fastest", "larger-first", "first-first", "spread", "module-order"):
            assert row[rule]["measured_us"] > 0 and row[rule]["predicted_us"] > 0, row
        assert row["again_us"] > 0, row
    assert printed["rules"]["most_behind"]["predicted"] >= 1, printed["rules"]


def main():
    program, make_model = map(os.path.abspath, sys.argv[1:])
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ.update(XDG_CACHE_HOME=os.path.join(folder, "cache"), OMP_NUM_THREADS="1")
        subprocess.run([make_model, "stack", "--layers", str(LAYERS), "--features", str(FEATURES), "stack.pt"], check=True)
        os.link("stack.pt", "good.pt")
        calls = [[torch.randn(rows, FEATURES)] for rows in ROWS]
        torch.save(calls[:1], "good.inputs.pt")
        torch.save([*calls, calls[0], [torch.randn(4, FEATURES + 1)]], "stack.inputs.pt")
        check_modes(program)
        check_machine(program)
        check_rules(program)
        os.chdir("/")


main()
