"""Every exported model: bit by bit what plain torch gives, and what the C++ tool gives under the same budget."""

import pathlib
import os
import subprocess
import sys

import pytest
import torch

import torch_offload
from conftest import DEVICE, call_plain, same_bits, tensors

FOLDER = pathlib.Path(os.environ.get("OFFLOAD_EXPORTED", "none"))
NAMES = sorted(path.name[: -len(".inputs.pt")] for path in FOLDER.glob("*.inputs.pt"))
TRACED_ON_CPU = {"bert", "gpt2", "t5", "llama", "mixtral", "minilm"}  # plain loading leaves the devices in their graphs


def moved(value):
    if isinstance(value, torch.Tensor):
        return value.to(DEVICE)
    if isinstance(value, (tuple, list)):
        return type(value)(moved(element) for element in value)
    return value


def test_there_are_models(exported):
    assert len(NAMES) >= 15, f"{exported} has {NAMES}"


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_those_of_plain_torch_and_of_the_tool(name, exported, tmp_path):
    path, inputs = exported / f"{name}.pt", exported / f"{name}.inputs.pt"
    calls = moved(torch.load(inputs, weights_only=True))
    plain = torch.jit.load(path, map_location=DEVICE)
    weights = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in plain.parameters()}
    with pytest.raises(torch_offload.BudgetError) as refused:
        torch_offload.load(path, vram_budget=1, example_calls=[tuple(call) for call in calls])
    budget = max(refused.value.minimum_bytes, sum(weights.values()) // 2)
    model = torch_offload.load(path, vram_budget=budget, example_calls=[tuple(call) for call in calls])
    ours = [model(*call) for call in calls]
    if DEVICE == "cpu" or name not in TRACED_ON_CPU:
        assert same_bits(ours, [call_plain(plain, *call) for call in calls])
    saved = tmp_path / "saved.pt"
    tool = pathlib.Path(sys.executable).parent / "torch-offload-run"
    done = subprocess.run(
        [tool, path, "--inputs", inputs, "--vram", str(budget), "--save", saved],
        env=os.environ | {"OMP_NUM_THREADS": "1"},  # as here: sums in another order have other bits
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    theirs = torch.load(saved, weights_only=True)["outputs"]
    assert tensors(theirs) and same_bits(ours, theirs)
    assert model.stats.peak_device_bytes <= budget
