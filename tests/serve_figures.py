"""Calls a second of serve beside those of the same model in one process, from as many callers, on this machine.

usage: serve_figures.py SERVE RUN MODEL.pt --vram 160MiB --sizes 1,64 --bound 32000 [--callers 1,4,8] [--seconds 10] [--rounds 3]
A row for each number of callers: the round whose share is the median, and the lowest and highest share.
"""
import argparse
import json
import multiprocessing
import os
import subprocess
import time

import numpy as np
import tritonclient.http as http

from serve_process import Server


def call(address, shape, bound, begin, end, counts, place):
    """Makes calls between two points of time, and counts those that ended in between."""
    client = http.InferenceServerClient(address, network_timeout=600, connection_timeout=600)
    tokens = http.InferInput("tokens", list(shape), "INT64")
    tokens.set_data_from_numpy(np.random.default_rng(place).integers(0, bound, shape))
    while time.time() < end:
        client.infer("m", [tokens])
        counts[place] += begin < time.time() < end


def served(arguments, callers, shape):
    with Server(arguments.serve, "--model", f"m={arguments.model}", "--vram", arguments.vram,
                "--example", f"m=int64[{arguments.sizes}]<{arguments.bound}", threads=arguments.threads) as server:
        begin = time.time() + 3  # what comes before is a warm-up
        counts = multiprocessing.Array("q", callers)
        workers = [multiprocessing.Process(target=call, args=(server.address, shape, arguments.bound, begin,
                                                              begin + arguments.seconds, counts, place))
                   for place in range(callers)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return sum(counts) / arguments.seconds


def in_process(arguments, callers, calls):
    command = [arguments.run, arguments.model, "--device", "cpu", "--vram", arguments.vram, "--input",
               f"int64[{arguments.sizes}]<{arguments.bound}", "--threads", str(callers), "--calls", str(calls),
               "--format", "json"]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True,
                         env={**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}).stdout
    return json.loads(out)


def main():
    parser = argparse.ArgumentParser()
    for name in ("serve", "run", "model"):
        parser.add_argument(name)
    parser.add_argument("--vram", required=True)
    parser.add_argument("--sizes", required=True)
    parser.add_argument("--bound", type=int, required=True)
    parser.add_argument("--callers", default="1,4,8")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--threads", type=int, default=1, help="of OpenMP")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    shape = tuple(int(size) for size in arguments.sizes.split(","))
    print("callers  served/s  in process/s  share  of all rounds")
    for callers in (int(text) for text in arguments.callers.split(",")):
        rounds = []
        for _ in range(arguments.rounds):  # in turns, since a machine is not the same at all times
            rate = served(arguments, callers, shape)
            alone = in_process(arguments, callers, max(8 * callers, int(rate * arguments.seconds)))
            plain = callers / (alone["measured"]["time_us"] / 1e6)
            rounds.append((rate / plain, rate, plain))
        share, rate, plain = sorted(rounds)[len(rounds) // 2]
        print(f"{callers:7}  {rate:8.1f}  {plain:12.1f}  {share:5.2f}  {min(rounds)[0]:.2f} to {max(rounds)[0]:.2f}",
              flush=True)


main()
