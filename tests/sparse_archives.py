"""Archives of tensors that are holes in a file: as large as wanted, and hardly there.

usage: sparse_archives.py LAYERS.pt DECODER.pt    three linear layers, 307 GB; a decoder of 64 blocks, 103 GB in float16
"""
import os
import struct
import sys
import zipfile
import zlib

import torch
import torch.nn.functional as F
from torch import nn

SMALL = 251  # a width that stands nowhere else in a pickle of such a model, and a prime


def number(value):
    """As PyTorch's pickler writes integers."""
    if value < 1 << 8:
        return b"K" + struct.pack("<B", value)
    if value < 1 << 16:
        return b"M" + struct.pack("<H", value)
    if value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x08" + struct.pack("<q", value)


def widened(pickle, width):
    """The same tensors, `width` wide."""
    wide = pickle.replace(number(SMALL), number(width)).replace(number(SMALL * SMALL), number(width * width))
    assert wide != pickle, "the pickle is laid out otherwise"
    return wide


def widened_size(size, width):
    """Bytes of a tensor that has the width once, or twice."""
    power = 2 if size % SMALL**2 == 0 else 1
    return size // SMALL**power * width**power


def write_sparse(source, target, width):
    """The records of `source` with tensors as holes of their new size; zip64, as APPNOTE 6.3 has it."""
    directory = b""
    with zipfile.ZipFile(source) as old, open(target, "wb") as new:
        for name in old.namelist():
            is_tensor = "/data/" in name
            content = b"" if is_tensor else old.read(name)
            if name.endswith("/data.pkl"):
                content = widened(content, width)
            size = widened_size(old.getinfo(name).file_size, width) if is_tensor else len(content)
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


class Block(nn.Module):
    """As of a decoder, with four of each matrix of its multilayer perceptron, so that all are square."""

    def __init__(self):
        super().__init__()
        matrix = lambda: nn.Linear(SMALL, SMALL, bias=False)
        self.query, self.key, self.value, self.output = (matrix() for _ in range(4))
        self.up, self.down = (nn.ModuleList(matrix() for _ in range(4)) for _ in range(2))
        self.gain = nn.Parameter(torch.ones(SMALL))

    def heads(self, x):
        return x.view(x.size(0), x.size(1), 64, -1).transpose(1, 2)

    def forward(self, x):
        y = x * torch.rsqrt((x * x).mean(-1, keepdim=True)) * self.gain
        mixed = F.scaled_dot_product_attention(
            self.heads(self.query(y)), self.heads(self.key(y)), self.heads(self.value(y)), is_causal=True)
        x = x + self.output(mixed.transpose(1, 2).flatten(2))
        for up, down in zip(self.up, self.down):
            x = x + down(F.gelu(up(x)))
        return x


def write(module, path, width):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    module.save(path + ".small")
    write_sparse(path + ".small", path, width)
    os.remove(path + ".small")


def main():
    layers, decoder = sys.argv[1:]
    stack = nn.Sequential(*(nn.Linear(SMALL, SMALL, bias=False) for _ in range(3))).eval()
    write(torch.jit.trace(stack, torch.ones(1, SMALL)), layers, 160_000)
    write(torch.jit.script(nn.Sequential(*(Block() for _ in range(64))).half().eval()), decoder, 8192)


main()
