#!/usr/bin/env python3
"""Calls a second of threads of Python, beside those of as many threads of C++ (the tool `run`), in turns; and calls a second
of a processor, which tell more where others use the machine.

    threads_benchmark.py MODEL INPUTS --vram 24MiB [--threads 8] [--calls 200] [--rounds 5]

Both make the calls of INPUTS, one after the other. The ratio is that of the medians of all rounds. Set OMP_NUM_THREADS, or
threads of OpenMP wait for each other.
"""

import argparse
import pathlib
import resource
import statistics
import subprocess
import sys
import threading
import time

import torch

import torch_offload


def clocks(who):
    """Seconds of the wall, and of processors."""
    used = resource.getrusage(who)
    return torch.tensor([time.perf_counter(), used.ru_utime + used.ru_stime], dtype=torch.float64)


def python_rate(arguments, calls):
    model = torch_offload.load(
        arguments.model, vram_budget=arguments.vram, concurrency=arguments.threads, example_calls=[tuple(call) for call in calls]
    )
    model(*calls[0])
    numbers = iter(range(arguments.calls))
    lock = threading.Lock()

    def work():
        stream = torch.cuda.Stream() if model.device.type == "cuda" else None
        with torch.cuda.stream(stream):
            while True:
                with lock:
                    i = next(numbers, None)
                if i is None:
                    return
                model(*calls[i % len(calls)])
                if stream:
                    stream.synchronize()

    threads = [threading.Thread(target=work) for _ in range(arguments.threads)]
    begin = clocks(resource.RUSAGE_SELF)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [arguments.calls / seconds for seconds in clocks(resource.RUSAGE_SELF) - begin]


def cpp_rate(arguments):
    """What twice as many calls take longer: to begin takes either the same."""
    tool = pathlib.Path(sys.executable).parent / "torch-offload-run"
    taken = []
    for times in (1, 2):
        begin = clocks(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [tool, arguments.model, "--inputs", arguments.inputs, "--vram", arguments.vram, "--threads", str(arguments.threads),
             "--calls", str(arguments.calls * times)], capture_output=True, check=True)
        taken.append(clocks(resource.RUSAGE_CHILDREN) - begin)
    return [arguments.calls / seconds for seconds in taken[1] - taken[0]]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("inputs")
    parser.add_argument("--vram", required=True)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    device = torch_offload.load(arguments.model, vram_budget=arguments.vram).device
    calls = [[x.to(device) if isinstance(x, torch.Tensor) else x for x in call] for call in torch.load(arguments.inputs)]
    ours, theirs = [], []
    for _ in range(arguments.rounds):
        ours.append(python_rate(arguments, calls))
        theirs.append(cpp_rate(arguments))
        print("Python {:9.2f} {:9.2f}, C++ {:9.2f} {:9.2f}".format(*ours[-1], *theirs[-1]), flush=True)
    for i, clock in enumerate(("of the wall", "of a processor")):
        ratio = statistics.median(rate[i] for rate in ours) / statistics.median(rate[i] for rate in theirs)
        print(f"calls in a second {clock}, Python over C++, medians of {arguments.rounds}: {ratio:.3f}")


main()
