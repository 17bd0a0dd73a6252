"""Runs TorchScript modules whose weights do not fit on the GPU: under a budget of device memory, bit for bit.

    model = torch_offload.load("model.pt", vram_budget="8GiB")
    output = model(x)

docs/python.md describes all of it.
"""

from torch_offload import _torch  # isort: skip  (it says so when torch is another one than this was built with)
from torch_offload._C import Placement, Pool, PoolEntry, Priority as priority, Report, Stats, format_bytes, version as __version__
from torch_offload._errors import ArchiveError, BudgetError, Error, InputError
from torch_offload._module import ExampleCall, Module, Options, load, offload, wrap

del _torch

__all__ = [
    "ArchiveError",
    "BudgetError",
    "Error",
    "ExampleCall",
    "InputError",
    "Module",
    "Options",
    "Placement",
    "Pool",
    "PoolEntry",
    "Report",
    "Stats",
    "__version__",
    "format_bytes",
    "load",
    "offload",
    "priority",
    "wrap",
]
