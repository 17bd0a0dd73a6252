"""Random TorchScript modules: operators, branches, loops, views, ties, containers and state drawn at random. The same seed
gives the same modules.

usage: random_models.py OUT_DIR --seed S [--count N] [--width W]
Writes OUT_DIR/r<seed>.pt and .inputs.pt, as models/export.py does. --width, a multiple of 96, makes square weights of W x W.
"""
import argparse
import importlib.util
import os
import random
import sys
import tempfile
import warnings

import torch

W = 96  # unless --width says otherwise: a square weight takes 36 KiB

HEAD = """
from typing import Dict, List, Optional, Tuple
import torch
from torch import nn
from torch.nn import functional as F
W = 96

@torch.jit.interface
class Part(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pass

class PartA(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(W, W)
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)

class PartB(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(W, W) / 10)
        self.v = nn.Parameter(torch.randn(W, W) / 10)
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool(x.sum() > 0):
            return x @ self.w
        return x + x @ self.v.t()

class Model(nn.Module):
"""


class Writer:
    """Draws the source of one module. Every variable is a float tensor [rows, W]."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.annotations, self.init, self.methods = [], [], []
        self.names = 0
        self.weights = []  # expressions of [W, W] weights
        self.writes = self.random.random() < 0.15
        self.depth = 0

    def name(self, stem):
        self.names += 1
        return f"{stem}{self.names}"

    def pick(self, *choices):
        return self.random.choice(choices)

    # Weights

    def new_weight(self):
        kind = self.random.randrange(9)
        name = self.name("w")
        if kind == 0:
            self.init.append(f"self.register_buffer('{name}', torch.randn(W, W) / 10)")
        elif kind == 1:  # three views of one storage
            self.init.append(f"self.{name}, self.{name}b, self.{name}c = "
                             "(nn.Parameter(p) for p in (torch.randn(3 * W, W) / 10).split(W))")
            self.weights += [f"self.{name}b", f"self.{name}c"]
        elif kind == 2:
            self.init.append(f"self.{name} = nn.Parameter((torch.randn(W, W) / 10).t())")
        elif kind == 3 and self.weights:  # tied
            other = self.random.choice(self.weights)
            if other.count(".") == 1 and "[" not in other:
                self.init.append(f"self.{name} = {other}")
                return f"self.{name}"
            return other
        elif kind == 4:
            self.annotations.append(f"{name}: List[torch.Tensor]")
            self.init.append(f"self.{name} = [torch.randn(W, W) / 10 for _ in range(3)]")
            self.weights += [f"self.{name}[{i}]" for i in range(3)]
            return f"self.{name}[{self.random.randrange(3)}]"
        elif kind == 5:
            self.annotations.append(f"{name}: Dict[str, torch.Tensor]")
            self.init.append(f"self.{name} = {{'a': torch.randn(W, W) / 10, 'b': torch.randn(W, W) / 10}}")
            return f"self.{name}['{self.pick('a', 'b')}']"
        elif kind == 6:
            self.annotations.append(f"{name}: Tuple[torch.Tensor, torch.Tensor]")
            self.init.append(f"self.{name} = (torch.randn(W, W) / 10, torch.randn(W, W) / 10)")
            return f"self.{name}[{self.random.randrange(2)}]"
        elif kind == 7:
            self.init.append(f"self.{name} = nn.Parameter((torch.randn(W, 2 * W) / 10)[:, ::2])")
        else:
            self.init.append(f"self.{name} = nn.Parameter(torch.randn(W, W) / 10)")
        return f"self.{name}"

    def weight(self):
        if not self.weights or self.random.random() < 0.6:
            self.weights.append(self.new_weight())
        return self.random.choice(self.weights)

    def layer(self, make):
        name = self.name("layer")
        self.init.append(f"self.{name} = {make}")
        return f"self.{name}"

    def vector(self):
        name = self.name("v")
        self.init.append(f"self.{name} = nn.Parameter(torch.randn(W) / 10)")
        return f"self.{name}"

    # Expressions of a new variable from `x`

    def product(self, x):
        w = self.weight()
        return self.pick(
            f"F.linear({x}, {w})", f"F.linear({x}, {w}, {self.vector()})", f"{x} @ {w}", f"torch.matmul({x}, {w}.t())",
            f"torch.mm({x}, {w}) + {self.vector()}", f"torch.addmm({self.vector()}, {x}, {w}, beta=0.5, alpha=1.5)",
            f"torch.einsum('ri,oi->ro', {x}, {w})", f"torch.bmm({x}.unsqueeze(0), {w}.unsqueeze(0))[0]",
            f"torch.matmul({w}, {x}.t()).t()", f"F.linear({x}.unsqueeze(0), {w})[0]")

    def view(self, x):
        w = self.weight()
        return self.pick(
            f"F.linear({x}, {w}.reshape(2, {W // 2}, {W}).flatten(0, 1))", f"{x} @ torch.cat({w}.chunk(3, 1), 1)",
            f"{x} + {w}[3] + {w}.select(1, 5)", f"{x} * {w}.narrow(0, 2, 1)", f"{x} + {w}.sum(0)",
            f"{x} @ {w}.clone().add_(0.1)", f"{x} @ F.dropout({w}, 0.5, False).type_as({x})",
            f"{x} @ torch.where({w} > 0, {w}, {w} * 0.1)", f"{x} @ {w}.permute(1, 0).contiguous()",
            f"{x} + {w}.reshape(-1)[: {W}] * {w}.mean()", f"{x} @ {w}.to(torch.float64).float()",
            f"{x} @ {w}.expand(2, {W}, {W}).sum(0)", f"F.linear({x}, torch.stack([{w}, {self.weight()}]).mean(0))")

    def lookup(self, x):
        name = self.name("table")
        self.init.append(f"self.{name} = nn.Embedding(500, W)")
        rows = f"(({x}.abs().sum(1) * 37).long() % 500)"
        return self.pick(f"{x} + self.{name}({rows})", f"{x} + torch.index_select(self.{name}.weight, 0, {rows})",
                         f"{x} + self.{name}.weight[{rows}]",
                         f"F.linear({x}, self.{name}.weight)[:, : {W}] + self.{name}({rows})")

    def module(self, x):
        kind = self.random.randrange(8)
        if kind == 0:
            return f"{self.layer('nn.Linear(W, W)')}({x})"
        if kind == 1:
            return f"{self.layer('nn.Sequential(nn.Linear(W, 2 * W), nn.GELU(), nn.Linear(2 * W, W))')}({x})"
        if kind == 2:
            return f"{self.layer('nn.LSTM(W, W, batch_first=True)')}({x}.unsqueeze(0))[0][0]"
        if kind == 3:
            return f"{self.layer('nn.GRU(W, W // 2, 2, bidirectional=True)')}({x}.unsqueeze(1))[0][:, 0]"
        if kind == 4:
            attention = self.layer("nn.MultiheadAttention(W, 4, batch_first=True)")
            return f"{attention}({x}.unsqueeze(0), {x}.unsqueeze(0), {x}.unsqueeze(0), need_weights=False)[0][0]"
        if kind == 5:
            encoder = self.layer("nn.TransformerEncoderLayer(W, 4, 192, batch_first=True)")
            return f"{encoder}({x}.unsqueeze(0))[0]"
        if kind == 6:
            return f"{self.layer('nn.Conv1d(W, W, 3, padding=1)')}({x}.t().unsqueeze(0))[0].t()"
        return f"{self.layer('nn.LayerNorm(W)')}({self.layer('nn.Linear(W, W, bias=False)')}({x}))"

    def low(self, x):
        name = self.name("low")
        kind = self.pick("half", "packed", "double")
        if kind == "packed":
            self.init.append(f"self.register_buffer('{name}', torch.randint(-127, 128, (W, W), dtype=torch.int8))")
            return f"F.linear({x}, self.{name}.to({x}.dtype) * 0.001)"
        dtype = "torch.bfloat16" if kind == "half" else "torch.float64"
        self.init.append(f"self.{name} = nn.Linear(W, W).to({dtype})")
        return f"self.{name}({x}.to({dtype})).float()"

    def choice(self, x):
        condition = f"bool({x}.sum() > {self.pick('0', '1', '-3')})"
        return f"F.linear({x}, {self.weight()} if {condition} else {self.weight()})"

    def call(self, x):
        if self.depth > 1:
            return self.product(x)
        name = self.name("method")
        body = self.body(["x"], self.random.randint(1, 3), "        ")
        self.methods.append(f"    def {name}(self, x: torch.Tensor) -> torch.Tensor:\n{body}")
        if self.random.random() < 0.4:
            return f"torch.jit.wait(torch.jit.fork(self.{name}, {x}))"
        return f"self.{name}({x})"

    def expression(self, x):
        draw = self.random.choices(
            [self.product, self.view, self.lookup, self.module, self.low, self.choice, self.call], [30, 20, 8, 18, 6, 6, 8])[0]
        return draw(x)

    # Statements

    def statements(self, variables, pad):
        x = self.random.choice(variables)
        kind = self.random.random()
        if self.depth < 3 and kind < 0.10:
            inner = self.block([*variables], pad)
            other = self.block([*variables], pad)
            return [f"{pad}if bool({x}.mean() > {self.pick('0', '0.05', '-0.05')}):", *inner, f"{pad}else:", *other], x
        if self.depth < 3 and kind < 0.18:
            trips = self.pick("2", f"int({x}.abs().sum().item() * 7) % 3")
            return [f"{pad}for _ in range({trips}):", *self.block([x], pad)], x
        if kind < 0.22:
            name = self.name("parts")
            self.init.append(f"self.{name} = nn.ModuleList([PartA(), PartB(), PartA()])")
            part = self.name("part")
            return [f"{pad}{part}: Part = self.{name}[int({x}.abs().sum().item() * 3) % 3]",
                    f"{pad}{x} = torch.tanh({part}.forward({x}))"], x
        if kind < 0.26:
            items = self.name("items")
            return [f"{pad}{items} = [{self.weight()}]", f"{pad}{items}.append({self.weight()})",
                    f"{pad}for item in {items}:", f"{pad}    {x} = torch.tanh({x} @ item)"], x
        if kind < 0.29 and self.depth > 0 and self.depth < 3:
            return [f"{pad}if float({x}.max()) > 0.99:", f"{pad}    return {x} @ {self.weight()}"], x
        if kind < 0.33 and self.writes:
            return self.write(x, pad), x
        y = self.pick(x, self.name("y"))
        return [f"{pad}{y} = torch.tanh({self.expression(x)})"], y

    def write(self, x, pad):
        name = self.name("state")
        kind = self.random.randrange(5)
        if kind == 0:
            self.init.append(f"self.{name} = 0")
            return [f"{pad}self.{name} += 1", f"{pad}{x} = {x} * (1 + 0.01 * self.{name})"]
        if kind == 1:
            self.init.append(f"self.register_buffer('{name}', torch.zeros(W, W))")
            return [f"{pad}self.{name}.mul_(0.5).add_({x}.mean())", f"{pad}{x} = torch.tanh({x} @ self.{name})"]
        if kind == 2:
            self.init.append(f"self.register_buffer('{name}', torch.zeros(W, W))")
            return [f"{pad}{x} = torch.tanh({x} + self.{name}[0])", f"{pad}self.{name} = torch.outer({x}[0], {x}[-1])"]
        if kind == 3:
            self.annotations.append(f"{name}: List[torch.Tensor]")
            self.init.append(f"self.{name} = [torch.zeros(W)]")
            return [f"{pad}self.{name}.append({x}.mean(0))", f"{pad}{x} = torch.tanh({x} + torch.stack(self.{name}).sum(0))"]
        self.init.append(f"self.{name} = nn.Parameter(torch.randn(W, W) / 10)")
        return [f"{pad}self.{name}.data[: 2].mul_(0.9)", f"{pad}{x} = torch.tanh({x} @ self.{name})"]

    def block(self, variables, pad):
        self.depth += 1
        lines = []
        assigned = list(variables)
        for _ in range(self.random.randint(1, 3)):
            # What a block defines ends with it: it may change only what was there before.
            x = self.random.choice(assigned)
            lines.append(f"{pad}    {x} = torch.tanh({self.expression(x)})")
        self.depth -= 1
        return lines

    def body(self, variables, count, pad):
        self.depth += 1
        lines = []
        for _ in range(count):
            more, name = self.statements(variables, pad)
            lines += more
            if name not in variables:
                variables.append(name)
        self.depth -= 1
        return "\n".join([*lines, f"{pad}return {' + '.join(variables)}"]) + "\n"

    def source(self):
        variables = ["x"]
        self.depth = 0
        lines = []
        for _ in range(self.random.randint(4, 14)):
            more, name = self.statements(variables, "        ")
            lines += more
            if name not in variables:
                variables.append(name)
        total = " + ".join(variables)
        outputs = [total, f"({total}, {{'last': {variables[-1]}}})", f"[{', '.join(variables)}]"]
        if self.weights:
            plain = [w for w in self.weights if "[" not in w]
            outputs += [f"({total}, {w}, {w}.t()[2:5])" for w in plain[:1]]
        lines.append(f"        return {self.random.choice(outputs)}")
        head = "".join(f"    {a}\n" for a in self.annotations)
        init = "    def __init__(self):\n        super().__init__()\n" + "".join(f"        {line}\n" for line in self.init)
        forward = "    def forward(self, x: torch.Tensor):\n" + "\n".join(lines) + "\n"
        return HEAD.replace("W = 96", f"W = {W}") + head + init + "".join(self.methods) + forward


def make(seed, scratch):
    source = Writer(seed).source()
    path = os.path.join(scratch, f"random_{seed}.py")  # torch.jit.script reads the source from a file
    with open(path, "w") as file:
        file.write(source)
    spec = importlib.util.spec_from_file_location(f"random_{seed}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    torch.manual_seed(seed)
    model = module.Model().eval()
    script = torch.jit.script(model)
    draw = random.Random(seed)
    calls = [[torch.randn(draw.randint(1, 6), W)] for _ in range(3)]
    writes = "self.state" in source
    picks = "Part = self." in source  # freezing refuses modules that are picked at run time
    if not writes and not picks and draw.random() < 0.3:
        script = torch.jit.freeze(script)
    return script, calls


def main():
    global W
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--width", type=int, default=W)
    arguments = parser.parse_args()
    W = arguments.width
    os.makedirs(arguments.folder, exist_ok=True)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        for seed in range(arguments.seed, arguments.seed + arguments.count):
            script, calls = make(seed, scratch)
            script.save(os.path.join(arguments.folder, f"r{seed}.pt"))
            torch.save(calls, os.path.join(arguments.folder, f"r{seed}.inputs.pt"))
    print(f"{arguments.count} modules from seed {arguments.seed}")


if __name__ == "__main__":
    sys.exit(main())
