"""Small models whose answers are known, for tests of serve: makes NAME.pt of each in a folder."""
import os
from typing import Dict, List, NamedTuple, Optional, Tuple

import torch


class Layers(torch.nn.Module):
    """Weights that a small budget streams."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(*(torch.nn.Linear(256, 256) for _ in range(8)))

    def forward(self, x):
        return self.layers(x)


class Echo(torch.nn.Module):
    """Gives back what comes, of any dtype."""

    def forward(self, x):
        return x.clone()


class Pair(NamedTuple):
    total: torch.Tensor
    parts: Tuple[torch.Tensor, torch.Tensor]


class Mixed(torch.nn.Module):
    """Every kind of argument that the protocol has a form for."""

    def forward(self, x: torch.Tensor, many: List[torch.Tensor], named: Dict[str, torch.Tensor],
                pair: Tuple[torch.Tensor, torch.Tensor], times: int, scale: float, negate: bool, text: str,
                sizes: List[int], words: List[str], more: Optional[torch.Tensor] = None, rounds: int = 1):
        total = x.clone()
        for one in many:
            total = total + one
        for key, one in named.items():
            total = total + one * len(key)
        total = (total + pair[0] - pair[1]) * times * scale
        if negate:
            total = -total
        if more is not None:
            total = total + more
        lengths = [len(word) for word in words]
        return Pair(total * rounds, (torch.tensor(sizes), torch.tensor(lengths))), {"count": times}, text


class Raises(torch.nn.Module):
    def forward(self, x):
        if x.numel() > 3:
            raise ValueError("x has more than three elements")
        return x / torch.zeros_like(x)


class Large(torch.nn.Module):
    """An answer of as many MiB as the input says."""

    def forward(self, mib):
        return torch.ones(int(mib.item()), 1 << 18)


class Refused(torch.nn.Module):
    def forward(self, x: torch.Tensor, device: torch.device):
        return x.to(device)


def make_models(folder):
    torch.manual_seed(1)
    for model in (Layers(), Echo(), Mixed(), Raises(), Large(), Refused()):
        torch.jit.script(model.eval()).save(os.path.join(folder, type(model).__name__.lower() + ".pt"))
