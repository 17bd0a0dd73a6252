"""One small model for each thing that a TorchScript module may do with its weights, and those of field_models.py, as
models/export.py writes models.

usage: small_models.py OUT_DIR [NAME ...] [--library CUSTOM_OPS.so] [--make-model MAKE_MODEL] [--width W]
--width, a multiple of 160, makes square weights of W x W: on a GPU, memory comes in pieces of 2 MiB.
"""
import argparse
import os
import re
import subprocess
import sys
import tempfile
import warnings
import zipfile
from typing import Dict, List, NamedTuple, Optional, Tuple

import torch
from torch import nn
from torch.nn import functional as F

import field_models

W = 160  # a square weight takes 100 KiB


def weight(*sizes):
    return nn.Parameter(torch.randn(*(sizes or (W, W))) / W**0.5)


def inputs(calls=3, rows=4):
    return [[torch.randn(rows + i, W)] for i in range(calls)]


class Products(nn.Module):
    """Weights in either orientation under every operator that multiplies matrices."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d, self.e, self.f = (weight() for _ in range(6))
        self.down, self.up = weight(W, 128), weight(128, W)
        self.bias = nn.Parameter(torch.randn(W))
        self.batch = weight(3, W, W)

    def forward(self, x):
        x = torch.addmm(self.bias, x, self.a, beta=0.5, alpha=2.0)
        x = x + torch.mm(x, self.b.t()) + torch.matmul(x, self.c) + x @ self.c.transpose(0, 1)
        x = x + torch.einsum("ri,oi->ro", x, self.d) + torch.einsum("ri,io->ro", x, self.e)
        x = x + F.linear(x, self.f) + self.bias + F.linear(F.linear(x, self.down.t()), self.up.t(), self.bias)
        return torch.bmm(x.expand(3, -1, -1), self.batch).sum(0) / 8 + torch.addmv(self.bias, self.a, x[0])


class Lookups(nn.Module):
    """Tables whose rows are looked up, one of them tied to a linear."""

    def __init__(self):
        super().__init__()
        self.tied, self.other = nn.Embedding(1000, W), weight(800, W)
        self.bag = nn.EmbeddingBag(600, W, mode="sum")
        self.head = nn.Linear(W, 1000, bias=False)
        self.register_buffer("places", torch.randn(900, W))
        self.register_buffer("table", torch.randint(0, 900, (200, W)))
        self.head.weight = self.tied.weight

    def forward(self, tokens):
        x = self.tied(tokens) + torch.index_select(self.other, 0, tokens.flatten() % 800).view(tokens.size(0), -1, 160)
        x = x + self.other[tokens % 800] + self.bag(tokens % 600).unsqueeze(1)
        return self.head(x), self.places[self.table[tokens % 200, :9].flatten(), None].sum()


class Containers(nn.Module):
    """Tensors in lists, tuples, dicts and optionals, buffers of other types, one storage cut into pieces, transposed views."""

    maybe: Optional[torch.Tensor]

    def __init__(self):
        super().__init__()
        self.items: List[torch.Tensor] = [torch.randn(W, W) / 13 for _ in range(3)]
        self.pair: Tuple[torch.Tensor, torch.Tensor] = (torch.randn(W, W) / 13, torch.randn(W, W) / 13)
        self.named: Dict[str, torch.Tensor] = {"x": torch.randn(W, W) / 13, "y": torch.randn(W, W) / 13}
        self.maybe = torch.randn(W, W) / 13
        self.register_buffer("packed", torch.randint(-127, 128, (W, W), dtype=torch.int8))
        self.register_buffer("scales", torch.rand(W) / 999)
        whole = torch.randn(3 * W, W) / 13
        self.q, self.k, self.v = (nn.Parameter(part) for part in whole.split(W))
        self.flipped = nn.Parameter((torch.randn(W, W) / 13).t())
        self.halves = nn.Parameter(torch.randn(W, 2 * W)[:, ::2] / 13)

    def forward(self, x):
        for item in self.items:
            x = x + F.linear(x, item)
        x = x + x @ self.pair[0] - x @ self.pair[1] + x @ self.named["x"]
        for name, tensor in self.named.items():
            x = x + len(name) * (x @ tensor)
        maybe = self.maybe
        if maybe is not None:
            x = x / 9 + x @ maybe
        x = x + F.linear(x, self.packed.to(x.dtype) * self.scales.unsqueeze(1))
        return F.linear(x, self.q) + F.linear(x, self.k) * F.linear(x, self.v) / 99 + x @ self.flipped + x @ self.halves


class Lists(nn.Module):
    """Local lists and dicts of weights that are filled, emptied, joined and cut."""

    names: Dict[str, torch.Tensor]

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = weight(), weight(), weight()
        self.names = {"u": torch.randn(W, W) / 13, "v": torch.randn(W, W) / 13}

    def forward(self, x):
        mine = [self.a]
        mine.append(x)
        mine.insert(0, self.b)
        mine.extend([self.c, x])
        last = mine.pop()
        both = mine + [self.a]
        both[0] = self.c
        found = {"a": self.a}
        found["c"] = self.c
        for key, value in found.items():
            x = x @ value / (len(key) + 12)
        for value in self.names.values():
            x = x @ value
        if "w" in self.names:
            x = x * 2
        named = self.names.get("v")
        if named is not None:
            x = x + x @ named
        return torch.cat(both[1:]).sum(0) + x @ mine[0] + last, len(mine), x @ found.pop("c")


class Control(nn.Module):
    """Branches, loops whose trips are data, early returns, one layer called many times."""

    def __init__(self):
        super().__init__()
        self.often, self.once, self.never, self.last = (nn.Linear(W, W) for _ in range(4))

    def once_or(self, x, positive: bool):
        if positive:
            return self.once(x)
        y = self.never(x)
        return y * 2

    def forward(self, x):
        trips = int(x.abs().sum().item()) % 4
        for i in range(trips):
            x = torch.tanh(self.often(x))
            if i == 2:
                return x
        while float(x.abs().max()) > 0.9:
            x = self.often(x) * 0.3
        x = self.once_or(x, bool((x.mean() > 0).item()))
        weights = self.last.weight if trips > 1 else self.often.weight
        return F.linear(x, weights, self.last.bias)


@torch.jit.interface
class Step(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pass


class Straight(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(W, W)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


class Twice(nn.Module):
    inner: Step

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.w = weight()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner.forward(self.inner.forward(x) @ self.w)


class Interfaces(nn.Module):
    """Modules that are picked at run time through an interface, which call others through it."""

    def __init__(self):
        super().__init__()
        self.steps = nn.ModuleList([Straight(), Twice(Straight()), Straight()])

    def forward(self, x):
        for i in range(3):
            step: Step = self.steps[(i + x.size(0)) % 3]
            x = torch.tanh(step.forward(x))
        return x


class Forks(nn.Module):
    """Forks that are kept in a list, forks within forks, methods that share weights."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(W, W), nn.Linear(W, W)

    def inner(self, x):
        return torch.relu(self.b(x))

    def outer(self, x):
        future = torch.jit.fork(self.inner, x)
        return self.a(x) + torch.jit.wait(future)

    def forward(self, x):
        futures: List[torch.jit.Future[torch.Tensor]] = []
        for i in range(3):
            futures.append(torch.jit.fork(self.outer, x + i))
        for future in futures:
            x = x + torch.jit.wait(future)
        return x


class Autocast(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(W, W), nn.Linear(W, W)

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = self.a(x)
        return self.b(y.float())


class State(nn.Module):
    """What it writes: a counter, a buffer in place and anew, a list that grows, a weight of its own."""

    def __init__(self):
        super().__init__()
        self.layer, self.adapted = nn.Linear(W, W), nn.Linear(W, W)
        self.count = 0
        self.register_buffer("mean", torch.zeros(W))
        self.register_buffer("last", torch.zeros(W, W))
        self.seen: List[torch.Tensor] = [torch.zeros(1)]

    def forward(self, x):
        self.count += 1
        self.mean.mul_(0.9).add_(x.mean(0) * 0.1)
        self.adapted.weight.data.mul_(0.99)
        x = self.layer(x) + self.adapted(x) + self.mean + self.last[0] * self.count
        self.last = torch.outer(x[0], x[-1]) / 9
        self.seen.append(x.mean().unsqueeze(0))
        return x, torch.cat(self.seen), self.count


class Returned(nn.Module):
    """Weights, views of them and tensors that may be them, as outputs."""

    def __init__(self):
        super().__init__()
        self.a, self.b = weight(), weight()

    def forward(self, x):
        return x @ self.a, self.a, {"view": self.b[:3], "same": self.b.to(x.dtype).contiguous()}, [self.a.t(), x], (self.b + 1)


class Result(NamedTuple):
    value: torch.Tensor
    used: Optional[int]


class Outputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = weight()

    def forward(self, x, scale: float = 2.0, other: Optional[torch.Tensor] = None):
        y = F.linear(x, self.a) * scale
        if other is not None:
            y = y + other
        return Result(y, None if scale > 2 else 3)


class Views(nn.Module):
    """Operators that return their input or a view of it, and writes to what came from them."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = weight(), weight(), weight()

    def forward(self, x):
        copy = self.a.clone()
        copy.add_(1)
        x = x @ copy + x @ F.dropout(self.b, 0.5, False) + x @ self.b.type_as(x).reshape(160, 160)
        parts = self.c.chunk(4, dim=1)
        joined = torch.cat([parts[2], parts[0], parts[3], parts[1]], dim=1)
        return torch.tanh(x) @ joined + F.linear(x, self.c.view(-1).narrow(0, 160, 1280).view(8, 160)).sum() + self.a.sum() + self.b[2:5].mean()


class Layers(nn.Module):
    """Convolutions, recurrences, normalisation, attention."""

    def __init__(self):
        super().__init__()
        self.conv, self.back = nn.Conv1d(32, 64, 9), nn.ConvTranspose1d(64, 32, 9)
        self.norm = nn.BatchNorm1d(32)
        self.gru = nn.GRU(W, 96, 2, batch_first=True, bidirectional=True)
        self.attention = nn.MultiheadAttention(192, 4, batch_first=True)

    def forward(self, x):
        y = x[:, : 160].reshape(x.size(0), 32, -1).repeat(1, 1, 4)
        y = self.norm(self.back(torch.relu(self.conv(y))))
        hidden = self.gru(x.unsqueeze(0) + y.mean())[0]
        return self.attention(hidden, hidden, hidden, need_weights=False)[0]


class Low(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(W, W), nn.GELU(), nn.Linear(W, W)).to(torch.bfloat16)
        self.exact = nn.Linear(W, W).double()

    def forward(self, x):
        return self.layers(x.to(torch.bfloat16)), self.exact(x.double())


class Custom(nn.Module):
    """Operators that are compiled elsewhere: tests/custom_ops.cpp."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = weight(), weight(), weight(), weight()
        self.register_buffer("decayed", torch.randn(W, W) / 13)

    def forward(self, x):
        x = torch.tanh(x @ torch.ops.custom.same(self.a) + torch.ops.custom.row_sums(self.b))
        halves = torch.ops.custom.halves([self.c, self.d])
        x = torch.tanh(x @ halves[0] + x @ halves[1] + torch.ops.custom.maybe_add(x, self.a[0]))
        torch.ops.custom.decay(self.decayed, 0.9)
        return torch.ops.custom.maybe_add(x @ self.decayed, None)


class Counter:
    """A class of the model's own, which is no module."""

    def __init__(self, start: int):
        self.count = start
        self.last: List[torch.Tensor] = []

    def add(self, x: torch.Tensor) -> int:
        self.count += 1
        self.last.append(x)
        return self.count


class Objects(nn.Module):
    """Objects that are no modules, which are written and returned; a list that two attributes share."""

    ones: List[torch.Tensor]
    twos: List[torch.Tensor]

    def __init__(self):
        super().__init__()
        self.w = weight()
        self.counter = torch.jit.script(Counter)(3)
        self.ones = torch.jit.script([torch.randn(W, W) / 13, torch.randn(W, W) / 13])
        self.twos = self.ones

    def forward(self, x):
        x = x @ self.w * self.counter.add(x.mean(0))
        mine = Counter(2)
        mine.add(self.w)
        return x @ self.ones[0] @ self.twos[1] + mine.last[0][0], mine.count, self.counter.last, [mine.last]


class Bits(nn.Module):
    """Conjugate and negative bits, storages read past their tensors, ranges that begin anywhere."""

    def __init__(self):
        super().__init__()
        self.register_buffer("conjugate", torch.randn(W, W, dtype=torch.complex64).conj())
        self.register_buffer("negative", torch.randn(W, W, dtype=torch.complex64).conj().imag)
        whole = torch.randn(3 * W * W) / 13
        self.register_buffer("middle", whole[W * W + 3 : 2 * W * W + 3].view(W, W))

    def forward(self, x):
        x = x @ self.negative / 13 + (x.to(torch.complex64) @ self.conjugate).real / 13
        past = self.middle.as_strided([160, 160], [160, 1], 0)
        return x @ self.middle + x @ past, self.middle.storage_offset(), self.conjugate


class Encoders(nn.Module):
    """Encoder layers that run as one operator: norms first and last, on dense and on nested tensors, with masks."""

    def __init__(self):
        super().__init__()
        self.first = nn.TransformerEncoderLayer(W, 4, 192, batch_first=True, norm_first=True, activation="gelu")
        last = nn.TransformerEncoderLayer(W, 5, 256, batch_first=True)
        self.last = nn.TransformerEncoder(last, 2, enable_nested_tensor=True)

    def forward(self, x, padding: Optional[torch.Tensor] = None):
        return self.last(self.first(x, src_key_padding_mask=padding), src_key_padding_mask=padding)


class Held(nn.Module):
    """Tables that every layer reads, through operators that return what they are given; writes through containers."""

    def __init__(self):
        super().__init__()
        self.register_buffer("cos", torch.randn(600, W))
        self.register_buffer("sin", torch.randn(600, W))
        self.register_buffer("written", torch.zeros(W, W))
        self.layers = nn.ModuleList([nn.Linear(W, W, bias=False) for _ in range(4)])

    def forward(self, x):
        n = x.size(0)
        cos, sin = self.cos[:n].to(x.dtype), self.sin[:n].contiguous()
        for layer in self.layers:
            x = layer(x)
            x = x * cos + x.roll(80, -1) * sin
        named: Dict[str, torch.Tensor] = {}
        named["w"] = self.written
        named["w"].add_(0.125)
        both = [x] + [self.written]
        both[1].mul_(1.5)
        torch.broadcast_tensors([self.written, self.written])[0].sub_(0.0625)
        return x + self.written[0]


def frozen(model):
    return torch.jit.freeze(model)


def optimised(model):
    return torch.jit.optimize_for_inference(model)


def tokens():
    return [[torch.randint(0, 1000, (2, 5 + i))] for i in range(3)]


class Restored(nn.Module):
    """State that the model's own code writes and reads."""

    def __init__(self):
        super().__init__()
        self.w, self.scale = weight(), 2.0

    @torch.jit.export
    def __getstate__(self):
        return self.w, self.scale, self.training

    @torch.jit.export
    def __setstate__(self, state: Tuple[torch.Tensor, float, bool]):
        self.w, self.scale, self.training = state[0] * 2, state[1] + 1, state[2]

    def forward(self, x):
        return x @ self.w * self.scale


class Sparse(nn.Module):
    """Sparse weights of two layouts."""

    def __init__(self):
        super().__init__()
        self.w = weight()
        dense = torch.randn(W, W)
        dense[dense.abs() < 1.5] = 0
        self.register_buffer("pairs", dense.to_sparse())
        self.register_buffer("rows", dense.to_sparse_csr())

    def forward(self, x):
        y = (x @ self.w).t()
        return torch.mm(self.pairs, y) + torch.mm(self.rows, y)


class Quantised(nn.Module):
    """Quantised weights: tensors of two schemes, and what linears pack."""

    def __init__(self):
        super().__init__()
        self.packed = nn.Sequential(nn.Linear(W, W), nn.Linear(W, W))
        self.w = weight()
        self.register_buffer("one", torch.quantize_per_tensor(torch.randn(W, W), 0.1, 3, torch.quint8))
        scales, zeros = torch.rand(W) + 0.1, torch.zeros(W)
        self.register_buffer("each", torch.quantize_per_channel(torch.randn(W, W), scales, zeros, 0, torch.qint8))

    def forward(self, x):
        return self.packed(x @ self.w) @ self.one.dequantize() + x @ self.each.dequantize()


def quantised():
    return torch.ao.quantization.quantize_dynamic(Quantised().eval(), {nn.Linear}, dtype=torch.qint8)


class Traced(nn.Module):
    """Traced on the CPU, it makes tensors there."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(W, W)

    def forward(self, x):
        return self.layer(x) + torch.arange(160, device=x.device, dtype=x.dtype) + torch.zeros(160)


MODELS = {
    "products": (Products, inputs(), [frozen, optimised]),
    "lookups": (Lookups, tokens(), [frozen]),
    "containers": (Containers, inputs(), [frozen]),
    "lists": (Lists, inputs(), [frozen]),
    "control": (Control, inputs(6), [frozen]),
    "interfaces": (Interfaces, inputs(), []),
    "forks": (Forks, inputs(), []),
    "autocast": (Autocast, inputs(), []),
    "state": (State, inputs(1, rows=4) * 3, []),
    "returned": (Returned, inputs(), [frozen]),
    "outputs": (Outputs, [[torch.randn(3, W)], [torch.randn(3, W), 3.0], [torch.randn(3, W), 1.0, torch.randn(W)]], []),
    "views": (Views, inputs(), [frozen]),
    "layers": (Layers, inputs(), [frozen]),
    "low": (Low, inputs(), [frozen]),
    "nothing": (Straight, [[torch.randn(rows, W)] for rows in (0, 1, 0)], []),
    "traced": (Traced, inputs(), []),
    "custom": (Custom, inputs(), []),
    "objects": (Objects, inputs(), []),
    "bits": (Bits, inputs(), []),
    "encoders": (Encoders, [[torch.randn(2, 6, W)], [torch.randn(3, 5, W), torch.arange(5) >= torch.tensor([[5], [2], [4]])],
                            [torch.randn(2, 6, W)]], [frozen]),
    "held": (Held, inputs(), []),
    "restored": (Restored, inputs(), []),
    "sparse": (Sparse, inputs(), []),
    "quantised": (quantised, inputs(), []),
}

# Made in C++: arguments of make_model, and calls.
MADE = {
    "stack": (["stack", "--layers", "12", "--features", "160", "--bias"], inputs()),
    "transformer": (["transformer", "--layers", "2", "--width", "128", "--heads", "4", "--vocab", "500"],
                    [[torch.randint(0, 500, (1 + i, 7))] for i in range(3)]),
}


def repack(archive, target):
    """The same records as another hand writes them: at any address, every second one packed."""
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(target, "w") as new:
        for number, name in enumerate(old.namelist()):
            new.writestr(name, old.read(name), zipfile.ZIP_DEFLATED if number % 2 else zipfile.ZIP_STORED)


def with_width(width):
    """TorchScript knows no globals, so the width stands in the source: the same, with another."""
    with tempfile.TemporaryDirectory() as folder:
        for path in (field_models.__file__, __file__):
            with open(path) as file:
                source = re.sub(r"\b160\b", str(width), re.sub(r"\b1280\b", str(8 * width), file.read()))
            copy = os.path.join(folder, os.path.basename(path))
            with open(copy, "w") as file:
                file.write(source)
        subprocess.run([sys.executable, copy, *sys.argv[1:]], check=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("names", nargs="*")
    parser.add_argument("--library")
    parser.add_argument("--make-model")
    parser.add_argument("--width", type=int, default=W)
    arguments = parser.parse_args()
    if arguments.width != W:
        with_width(arguments.width)
        return
    os.makedirs(arguments.folder, exist_ok=True)
    warnings.filterwarnings("ignore")
    if arguments.library:
        torch.ops.load_library(arguments.library)
    torch.manual_seed(1)
    of_the_field = {name: (make, calls, []) for name, (make, calls) in field_models.models().items()}
    for name, (make, calls, variants) in {**MODELS, **of_the_field}.items():
        wanted = name in arguments.names if arguments.names else arguments.library or name != "custom"
        if not wanted:
            continue
        torch.manual_seed(len(name))
        model = make().eval()
        script = torch.jit.trace(model, calls[0]) if name == "traced" else model
        script = script if isinstance(script, torch.jit.ScriptModule) else torch.jit.script(script)
        for suffix, change in [("", lambda m: m), *((f"_{v.__name__}", v) for v in variants)]:
            change(script).save(os.path.join(arguments.folder, f"{name}{suffix}.pt"))
            torch.save(calls, os.path.join(arguments.folder, f"{name}{suffix}.inputs.pt"))
    for name, (command, calls) in MADE.items() if arguments.make_model else ():
        subprocess.run([arguments.make_model, *command, os.path.join(arguments.folder, f"{name}.pt")], check=True,
                       stdout=subprocess.DEVNULL)
        torch.save(calls, os.path.join(arguments.folder, f"{name}.inputs.pt"))
        if name == "stack":
            repack(os.path.join(arguments.folder, "stack.pt"), os.path.join(arguments.folder, "stack_repacked.pt"))
            torch.save(calls, os.path.join(arguments.folder, "stack_repacked.inputs.pt"))


main()
