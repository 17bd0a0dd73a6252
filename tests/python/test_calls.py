"""Calls, methods and attributes: as of the TorchScript module itself."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import torch_offload
from conftest import BUDGET, DEVICE, Layers, call_plain, make_layers, same_bits


def test_a_call_streams_and_gives_the_bits_of_the_plain_module(model, plain, x):
    for _ in range(3):
        assert same_bits(model(x), call_plain(plain, x))
    assert model.stats.calls == 3
    assert model.stats.bytes_streamed > 0
    assert model.stats.peak_device_bytes <= BUDGET


def test_arguments_come_by_position_by_name_and_by_default(model, plain, x):
    assert same_bits(model(x, 2), call_plain(plain, x, 2))  # an int for a float, as TorchScript takes it
    assert same_bits(model(x, times=2, scale=0.5), call_plain(plain, x, times=2, scale=0.5))
    assert same_bits(model.forward(x), call_plain(plain, x))
    assert same_bits(model.run_method("forward", x), call_plain(plain, x))


def test_lists_dicts_and_none_go_in_and_tuples_come_out(model, plain, x):
    mask = torch.ones(8, 1, device=DEVICE)
    for given in (None, mask):
        ours = model.describe([x, x], {"b": 1, "a": 2}, given)
        theirs = call_plain(plain.describe, [x, x], {"b": 1, "a": 2}, given)
        assert isinstance(ours, tuple) and ours[1:] == theirs[1:] == (["b", "a"], theirs[2])
        assert same_bits(ours, theirs)
    assert same_bits(model.describe([x], {}), call_plain(plain.describe, [x], {}))


def test_attributes_come_by_name(model, plain):
    assert model.width == 256
    assert model.training is False
    weight = model.attr("layers.3.weight")
    assert weight.device.type == "cpu" and same_bits(weight, dict(plain.named_parameters())["layers.3.weight"])
    with pytest.raises(AttributeError, match="nothing"):
        model.nothing
    assert not hasattr(model, "__array__")
    with pytest.raises(torch_offload.InputError, match="layers"):
        model.attr("layers")


def test_signatures_are_told(model):
    assert "float scale=1." in model.schema()
    assert model.describe.__name__ == "describe" and "Tensor" in model.describe.__doc__
    with pytest.raises(torch_offload.InputError, match="no method 'sing'"):
        model.schema("sing")


@pytest.mark.parametrize(
    "args, kwargs, message",
    [
        ((), {}, "missing value for argument 'x'"),
        ((1,), {}, "'x' but instead found type 'int'"),
        ((torch.zeros(1, 256), 1.0, 1, 1), {}, "at most 4"),
        ((torch.zeros(1, 256),), {"size": 3}, "size"),
        ((torch.zeros(1, 256),), {"x": torch.zeros(1, 256)}, "x"),
    ],
)
def test_arguments_that_do_not_fit_are_named(model, args, kwargs, message):
    with pytest.raises(torch_offload.InputError, match=message):
        model(*args, **kwargs)
    with pytest.raises(RuntimeError):  # as torch raises it
        model(*args, **kwargs)


def test_what_the_model_raises_comes_as_from_the_plain_module(model, plain, x):
    with pytest.raises(torch.jit.Error) as theirs:
        plain.refuse(x)
    with pytest.raises(torch.jit.Error) as ours:
        model.refuse(x)
    assert "this model refuses" in str(theirs.value) and "this model refuses" in str(ours.value)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model(torch.randn(4, 255, device=DEVICE))
    assert same_bits(model(x), call_plain(plain, x))


def test_outputs_are_ordinary_tensors(model, x):
    y = model(x)
    assert not y.requires_grad and not y.is_inference()
    y.add_(1)
    with torch.inference_mode():
        assert model(x).is_inference()
    later = torch.nn.Parameter(torch.ones(256, device=DEVICE))
    (model(x) * later).sum().backward()
    assert later.grad is not None


def test_an_input_on_another_device_is_named(model, x):
    if DEVICE == "cpu":
        x = x.to("meta")
    else:
        x = x.cpu()
    with pytest.raises(torch_offload.InputError, match="argument 'x' is on"):
        model(x)


def test_a_module_is_neither_pickled_nor_copied(model):
    for copied in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="can not be pickled or copied"):
            copied(model)


def test_a_module_is_not_traced(model, x):
    with pytest.raises(torch_offload.InputError, match="can not be traced"):
        torch.jit.trace(lambda y: model(y), (x,))


def test_wrap_takes_the_weights(plain, x):
    expected = call_plain(plain, x)
    model = torch_offload.wrap(plain, vram_budget=BUDGET, example_calls=[(x,)])
    assert same_bits(model(x), expected)
    with pytest.raises(RuntimeError, match="layers.0.weight"):
        dict(plain.named_parameters())["layers.0.weight"].sum().item()


def test_wrap_leaves_a_module_alone_where_it_raises(plain, x):
    expected = call_plain(plain, x)
    with pytest.raises(torch_offload.BudgetError):
        torch_offload.wrap(plain, vram_budget=1, example_calls=[(x,)])
    assert same_bits(call_plain(plain, x), expected)


class CallsPython(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(256, 256)

    @torch.jit.ignore
    def double(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(self.double(x))


def test_a_model_that_calls_python_is_called_by_threads(x):
    plain = torch.jit.script(CallsPython().eval()).to(DEVICE)
    expected = call_plain(plain, x)
    model = torch_offload.wrap(plain, vram_budget="1MiB", example_calls=[(x,)])
    with ThreadPoolExecutor(4) as threads:
        assert all(same_bits(y, expected) for y in threads.map(model, [x] * 40))


@pytest.mark.parametrize("by", ["trace", "script"])
def test_offload_takes_an_nn_module(by, x):
    module = make_layers()
    expected = call_plain(torch.jit.trace(module, (x.cpu(),)).to(DEVICE), x)
    model = torch_offload.offload(module, (x.cpu(),), by=by, vram_budget=BUDGET)
    assert model.stats.calls == 1  # the example
    assert same_bits(model(x), expected)


def test_offload_says_what_it_can_not_take(x):
    with pytest.raises(torch_offload.InputError, match="training mode"):
        torch_offload.offload(Layers(), (x,))
    with pytest.raises(torch_offload.InputError, match="takes example_args"):
        torch_offload.offload(make_layers())
    with pytest.raises(TypeError, match="of one argument"):
        torch_offload.offload(make_layers(), x)
    with pytest.raises(TypeError, match=r"wrap\(\) takes"):
        torch_offload.offload(torch.jit.script(make_layers()), (x,))
    with pytest.raises(TypeError, match=r"offload\(\) takes"):
        torch_offload.wrap(make_layers())
