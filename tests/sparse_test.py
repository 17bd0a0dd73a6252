"""plan of an archive of 300 GB that is hardly there: it reads headers, and takes no memory for weights.

usage: sparse_test.py PLAN FOLDER
"""
import json
import os
import resource
import struct
import subprocess
import sys
import time
import zipfile
import zlib

import torch
from torch import nn

LAYERS = 3
SMALL = 251  # a width that stands nowhere else in a pickle of such a model
LARGE = 160_000
MEMORY = 1 << 30  # what torch's libraries take, and little more
READ = 1 << 20  # headers, those of the libraries, too


def number(value):
    """As PyTorch's pickler writes integers."""
    if value < 1 << 8:
        return b"K" + struct.pack("<B", value)
    if value < 1 << 16:
        return b"M" + struct.pack("<H", value)
    if value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x08" + struct.pack("<q", value)


def widened(pickle):
    """The same tensors, LARGE wide."""
    wide = pickle.replace(number(SMALL), number(LARGE)).replace(number(SMALL * SMALL), number(LARGE * LARGE))
    assert wide != pickle, "the pickle is laid out otherwise"
    return wide


def write_sparse(source, target):
    """The records of `source` with tensors as holes of their new size; zip64, as APPNOTE 6.3 has it."""
    bytes_each = LARGE * LARGE * 4
    directory = b""
    with zipfile.ZipFile(source) as old, open(target, "wb") as new:
        for name in old.namelist():
            is_tensor = "/data/" in name
            content = b"" if is_tensor else old.read(name)
            if name.endswith("/data.pkl"):
                content = widened(content)
            size = bytes_each if is_tensor else len(content)
            header = new.tell()
            sizes = struct.pack("<HHHHHLLLHH", 45, 0, 0, 0, 0, zlib.crc32(content), 0xFFFFFFFF, 0xFFFFFFFF, len(name), 20)
            new.write(b"PK\3\4" + sizes + name.encode() + struct.pack("<HHQQ", 1, 16, size, size) + content)
            new.seek(size - len(content), os.SEEK_CUR)
            directory += (b"PK\1\2" + struct.pack("<H", 45) + sizes[:-2] + struct.pack("<HHHHLL", 28, 0, 0, 0, 0, 0xFFFFFFFF)
                          + name.encode() + struct.pack("<HHQQQ", 1, 24, size, size, header))
        at, count = new.tell(), len(old.namelist())
        new.write(directory)
        end = new.tell()
        new.write(b"PK\6\6" + struct.pack("<QHHLLQQQQ", 44, 45, 45, 0, 0, count, count, len(directory), at))
        new.write(b"PK\6\7" + struct.pack("<LQL", 0, end, 1))
        new.write(b"PK\5\6" + struct.pack("<HHHHLLH", 0, 0, count, count, 0xFFFFFFFF, 0xFFFFFFFF, 0))


def main():
    plan, folder = sys.argv[1:]
    os.makedirs(folder, exist_ok=True)
    source, target = (os.path.join(folder, name) for name in ("small.pt", "sparse.pt"))
    model = nn.Sequential(*(nn.Linear(SMALL, SMALL, bias=False) for _ in range(LAYERS))).eval()
    torch.jit.trace(model, torch.ones(1, SMALL)).save(source)
    write_sparse(source, target)
    print(f"{os.path.getsize(target) / 1e9:.0f} GB, of which {os.stat(target).st_blocks * 512 / 1e3:.0f} kB are there")
    begin = time.perf_counter()
    with subprocess.Popen([plan, target, "--vram", "256GiB", "--device", "cpu", "--format", "json"],
                          stdout=subprocess.PIPE, text=True) as process:
        weights = json.loads(process.stdout.read())["weights"]
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        seconds = time.perf_counter() - begin
        with open(f"/proc/{process.pid}/io") as counts:
            read = int(counts.readline().split()[1])  # by system calls; what a mapping reads would stand in the memory
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10
    os.remove(target)
    print(f"{sum(weight['bytes'] for weight in weights) / 1e9:.0f} GB of weights planned in {seconds:.2f} s, {memory >> 20} MiB "
          f"of memory, {read / 1e3:.0f} kB read")
    if sum(weight["bytes"] for weight in weights) != LAYERS * LARGE * LARGE * 4 or memory > MEMORY or read > READ:
        sys.exit("that is not what it should be")


main()
