"""The commands: programs of this package, which take the place of the process that asks for one."""

import importlib.util
import os
import pathlib
import sys
from typing import NoReturn


def _run(tool: str) -> NoReturn:
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        sys.exit("error: torch is not installed here, and the tools of torch_offload use its libraries")
    torch = pathlib.Path(found.origin).parent
    folders = [torch / "lib", torch.parent / "nvidia" / "cu13" / "lib"]
    paths = [str(folder) for folder in folders] + [os.environ.get("LD_LIBRARY_PATH", "")]
    os.environ["LD_LIBRARY_PATH"] = ":".join(path for path in paths if path)
    program = pathlib.Path(__file__).parent / "bin" / tool
    os.execv(program, [f"torch-offload-{tool}", *sys.argv[1:]])


def plan() -> NoReturn:
    _run("plan")


def run() -> NoReturn:
    _run("run")


def bench() -> NoReturn:
    _run("bench")
