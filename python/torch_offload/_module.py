"""Modules, and the three ways to get one."""

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple, NoReturn, TypedDict, Unpack

import torch

from torch_offload import _C, _progress
from torch_offload._errors import InputError

Size = int | str


class ExampleCall(NamedTuple):
    """A call as the program will make it. `load` makes it once, to learn what calls take."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = {}
    method: str = "forward"


class Options(TypedDict, total=False):
    """What `load`, `wrap` and `offload` take by keyword. None, or none given: what is said here to be the default."""

    #: Bytes on the device for everything of this model, as an int or a str like "8GiB". Default: what is free.
    vram_budget: Size | None
    #: Bytes of host memory for weights and buffers. Default: what is free, less something for others.
    host_budget: Size | None
    #: Of these, page-locked. Default: what host_budget allows.
    pinned_budget: Size | None
    #: Where the model runs. Default: the first GPU where there is one, else the CPU.
    device: torch.device | str | None
    #: The most calls in flight at once, 1 to 64. Default: 8.
    concurrency: int | None
    #: A budget that the module shares with others.
    pool: _C.Pool | None
    #: What a call is worth beside those of others in the pool. Default: 1.
    weight: float | None
    #: Calls to learn from: an ExampleCall, (args, kwargs), or args alone, for each.
    example_calls: Iterable[Any] | None
    #: "off": calls run without gradients; "callers": methods that differentiate run as their caller has set it.
    gradients: Literal["off", "callers"] | None
    #: Which differences from the plain model are allowed. Only "exact" is supported.
    numerics: Literal["exact", "rounding", "lossy"] | None
    #: By what it is chosen which weights stay; others than "fastest" are there to be compared with it.
    rule: Literal["fastest", "larger-first", "first-first", "spread", "module-order"] | None
    #: Whether a graph that was traced on the CPU is changed for the GPU. Default: True.
    rewrite_devices: bool | None
    #: On the host: whether weights of the file are mapped, and not copied. Default: True.
    map_file: bool | None
    #: Told how many bytes have come, and of how many. Default: a bar of tqdm on a terminal; False: nobody is told.
    progress: Callable[[int, int], object] | Literal[False] | None


def _example_of(call: Any) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    if isinstance(call, ExampleCall):
        return call.method, tuple(call.args), dict(call.kwargs)
    if isinstance(call, (tuple, list)):
        if len(call) == 2 and isinstance(call[0], (tuple, list)) and isinstance(call[1], dict):
            return "forward", tuple(call[0]), call[1]
        return "forward", tuple(call), {}
    raise TypeError(
        f"example_calls: each is an ExampleCall, (args, kwargs), or a tuple of args, and this is {type(call)!r}: of one "
        "argument, write (x,)"
    )


def _split(options: Options) -> tuple[dict[str, Any], list[tuple[str, tuple[Any, ...], dict[str, Any]]], Any]:
    """Options that the library reads, example calls, and a function for progress."""
    rest: dict[str, Any] = dict(options)
    examples = [_example_of(call) for call in rest.pop("example_calls", None) or ()]
    progress = rest.pop("progress", None)
    if progress is None:
        progress = _progress.make_bar()
    elif progress is False:
        progress = None
    elif not callable(progress):
        raise TypeError(f"progress: a function of two ints, or False, is wanted, and this is {progress!r}")
    return rest, examples, progress


class Module:
    """A TorchScript module that runs under a budget of device memory. `load`, `wrap` and `offload` make one.

    It is called as the TorchScript module is, and has its methods and attributes by name; those that are named as
    members of this class are reached by `run_method` and `attr`. Any thread may call any member at any time. A call
    computes on the current CUDA stream of its thread; while it is under way, other threads of Python run.

    A signal, as of Ctrl-C, is seen while `load` or `wrap` brings weights, and when a call has returned. In a child of
    fork(), every member raises Error.
    """

    __slots__ = ("_module", "__weakref__")

    def __init__(self, module: _C.Module) -> None:
        if not isinstance(module, _C.Module):
            raise TypeError("a Module is made by load(), wrap() or offload()")
        self._module = module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs `forward`."""
        return self._module.run_method("forward", args, kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs `forward`."""
        return self._module.run_method("forward", args, kwargs)

    def run_method(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """Runs any method of the model.

        Raises InputError for arguments that do not fit the signature, BudgetError when the call does not fit the
        budget, whatever else gives way, ArchiveError when the file has changed, Error when the device has less than
        the budget, and whatever the model raises. The module can be called again after any of them.
        """
        return self._module.run_method(name, args, kwargs)

    def attr(self, name: str) -> Any:
        """An attribute by its qualified name, as in "layers.3.weight"; of a tensor, a copy on the host."""
        return self._module.attr(name)

    def schema(self, method: str = "forward") -> str:
        """The signature of a method."""
        return self._module.schema(method)

    @property
    def device(self) -> torch.device:
        """Where the model runs, and its inputs have to be."""
        return self._module.device

    @property
    def placement(self) -> _C.Placement:
        """Where each weight is, and what calls are predicted to take: print it, or look at it in a notebook."""
        return self._module.placement()

    @property
    def stats(self) -> _C.Stats:
        """What has happened since load, all callers together."""
        return self._module.stats()

    def report(self) -> _C.Report:
        """What calls have taken since weights were last placed, what bounds them, and what would help.

        It simulates what would help, which takes milliseconds, and seconds for a large model.
        """
        return self._module.report()

    def set_vram_budget(self, size: Size) -> None:
        """Plans anew for another budget once the calls in flight are done."""
        self._module.set_vram_budget(size)

    def release(self) -> None:
        """Gives device memory back until the next call."""
        self._module.release()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # Python asks for many of these; none is an attribute of TorchScript
            raise AttributeError(f"a Module of torch_offload has no '{name}'", name=name, obj=self)
        try:
            signature = self._module.schema(name)
        except InputError:
            return self._attribute(name)

        def method(*args: Any, **kwargs: Any) -> Any:
            return self._module.run_method(name, args, kwargs)

        method.__name__ = method.__qualname__ = name
        method.__doc__ = signature
        return method

    def _attribute(self, name: str) -> Any:
        try:
            return self._module.attr(name)
        except InputError as error:
            raise AttributeError(str(error), name=name, obj=self) from None

    def __repr__(self) -> str:
        return f"<torch_offload.Module on {self.device}>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(
            "a Module of torch_offload can not be pickled or copied: send the path of its archive, and load() it there; "
            "within a process, any number of threads may use the same one"
        )


def load(path: str | os.PathLike[str], **options: Unpack[Options]) -> Module:
    """Loads what `torch.jit.save` has written. Options are those of `Options`, by keyword.

    Raises ArchiveError when it is not an archive or can not be read, BudgetError when no placement fits, InputError for
    options that contradict each other or the machine, and TypeError for those that are none.
    """
    given, examples, progress = _split(options)
    return Module(_C.load(os.fspath(path), given, examples, progress))


def wrap(module: torch.jit.ScriptModule, **options: Unpack[Options]) -> Module:
    """Adopts a module that is scripted or traced. It is consumed: `module` holds placeholders from then on, and reading
    one of its weights is an error. Where this raises, `module` is as it was.
    """
    given, examples, progress = _split(options)
    return Module(_C.wrap(module, given, examples, progress))


def _moved(value: Any, device: torch.device) -> Any:
    """Tensors in `value` on `device`."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_moved(element, device) for element in value))
    if isinstance(value, (tuple, list)):
        return type(value)(_moved(element, device) for element in value)
    if isinstance(value, dict):
        return {key: _moved(element, device) for key, element in value.items()}
    return value


def offload(
    module: torch.nn.Module,
    example_args: tuple[Any, ...] = (),
    *,
    by: Literal["trace", "script"] = "trace",
    **options: Unpack[Options],
) -> Module:
    """Traces or scripts `module`, and wraps the result.

    `example_args` are what `module` is traced with, where it is now; moved to where the model will run, they are also
    the example call, unless others are given. What depends on values is fixed by a trace: give by="script" then.
    `module` has to be in eval mode. Drop it afterwards: its parameters stay where they are for as long as it lives.
    """
    if not isinstance(module, torch.nn.Module) or isinstance(module, torch.jit.ScriptModule):
        raise TypeError(f"offload() takes a torch.nn.Module, and this is {type(module)!r}: wrap() takes what is scripted")
    if not isinstance(example_args, tuple):
        raise TypeError(f"example_args: a tuple is wanted, and this is {type(example_args)!r}: of one argument, write (x,)")
    if module.training:
        raise InputError("the module is in training mode, in which dropout and the like change outputs: call eval() first")
    if by not in ("trace", "script"):
        raise InputError(f"by: {by!r} is neither 'trace' nor 'script'")
    if by == "trace" and not example_args:
        raise InputError("a trace takes example_args; by='script' takes none")
    with torch.no_grad():
        jit: Any = torch.jit  # whose functions have no types
        scripted = jit.trace(module, example_args) if by == "trace" else jit.script(module)
    if example_args and options.get("example_calls") is None:
        options["example_calls"] = [_moved(example_args, _C.device_of(_split(options)[0]))]
    return wrap(scripted, **options)
