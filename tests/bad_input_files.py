"""Models, archives and other files that are not what they must be; the cases of bad_input_cases.py name them."""
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from typing import Dict, List

import torch
from torch import nn


class Straight(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(128, 128)

    def forward(self, x):
        return self.layer(x)


class Signatures(nn.Module):
    """Methods that take other things than a tensor."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(128, 128)

    def forward(self, x, times: int, named: Dict[str, torch.Tensor]):
        return self.layer(x) * times + named["y"]

    @torch.jit.export
    def joined(self, parts: List[torch.Tensor]):
        return self.layer(torch.cat(parts))

    @torch.jit.export
    def nothing(self):
        return self.layer.weight.sum()


class NoForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(128, 128)

    @torch.jit.export
    def encode(self, x):
        return self.layer(x)


class Raises(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(128, 128)

    def forward(self, x):
        if x.size(0) > 2:
            raise ValueError("at most two rows, please")
        assert x.size(1) == 128, "rows of 128, please"
        return self.layer(x)


class Unknown(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(128, 128)

    def forward(self, x):
        return self.layer(torch.ops.elsewhere.twice(x))


def write(name, data):
    with open(name, "wb") as file:
        file.write(data if isinstance(data, bytes) else data.encode())


def write_zip(name, records):
    with zipfile.ZipFile(name, "w") as file:
        for record, data in records.items():
            file.writestr(record, data)


def changed(name, archive, changes):
    """A copy of an archive in which records that end so hold other bytes, or are left out where that is None."""
    with zipfile.ZipFile(archive) as file:
        records = {record: file.read(record) for record in file.namelist()}
    for end, data in changes.items():
        found = [record for record in records if record.endswith(end)]
        assert len(found) == 1, (end, found)
        if data is None:
            del records[found[0]]
        else:
            records[found[0]] = data if isinstance(data, bytes) else data(records[found[0]])
    write_zip(name, records)


def safetensors():
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(8)


def npy():
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(8)


PROFILE = {key: 1000.0 for key in ("link_bytes_per_us", "copy_overhead_us", "host_copy_bytes_per_us", "file_bytes_per_us",
                                   "memory_bytes_per_us", "fp64_flops_per_us", "fp32_flops_per_us",
                                   "half_flops_per_us", "node_overhead_us")}
PROFILE.update(version=2, device_memory_bytes=0)
CUTS = (1, 3, 4, 30, 64, 1000, -1000, -100, -22, -1)


def make_models(make_model):
    for command in ("stack --layers 3 --features 128 stack.pt",
                    "transformer --layers 1 --width 128 --heads 4 --vocab 500 tokens.pt"):
        subprocess.run([make_model, *command.split()], check=True, stdout=subprocess.DEVNULL)
    torch.library.define("elsewhere::twice", "(Tensor x) -> Tensor")
    for make in (Straight, Signatures, NoForward, Raises, Unknown):
        torch.jit.script(make().eval()).save(f"{make.__name__.lower()}.pt")


def make_archives():
    """Files that are given for a model and are none."""
    torch.manual_seed(1)
    straight = Straight()
    with open("straight.pt", "rb") as file:
        whole = file.read()
    for cut in CUTS:
        write(f"cut{cut}.pt", whole[:cut])
    write("text.pt", "a model it is not\n")
    write("random.pt", bytes(torch.randint(0, 256, (5000,), dtype=torch.uint8).tolist()))
    write("zeros.pt", bytes(5000))
    write("magic.pt", b"PK\3\4" + bytes(range(256)) * 20)
    write("empty.pt", b"")
    write("end.pt", b"PK\5\6" + bytes(18))  # a zip file of nothing
    write("model.safetensors", safetensors())
    write("model.gguf", b"GGUF" + struct.pack("<IQQ", 3, 0, 0) + bytes(64))
    write("model.h5", b"\x89HDF\r\n\x1a\n" + bytes(500))
    write("model.npy", npy())
    write("model.onnx", b"\x08\x08\x12\x07pytorch" + bytes(100))
    write("model.gz", b"\x1f\x8b\x08" + bytes(100))
    write("pickle.pt", pickle.dumps({"a": 1}))
    torch.save(straight.state_dict(), "legacy.pt", _use_new_zipfile_serialization=False)
    torch.save(straight.state_dict(), "state.pt")
    torch.save(straight, "pickled.pt")
    torch.save(torch.randn(4, 128), "tensor.pt")
    write_zip("other.zip", {"readme.txt": "nothing here"})
    write_zip("folders.zip", {"folder/readme.txt": "nothing here", "folder/version": "3\n"})
    write_zip("program.pt2", {"program/version": "3\n", "program/archive_format": "pt2", "program/archive_version": "0",
                              "program/byteorder": "little", "program/models/model.json": "{}"})
    os.mkdir("folder.pt")
    os.symlink("nowhere", "dangling.pt")
    os.symlink("loop.pt", "loop.pt")
    os.mkfifo("pipe.pt")
    write("locked.pt", whole)
    os.chmod("locked.pt", 0)
    damaged = {
        "version": {"/version": b"9999\n"},
        "noversion": {"/version": None},
        "nodata": {"/data.pkl": None},
        "data": {"/data.pkl": b"\x80\x02garbage"},
        "halfdata": {"/data.pkl": lambda data: data[:len(data) // 2]},
        "constants": {"/constants.pkl": b"nothing"},
        "nocode": {f"{__name__}.py": None},
        "code": {f"{__name__}.py": b"class Straight(Module:\n  what is this?\n"},
        "order": {"/byteorder": b"big"},
        "notensor": {"/data/0": None},
    }
    for name, changes in damaged.items():
        try:
            changed(f"damaged_{name}.pt", "straight.pt", changes)
        except AssertionError:
            with zipfile.ZipFile("straight.pt") as file:
                sys.exit(f"straight.pt is laid out otherwise: {file.namelist()}")


def make_inputs():
    """Files that are given for calls."""
    x = torch.randn(2, 128)
    cyclic = []
    cyclic.append(cyclic)
    for name, value in {
        "good": [[x], [torch.randn(3, 128)]],
        "wide": [[torch.randn(2, 129)]],
        "second": [[x], [torch.randn(2, 129)]],
        "rank": [[torch.randn(())]],
        "integers": [[torch.ones(2, 128, dtype=torch.int64)]],
        "doubles": [[torch.randn(2, 128, dtype=torch.float64)]],
        "sparse": [[x.to_sparse()]],
        "meta": [[torch.empty(2, 128, device="meta")]],
        "none": [],
        "empty_call": [[]],
        "two": [[x, x]],
        "text": [["x"]],
        "numbers": [[3]],
        "nones": [[None]],
        "lists": [[[x]]],
        "named": [{"x": x}],
        "dict": {"x": x},
        "tensor": x,
        "number": 7,
        "string": "x",
        "cyclic": [[x, cyclic]],
        "module": [[Straight()]],
        "signatures": [[x, 2, {"y": x}]],
        "no_key": [[x, 2, {"z": x}]],
        "times": [[x, "two", {"y": x}]],
        "values": [[x, 2, {"y": 3}]],
        "keys": [[x, 2, {1: x}]],
        "parts": [[[x, x]]],
        "mixed_parts": [[[x, 3]]],
    }.items():
        torch.save(value, f"{name}.calls.pt")
    with open("good.calls.pt", "rb") as file:
        whole = file.read()
    write("half.calls.pt", whole[:len(whole) // 2])
    write("garbage.calls.pt", "these are no calls\n")
    write("nothing.calls.pt", b"")
    for model, calls in (("state", "good"), ("stack", "wide"), ("raises", "good")):
        os.link(f"{calls}.calls.pt", f"{model}.inputs.pt")
    os.link("straight.pt", "whole.pt")
    os.link("good.calls.pt", "whole.inputs.pt")
    os.link("straight.pt", "garbled.pt")
    os.link("garbage.calls.pt", "garbled.inputs.pt")


def make_other_files():
    write("text.so", "no library\n")
    write("cut.so", b"\x7fELF\x02\x01\x01" + bytes(200))
    for name, value in {
        "good": PROFILE,
        "missing": {key: PROFILE[key] for key in PROFILE if key != "link_bytes_per_us"},
        "negative": {**PROFILE, "copy_overhead_us": -1},
        "zero": {**PROFILE, "memory_bytes_per_us": 0},
        "huge": {**PROFILE, "memory_bytes_per_us": 1e30},
        "quoted": {**PROFILE, "fp32_flops_per_us": "fast"},
        "null": {**PROFILE, "fp32_flops_per_us": None},
        "unknown": {**PROFILE, "colour": 1},
        "name": {**PROFILE, "name": 7},
        "list": [PROFILE],
        "number": 3,
        "empty": {},
        "nothing_but_version": {"version": 2},
        "older": {key: PROFILE[key] for key in PROFILE if key not in ("version", "device_memory_bytes")},
        "later": {**PROFILE, "version": 3, "colour": 1},
        "memory": {**PROFILE, "device_memory_bytes": "24GiB"},
        "gpu": {**PROFILE, "device_memory_bytes": 4 << 30},
    }.items():
        write(f"{name}.json", json.dumps(value))
    write("garbage.json", "{link: fast")
    write("nothing.json", b"")
    write("nan.json", json.dumps({**PROFILE, "fp32_flops_per_us": float("nan")}))
    write("overflow.json", json.dumps(PROFILE).replace("1000.0", "1e999", 1))
    write("deep.json", "[" * 100000)
    write("bytes.json", b'{"name": "\xff\xfe"}')
    os.symlink(os.path.join(os.path.dirname(torch.__file__), "lib", "libc10.so"), "known.so")
    write("file", "a file, not a folder\n")


def make_files(make_model):
    """All that the cases name, in the current folder."""
    make_models(make_model)
    make_archives()
    make_inputs()
    make_other_files()
