"""Every exported model through the commands `plan` and `run`: the smallest budget that the one names is enough for the other;
what --check finds equal and --save writes is what plain torch.jit.load gives in Python. (What is planned, moved and kept is looked at by `matrix`, in one process.)

usage: models_test.py TOOLS_DIR MODELS_DIR [--device cpu|cuda:0] [NAME ...]     models as models/export.py makes them
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile

import torch

# With the profiling executor, plain forward splits and fuses operators from its first calls on, and rounds otherwise.
torch._C._jit_set_profiling_executor(False)
torch._C._get_graph_executor_optimize(False)


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
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b))


def to_device(value, device):
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, (list, tuple)):
        return type(value)(to_device(item, device) for item in value)
    return value


# Traced on the CPU: plain loading leaves the devices in their graphs.
TRACED = ("bert", "gpt2", "t5", "llama", "mixtral", "minilm")
# Models whose smallest budget has to leave at least nine tenths of the weight bytes to be streamed.
MOSTLY_STREAMED = ("vit", "vgg", "bert", "encoder")


class Failures(list):
    def check(self, condition, what):
        if not condition:
            self.append(what)
            print("FAILED:", what, flush=True)


def run(tools, model, *arguments, tool="run"):
    return subprocess.run([os.path.join(tools, tool), model, *arguments], capture_output=True, text=True)


def weight_bytes(path):
    module = torch.jit.load(path, map_location="cpu")
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in module.parameters()}
    return sum(storages.values())


def smallest_of(refused):
    return int(refused.stderr.split("smallest that works is ")[1].split()[0])


def test_model(name, tools, folder, device, failures):
    model = os.path.join(folder, name + ".pt")
    inputs = os.path.join(folder, name + ".inputs.pt")
    total = weight_bytes(model)
    refused = run(tools, model, "--device", device, "--inputs", inputs, "--vram", "1")
    failures.check(refused.returncode == 2 and "smallest that works is" in refused.stderr, f"{name}: budget of 1 byte: {refused}")
    # On a GPU, what was refused is a guess until calls have been measured; plan has measured them.
    planned = run(tools, model, "--device", device, "--inputs", inputs, "--format", "json", tool="plan")
    failures.check(planned.returncode == 0, f"{name}: no plan: {planned}")
    minimum = json.loads(planned.stdout)["budget"]["minimum"]
    failures.check(device != "cpu" or smallest_of(refused) == minimum, f"{name}: plan says {minimum}, run: {refused}")
    movable = device == "cpu" or name not in TRACED
    plain = torch.jit.load(model, map_location=device)
    with torch.no_grad(), torch.jit.optimized_execution(False):
        calls = torch.load(inputs, weights_only=True)
        expected = [plain(*to_device(call, device)) for call in calls] if movable else None
    budgets = {"smallest": minimum, "half": max(minimum, total // 2)}
    for label, vram in budgets.items():
        with tempfile.TemporaryDirectory() as scratch:
            saved = os.path.join(scratch, "saved.pt")
            done = run(tools, model, "--device", device, "--inputs", inputs, "--vram", str(vram), "--check", "--save", saved,
                       "--format", "json")
            failures.check(done.returncode == 0, f"{name} at {label}: exit {done.returncode}: {done.stderr}")
            if done.returncode != 0:
                continue
            result = json.loads(done.stdout)
            outputs = torch.load(saved, weights_only=True)["outputs"]
        failures.check(result["check"] == "bit-identical", f"{name} at {label}: {result['check']}")
        if expected is not None:
            pairs = list(zip(tensors(outputs), tensors(expected)))
            failures.check(pairs and len(tensors(outputs)) == len(tensors(expected)) and all(same_bits(a, b) for a, b in pairs),
                           f"{name} at {label}: saved outputs differ from plain torch.jit.load")
        if label == "smallest" and name in MOSTLY_STREAMED and device == "cpu":
            share = sum(w["bytes"] for w in result["plan"]["weights"] if w["segments"][0]["mode"] == "streamed") / total
            failures.check(share >= 0.9, f"{name}: only {share:.3f} of the weight bytes stream at the smallest budget")
        print(f"{name:8} {label:8} budget {vram:>11} of {total:>11}: bit-identical, "
              f"{result['measured']['streamed_bytes']:>12.0f} bytes a call", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("tools")
    parser.add_argument("models")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    names = arguments.names or sorted(f[:-10] for f in os.listdir(arguments.models) if f.endswith(".inputs.pt"))
    failures = Failures()
    failures.check(names, f"no models in {arguments.models}")
    for name in names:
        test_model(name, arguments.tools, arguments.models, arguments.device, failures)
    print(f"{len(names)} models, {len(failures)} failures")
    sys.exit(1 if failures else 0)


main()
