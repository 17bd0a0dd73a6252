"""What tests of the package share: models that are made here, and how outputs are compared."""

import os
import pathlib

import pytest
import torch

import torch_offload

# With the profiling executor, plain forward splits and fuses operators from its first calls on, and rounds otherwise.
torch._C._jit_set_profiling_executor(False)
torch._C._get_graph_executor_optimize(False)
torch.set_num_threads(1)


class Layers(torch.nn.Module):
    """Eight layers of 256 KiB, and methods and attributes of all kinds."""

    width: int

    def __init__(self):
        super().__init__()
        self.width = 256
        self.layers = torch.nn.ModuleList(torch.nn.Linear(256, 256) for _ in range(8))

    def forward(self, x: torch.Tensor, scale: float = 1.0, times: int = 1) -> torch.Tensor:
        for _ in range(times):
            for layer in self.layers:
                x = torch.tanh(layer(x))
        return x * scale

    @torch.jit.export
    def describe(self, parts: list[torch.Tensor], names: dict[str, int], mask: torch.Tensor | None = None) -> tuple[torch.Tensor, list[str], dict[str, float]]:
        y = self.layers[0](torch.cat(parts))
        if mask is not None:
            y = y * mask
        return y, list(names.keys()), {"sum": float(y.sum())}

    @torch.jit.export
    def refuse(self, x: torch.Tensor) -> torch.Tensor:
        if x.size(0) > 0:
            raise ValueError("this model refuses")
        return self.layers[0](x)


BUDGET = 1024 * 1024  # half of its weights
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="session")
def scripted_path(tmp_path_factory):
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("models") / "layers.pt"
    torch.jit.script(Layers().eval()).save(str(path))
    return path


@pytest.fixture
def plain(scripted_path):
    return torch.jit.load(scripted_path, map_location=DEVICE)


@pytest.fixture
def model(scripted_path):
    return torch_offload.load(scripted_path, vram_budget=BUDGET)


@pytest.fixture
def x():
    torch.manual_seed(2)
    return torch.randn(4, 256, device=DEVICE)


@pytest.fixture(scope="session")
def exported():
    folder = os.environ.get("OFFLOAD_EXPORTED")
    if not folder:
        pytest.skip("OFFLOAD_EXPORTED names no folder of models, as models/export.py writes them")
    return pathlib.Path(folder)


def make_layers():
    torch.manual_seed(1)
    return Layers().eval()


def tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [t for key in value for t in tensors(value[key])]
    if isinstance(value, (list, tuple)):
        return [t for item in value for t in tensors(item)]
    return []


def bits(tensor):
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8)


def same_bits(a, b):
    a, b = tensors(a), tensors(b)
    return len(a) == len(b) and all(
        p.dtype == q.dtype and p.shape == q.shape and torch.equal(bits(p), bits(q)) for p, q in zip(a, b)
    )


def call_plain(function, *args, **kwargs):
    with torch.no_grad(), torch.jit.optimized_execution(False):
        return function(*args, **kwargs)
