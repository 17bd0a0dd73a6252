"""The commands: programs of this package, which take the place of the process that asks for one."""

import importlib.util
import os
import pathlib
import sys
from typing import NoReturn


def command(tool: str) -> tuple[str, dict[str, str]]:
    """The path of a program, and the environment in which it finds its libraries."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        sys.exit("error: torch is not installed here, and the tools of torch_offload use its libraries")
    torch = pathlib.Path(found.origin).parent
    folders = [torch / "lib", torch.parent / "nvidia" / "cu13" / "lib"]
    paths = [str(folder) for folder in folders] + [os.environ.get("LD_LIBRARY_PATH", "")]
    environment = os.environ | {"LD_LIBRARY_PATH": ":".join(path for path in paths if path)}
    return str(pathlib.Path(__file__).parent / "bin" / tool), environment


def _run(tool: str) -> NoReturn:
    program, environment = command(tool)
    os.execve(program, [f"torch-offload-{tool}", *sys.argv[1:]], environment)


def plan() -> NoReturn:
    _run("plan")


def run() -> NoReturn:
    _run("run")


def bench() -> NoReturn:
    _run("bench")


def serve() -> None:
    """With --ray, replicas of it behind Ray Serve; without, the program alone."""
    if "--ray" not in sys.argv[1:]:
        _run("serve")
    try:
        from torch_offload.serve import main
    except ModuleNotFoundError as error:
        sys.exit(f"error: --ray needs Ray Serve, and {error.name} is not there: pip install 'ray[serve]==2.60.*'")
    main([argument for argument in sys.argv[1:] if argument != "--ray"])
