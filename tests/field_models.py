"""Kinds of models that are used in the field and are hard on a streamer: they differentiate, read lengths on the host, were traced
with tables that are no parameters, compute each weight from others, or convolve images and sounds of sizes that change. Small
ones; tests/small_models.py writes them.
"""
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

W = 160


def in_every_order(calls):
    """Three calls as a row in which each order of the three occurs."""
    return [calls[i] for i in (0, 1, 2, 0, 1, 0, 2, 1, 0)]


class Forces(nn.Module):
    """Energy of atoms and its gradient by their places, whatever the caller has set: backward reads the weights again, last first."""

    def __init__(self):
        super().__init__()
        self.kinds = nn.Embedding(100, W)
        self.radial = nn.Linear(16, W)
        self.mix, self.update = (nn.ModuleList([nn.Linear(W, W) for _ in range(3)]) for _ in range(2))
        self.energy = nn.Linear(W, 1)

    def forward(self, places, kinds, pairs):
        before = torch.is_grad_enabled()
        torch.set_grad_enabled(True)
        places = places.detach().clone().requires_grad_(True)
        apart = (places[pairs[0]] - places[pairs[1]]).square().sum(1, keepdim=True)
        edges = torch.sigmoid(self.radial(torch.exp(-apart * torch.arange(16, device=places.device))))
        x = self.kinds(kinds)
        for mix, update in zip(self.mix, self.update):
            messages = torch.zeros_like(x).index_add(0, pairs[0], mix(x)[pairs[1]] * edges)
            x = x + torch.tanh(update(messages))
        energy = self.energy(x).sum()
        slope = torch.autograd.grad([energy], [places])[0]
        assert slope is not None
        torch.set_grad_enabled(before)
        return energy, -slope


def atoms(count):
    one, other = torch.meshgrid(torch.arange(count), torch.arange(count), indexing="ij")
    pairs = torch.stack([one[one != other], other[one != other]])
    return [torch.randn(count, 3), torch.randint(0, 100, (count,)), pairs]


class Lengths(nn.Module):
    """Packed sequences: their lengths are on the host on purpose, other constants of the graph by accident."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(500, W)
        self.first = nn.LSTM(W, 96, batch_first=True, bidirectional=True, proj_size=48)
        self.second = nn.GRU(96, W, batch_first=True)
        self.start = nn.Parameter(torch.randn(1, 1, W))

    def forward(self, tokens, lengths):
        packed = pack_padded_sequence(self.table(tokens), lengths.to("cpu"), batch_first=True, enforce_sorted=False)
        x, again = pad_packed_sequence(self.first(packed)[0], batch_first=True)
        packed = pack_padded_sequence(x, again, batch_first=True, enforce_sorted=False)
        last = self.second(packed, self.start.expand(-1, tokens.size(0), -1).contiguous())[1]
        mask = torch.arange(tokens.size(1), device=tokens.device) < lengths.unsqueeze(1)
        return last[0] + torch.zeros(160), (x * mask.unsqueeze(-1)).sum(1), again


def words(*lengths):
    return [torch.randint(0, 500, (len(lengths), max(lengths))), torch.tensor(lengths)]


class Tables(nn.Module):
    """Plain tensors, which a trace has as constants: large and small ones, read, returned, and one that counts calls."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(W, W) for _ in range(2)])
        self.extra = [torch.randn(W, W) / 13 for _ in range(3)]
        self.positions, self.relative = torch.randn(300, W), torch.randint(0, 300, (40,))
        self.calls, self.seen = torch.zeros(1), torch.zeros(2, W)

    def forward(self, x):
        for layer, extra in zip(self.layers, self.extra):
            x = torch.tanh(layer(x) + x @ extra)
        x = F.linear(x, self.extra[2].t()) + self.positions[self.relative[: x.size(0)]] + torch.zeros(160)
        self.calls += 1
        last = self.seen[1].mul_(0.5).add_(x.mean(0))
        return x * self.calls + last, self.extra[0][:2], self.seen + 0


class Vocoder(nn.Module):
    """Convolutions whose weights each call computes from a norm and a direction, one with few rows and a long kernel."""

    def __init__(self, norm, spectral):
        super().__init__()
        self.enter = norm(nn.Conv1d(40, 64, 7, padding=3))
        self.up = norm(nn.ConvTranspose1d(64, 48, 16, stride=8, padding=4))
        self.dilated = nn.ModuleList([norm(nn.Conv1d(48, 48, 7, dilation=d, padding=3 * d)) for d in (1, 3)])
        self.mix = spectral(nn.Linear(48, W))
        self.leave = norm(nn.Conv1d(W, 1, 7, padding=3))

    def forward(self, x):
        x = self.up(F.leaky_relu(self.enter(x), 0.1))
        for layer in self.dilated:
            x = x + layer(F.leaky_relu(x, 0.1))
        return torch.tanh(self.leave(self.mix(x.transpose(1, 2)).transpose(1, 2)))


class UNet(nn.Module):
    """Down by strides, up by transposed convolutions, and what was seen on the way down joins in on the way up."""

    def __init__(self):
        super().__init__()
        self.enter = nn.Conv2d(3, 32, 3, padding=1)
        self.down = nn.ModuleList([nn.Conv2d(32 * n, 64 * n, 4, stride=2, padding=1) for n in (1, 2)])
        self.middle = nn.Conv2d(128, 128, 3, padding=2, dilation=2)
        self.up = nn.ModuleList([nn.ConvTranspose2d(64 * n, 32 * n, 4, stride=2, padding=1) for n in (2, 1)])
        self.join = nn.ModuleList([nn.Conv2d(64 * n, 32 * n, 3, padding=1) for n in (2, 1)])
        self.norms = nn.ModuleList([nn.GroupNorm(8, 32 * n) for n in (2, 1)])

    def forward(self, x):
        seen = [torch.relu(self.enter(x))]
        for down in self.down:
            seen.append(torch.relu(down(seen[-1])))
        x = torch.relu(self.middle(seen.pop()))
        for up, join, norm in zip(self.up, self.join, self.norms):
            x = norm(torch.relu(join(torch.cat([up(x), seen.pop()], 1))))
        return x


class Depthwise(nn.Module):
    """A long kernel for each channel by itself, then products across channels: as in mobile and in modern networks."""

    def __init__(self):
        super().__init__()
        self.enter = nn.Conv2d(3, 96, 4, stride=4)
        self.apart = nn.ModuleList([nn.Conv2d(96, 96, 7, padding=3 * d, dilation=d, groups=96) for d in (1, 2)])
        self.wide = nn.ModuleList([nn.Conv2d(96, 384, 1) for _ in range(2)])
        self.narrow = nn.ModuleList([nn.Conv2d(384, 96, 1) for _ in range(2)])
        self.grouped = nn.Conv2d(96, 192, 3, groups=4)
        self.leave = nn.Linear(192, 100)

    def forward(self, x):
        x = self.enter(x)
        for apart, wide, narrow in zip(self.apart, self.wide, self.narrow):
            x = x + narrow(F.gelu(wide(apart(x))))
        return self.leave(self.grouped(x).mean([2, 3]))


class Film(nn.Module):
    """Convolutions over time, height and width, down and up again."""

    def __init__(self):
        super().__init__()
        self.enter = nn.Conv3d(3, 24, 3, padding=1)
        self.apart = nn.Conv3d(24, 48, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1))
        self.time = nn.Conv3d(48, 48, (3, 1, 1), padding=(2, 0, 0), dilation=(2, 1, 1))
        self.up = nn.ConvTranspose3d(48, 24, (1, 2, 2), stride=(1, 2, 2))

    def forward(self, x):
        seen = torch.relu(self.enter(x))
        return seen + self.up(F.silu(self.time(F.silu(self.apart(seen)))))


class Stale(nn.Module):
    """A convolution reads what its hook computed last: scripting knows no hooks. Norm and direction lie beside it, unread."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.utils.weight_norm(nn.Conv1d(W, W, 1)) for _ in range(3)])
        for layer in self.layers:
            layer._forward_pre_hooks.clear()

    def forward(self, x):
        for layer in self.layers:
            x = x + torch.tanh(layer(x.unsqueeze(-1)).squeeze(-1))
        return x


def traced(model, call):
    with torch.no_grad():
        return torch.jit.trace(model.eval(), call, check_trace=False)


def models():
    """Name, what makes it, and calls."""
    rows = in_every_order([[torch.randn(count, W)] for count in (3, 1, 8)])
    sounds = in_every_order([[torch.randn(batch, 40, length)] for batch, length in ((1, 6), (2, 3), (1, 15))])
    images = in_every_order([[torch.randn(batch, 3, *size)] for batch, size in ((2, (16, 16)), (1, (24, 8)), (3, (8, 40)))])
    films = in_every_order([[torch.randn(batch, 3, *size)] for batch, size in ((1, (4, 8, 8)), (2, (3, 4, 6)), (1, (7, 10, 8)))])
    return {
        "convolutions_unet": (UNet, images),
        "convolutions_depthwise": (Depthwise, [[F.pad(image, (0, 8, 0, 8))] for image, in images]),
        "convolutions_film": (Film, films),
        "forces": (Forces, in_every_order([atoms(5), atoms(2), atoms(12)])),
        "lengths": (Lengths, in_every_order([words(5, 3, 7), words(1), words(4, 9, 2, 12)])),
        "norms": (lambda: traced(Vocoder(nn.utils.weight_norm, nn.utils.spectral_norm), sounds[0]), sounds),
        "norms_parametrised": (
            lambda: traced(Vocoder(parametrizations.weight_norm, parametrizations.spectral_norm), sounds[0]), sounds),
        "norms_stale": (Stale, rows),
        "tables": (lambda: traced(Tables(), rows[0]), rows),
    }
