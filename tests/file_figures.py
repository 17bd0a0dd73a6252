"""What weights on the file cost, on the host or on a GPU, beside what its disk, its memory and plain torch do there.

Limits: cold, the rate of the same reads by fio (direct, 1 MiB, 8 in flight; by threads where there is no fio), right
before and after; in the page cache, the larger of the plain run and of reading the cache with as many threads as read
for a module, once into a buffer that stays in the processor's caches (fio) and once into as much memory as the budget,
where weights go; the first call with the load, the larger of one read of the file and of a call after it. On a GPU cold and cached are shown, and no
memory is limited.
"""
import argparse
import json
import mmap
import os
import pathlib
import resource
import shutil
import statistics
import subprocess
import sys
import threading
import time

GIB = 1 << 30
FEATURES = 4096
DATA_LIMIT = 3 * GIB
READERS = max(1, os.cpu_count() * 3 // 4)  # as many as read for a module
HAS_FIO = shutil.which("fio") is not None
DISK = "fio" if HAS_FIO else "eight threads"


def limit_data():
    resource.setrlimit(resource.RLIMIT_DATA, (DATA_LIMIT, DATA_LIMIT))


def program(build, name):
    return next(path for folder in ("", "models", "tests") if (path := build / folder / name).exists())


class Stack:
    def __init__(self, given, features=FEATURES):
        self.benchmark = program(given.build, "file_benchmark")
        self.path = str(given.folder / f"file_figures.{features}.pt")
        subprocess.run([program(given.build, "make_model"), "stack", "--layers", str(given.layers), "--features", str(features),
                        self.path], check=True, stdout=subprocess.DEVNULL)
        self.bytes = os.path.getsize(self.path)
        self.device = given.device
        # For a GPU, host memory has room for buffers only, so that all that streams comes from the file.
        self.budgets = ["--vram", "1GiB", "--host", "512MiB" if given.device == "cpu" else "64MiB"]
        self.outputs = set()  # checksums of all that was computed
        with open(self.path, "rb") as file:
            os.fsync(file.fileno())

    def drop_cache(self):
        with open(self.path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def fill_cache(self):
        with open(self.path, "rb", buffering=0) as file:
            while file.read(64 << 20):
                pass

    def read_by_threads(self, count, direct, span=1 << 20):
        """Bytes a second of `count` threads that read 1 MiB at a time, each into `span` bytes of its own: what fio does,
        where it is not installed."""
        descriptor = os.open(self.path, os.O_RDONLY | (os.O_DIRECT if direct else 0))
        blocks = iter(range(0, self.bytes >> 20 << 20, 1 << 20))
        buffers = [mmap.mmap(-1, span) for _ in range(count)]
        for buffer in buffers:
            buffer.madvise(mmap.MADV_HUGEPAGE)
            for page in range(0, span, mmap.PAGESIZE):
                buffer[page] = 1

        def read(buffer):
            with memoryview(buffer) as view:
                for offset in blocks:
                    at = offset % span
                    os.preadv(descriptor, [view[at:at + (1 << 20)]], offset)

        threads = [threading.Thread(target=read, args=(buffer,)) for buffer in buffers]
        begin = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        os.close(descriptor)
        return (self.bytes >> 20 << 20) / (time.perf_counter() - begin)

    def fio(self, *options):
        """Bytes a second."""
        done = subprocess.run(["fio", "--name=read", f"--filename={self.path}", "--readonly", "--rw=read", "--bs=1M",
                               "--output-format=json", "--group_reporting", *options], check=True, capture_output=True)
        return json.loads(done.stdout)["jobs"][0]["read"]["bw_bytes"]

    def disk_rate(self):
        if not HAS_FIO:
            return self.read_by_threads(8, direct=True)
        return self.fio("--direct=1", "--ioengine=io_uring", "--iodepth=8", f"--size={self.bytes}")

    def memory_rate(self):
        """Of reading the cache into memory."""
        return self.read_by_threads(READERS, direct=False, span=GIB // READERS >> 20 << 20)

    def cache_rate(self):
        jobs = READERS
        if not HAS_FIO:
            return self.read_by_threads(jobs, direct=False)
        share = self.bytes // jobs >> 20 << 20
        return self.fio("--direct=0", "--invalidate=0", "--ioengine=psync", f"--numjobs={jobs}", f"--size={share}",
                        f"--offset_increment={share}")

    def run(self, *options, limited=True):
        """Of a process of its own: what it measured, and its peak of resident memory."""
        child = subprocess.Popen([self.benchmark, self.path, "--features", str(FEATURES), "--device", self.device, *options],
                                 stdout=subprocess.PIPE, preexec_fn=limit_data if limited and self.device == "cpu" else None)
        text = child.stdout.read()
        _, status, usage = os.wait4(child.pid, 0)
        if status != 0:
            raise SystemExit(f"file_benchmark {' '.join(options)}: status {status}")
        measured = json.loads(text)
        measured["call_s"] = statistics.median(measured["calls_s"])
        measured["peak"] = usage.ru_maxrss * 1024
        self.outputs.add(measured["checksum"])
        return measured

    def reading(self, *options):
        """Of the archive alone: seconds, and bytes by system calls."""
        done = subprocess.run([self.benchmark, self.path, "--reading", *options], check=True,
                              capture_output=True)
        return json.loads(done.stdout).values()

    def mapping_rate(self):
        """Of a mapping that is read page by page as it is touched, without read-ahead."""
        part = 256 << 20
        with open(self.path, "rb") as file, mmap.mmap(file.fileno(), part, prot=mmap.PROT_READ) as mapped:
            mapped.madvise(mmap.MADV_RANDOM)
            begin = time.perf_counter()
            for at in range(0, part, mmap.PAGESIZE):
                mapped[at]
            return part / (time.perf_counter() - begin)

    def torch_dies(self):
        done = subprocess.run([sys.executable, "-c", f"import torch; torch.jit.load({self.path!r})"], capture_output=True,
                              text=True, preexec_fn=limit_data)
        return done.stderr.strip().splitlines()[-1] if done.returncode else "it did not"


def say(text):
    print(text, flush=True)


def read_archive(given, stack):
    say(f"torch.jit.load under a data limit of {DATA_LIMIT / GIB:.0f} GiB, which ours have: {stack.torch_dies()}")
    narrow = Stack(given, features=16)
    (ours, read), (torchs, _) = stack.reading(), narrow.reading("--plain")
    os.remove(narrow.path)
    say(f"reading the archive: {ours * 1e3:.1f} ms, {read / 1e3:.0f} kB of it; torch::jit::load of the same code with weights of 1 KiB {torchs * 1e3:.1f} ms: "
        f"{ours / torchs:.2f} of it (at most 1.2)")


def cold(given, stack):
    ratios, firsts = [], []
    for _ in range(given.rounds):
        stack.drop_cache()
        before = stack.disk_rate()
        stack.drop_cache()
        ours = stack.run(*stack.budgets)
        stack.drop_cache()
        disk = (before + stack.disk_rate()) / 2
        rate = ours["bytes_a_call"] / ours["call_s"]
        ratios.append(rate / disk)
        firsts.append(ours["first_s"] / max(stack.bytes / disk, ours["call_s"]))
        say(f"cold: {ours['call_s']:.3f} s a call, {rate / 1e9:.2f} GB/s; {DISK} {before / 1e9:.2f} and {disk * 2 / 1e9 - before / 1e9:.2f} GB/s: "
            f"{ratios[-1]:.3f} of it; load {ours['load_s'] * 1e3:.0f} ms, with the first call {ours['first_s']:.3f} s: "
            f"{firsts[-1]:.3f} of its limit; peak of resident memory {ours['peak'] / GIB:.2f} GiB")
    say(f"cold, median: {statistics.median(ratios):.3f} of the disk (to be at least 0.95); first call {statistics.median(firsts):.3f} "
        "of its limit (at most 1.2)")
    stack.drop_cache()
    say(f"a plain mapping without read-ahead: {stack.mapping_rate() / 1e9:.2f} GB/s")


def cached_on_host(given, stack):
    cached, from_memory, resident = [], [], []
    for _ in range(given.rounds):
        stack.fill_cache()  # some machines empty it
        plain = stack.run("--plain", "--calls", "15", limited=False)
        cache, memory = stack.cache_rate(), stack.memory_rate()
        ours = stack.run(*stack.budgets, "--calls", "15")
        all_in = stack.run("--vram", "16GiB", "--beside", "--calls", "15", limited=False)
        cached.append(ours["call_s"] / max(plain["call_s"], ours["bytes_a_call"] / cache))
        from_memory.append(ours["call_s"] / max(plain["call_s"], ours["bytes_a_call"] / memory))
        resident.append(all_in["call_s"] / statistics.median(all_in["plain_calls_s"]))
        say(f"cached: {ours['call_s']:.3f} s a call; plain {plain['call_s']:.3f} s; reading the cache {cache / 1e9:.2f} GB/s, into memory "
            f"{memory / 1e9:.2f} GB/s: {cached[-1]:.3f} and {from_memory[-1]:.3f} of the limit; peak of resident memory {ours['peak'] / GIB:.2f} GiB; all resident {all_in['call_s']:.3f} s: "
            f"{resident[-1]:.3f} of plain beside it")
    say(f"cached, median: {statistics.median(cached):.3f} and {statistics.median(from_memory):.3f} of the limit (at most 1.25 on two "
        f"processors, 1.10 on 16); all resident {statistics.median(resident):.3f} of plain (at most 1.02)")


def cached_on_gpu(given, stack):
    ratios = []
    stack.run("--plain")  # its output is what the others have to have
    for _ in range(given.rounds):
        stack.fill_cache()
        memory = stack.memory_rate()
        ours = stack.run(*stack.budgets)
        rate = ours["bytes_a_call"] / ours["call_s"]
        ratios.append(rate / memory)
        say(f"cached: {ours['call_s']:.3f} s a call, {rate / 1e9:.2f} GB/s; reading the cache into memory {memory / 1e9:.2f} GB/s: {ratios[-1]:.3f} of it")
    say(f"cached, median: {statistics.median(ratios):.3f} of it")


def main():
    arguments = argparse.ArgumentParser(description="Figures of weights on the file.")
    arguments.add_argument("build", type=pathlib.Path, help="where it was built, or the folder that tests/gpu_pack.sh made")
    arguments.add_argument("folder", type=pathlib.Path, help="where the model is made, and removed again")
    arguments.add_argument("--layers", type=int, default=128, help="of 64 MiB")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--device", default="cpu", help="cpu, cuda:0")
    given = arguments.parse_args()
    stack = Stack(given)
    try:
        say(f"stack of {given.layers} layers of {FEATURES} x {FEATURES}, float32, {stack.bytes / GIB:.2f} GiB; {os.cpu_count()} processors; "
            f"on {given.device}; {' '.join(stack.budgets)}")
        if given.device == "cpu":
            read_archive(given, stack)
        cold(given, stack)
        (cached_on_host if given.device == "cpu" else cached_on_gpu)(given, stack)
        say(f"outputs of all those processes: {'the same bits' if len(stack.outputs) == 1 else 'FAILED: they differ'}")
        if len(stack.outputs) != 1:
            sys.exit(1)
    finally:
        os.remove(stack.path)


main()
