"""Threads, signals, progress, children of fork, and the end of modules."""

import gc
import os
import pathlib
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import torch_offload
from conftest import BUDGET, call_plain, same_bits


def run_python(program, *arguments):
    """In a process of its own; what it printed. A program that does not end is an error."""
    done = subprocess.run([sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_python_ends_while_another_thread_tells_of_progress(exported):
    program = """
import sys, threading, time, torch, torch_offload
begun = threading.Event()
def tell(done, total):
    if threading.current_thread() is not threading.main_thread():
        begun.set()
        time.sleep(0.3)
model = torch_offload.load(sys.argv[1], vram_budget='1GiB', progress=tell)
print(begun.wait(10))
"""
    told = [run_python(program, exported / "minilm.pt") for _ in range(3)]
    assert "True\n" in told, "weights are read by other threads"


def test_threads_call_one_module_at_the_same_time(model, plain, x):
    inputs = [x[: 1 + i % 4] + i for i in range(64)]
    expected = [call_plain(plain, each) for each in inputs]
    with ThreadPoolExecutor(8) as threads:
        outputs = list(threads.map(model, inputs))
    assert all(same_bits(ours, theirs) for ours, theirs in zip(outputs, expected))


def test_other_threads_run_while_a_call_is_under_way(model, x):
    counted = 0
    ended = threading.Event()
    seen = []

    def call():
        try:
            for _ in range(10):
                before = counted
                model(x, times=400)
                seen.append(counted - before)
        finally:
            ended.set()

    thread = threading.Thread(target=call)
    thread.start()
    while not ended.is_set():
        counted += 1
    thread.join()
    assert len(seen) == 10 and min(seen) > 0


def test_the_end_of_a_module_waits_for_its_calls_and_holds_nobody_up(scripted_path, plain, x):
    for _ in range(5):
        model = torch_offload.load(scripted_path, vram_budget=BUDGET)
        call = threading.Thread(target=lambda called=model: called(x, times=50))
        call.start()
        del model
        call.join()
    gc.collect()


def test_memory_does_not_grow_with_calls(model, x):
    def resident():
        return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    for _ in range(2000):
        model(x)
        model.describe([x, x], {"a": 1})
    before = resident()
    for _ in range(5000):
        model(x)
        model.describe([x, x], {"a": 1})
    assert resident() - before < 4 * 2**20  # 10 000 calls: 420 bytes of each would show
    objects = len(gc.get_objects())
    for _ in range(100):
        model(x)
        with pytest.raises(torch_offload.InputError):
            model(1)
    gc.collect()
    assert len(gc.get_objects()) - objects < 100


def test_progress_is_told(scripted_path, x):
    told = []
    model = torch_offload.load(scripted_path, vram_budget="64MiB", example_calls=[(x,)], progress=lambda *bytes: told.append(bytes))
    model(x)
    assert told and all(0 <= done <= total for done, total in told)


def test_what_progress_raises_ends_wrap(plain, x):
    class Stop(Exception):
        pass

    expected = call_plain(plain, x)

    def stop(done, total):
        raise Stop(f"at {done}")

    with pytest.raises(Stop, match="at "):
        torch_offload.wrap(plain, vram_budget=BUDGET, example_calls=[(x,)], progress=stop)
    assert same_bits(call_plain(plain, x), expected)


def test_a_signal_ends_wrap(plain, x):
    expected = call_plain(plain, x)

    def interrupt(done, total):
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        torch_offload.wrap(plain, vram_budget=BUDGET, example_calls=[(x,)], progress=interrupt)
    assert same_bits(call_plain(plain, x), expected)


def test_a_signal_is_seen_when_a_call_has_returned(model, x):
    timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        while True:
            model(x, times=100)
    timer.join()
    model(x)


def test_a_child_of_fork_is_told(model, x):
    model(x)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        said = []
        for ask in (lambda: model(x), lambda: model.stats, lambda: model.placement, lambda: model.release(), lambda: model.width):
            try:
                ask()
                said.append("nothing")
            except torch_offload.Error as error:
                said.append(str(error))
        os.write(write, "\n".join(said).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read().splitlines()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(said) == 5 and all("belongs to a process that this one was forked from" in line for line in said)
    model(x)


def test_a_process_ends_while_modules_are_there(scripted_path):
    program = """
import sys, threading, torch, torch_offload
torch.set_num_threads(1)
model = torch_offload.load(sys.argv[1], vram_budget="1MiB", progress=lambda done, total: None)
x = torch.zeros(2, 256, device=model.device)
model(x)
class Cycle: pass
kept = Cycle(); kept.self = kept; kept.model = torch_offload.load(sys.argv[1], vram_budget="1MiB")
kept.model(x)
print("done")
"""
    for _ in range(3):
        assert run_python(program, scripted_path) == "done\n"


def test_a_torch_of_another_version_is_refused():
    program = """
import torch
torch.__version__ = "2.10.0"
try:
    import torch_offload
except ImportError as error:
    print(error)
"""
    assert "was built with torch " + torch.__version__.split("+")[0] in run_python(program)
