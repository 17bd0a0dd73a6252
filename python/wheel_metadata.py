"""Version and dependencies of the wheel: what it is built with is what it works with."""

import importlib.metadata
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parent.parent


def torch_minor():
    try:
        return ".".join(importlib.metadata.version("torch").split(".")[:2])
    except importlib.metadata.PackageNotFoundError:
        raise SystemExit(
            "torch is not there: torch_offload is built against the torch that it will be used with. Install that, and "
            "then: pip install scikit-build-core cmake ninja && pip install --no-build-isolation . (docs/python.md)"
        ) from None


def dynamic_metadata(settings, project):
    numbers = re.findall(r"^#define OFFLOAD_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)$", (ROOT / "offload/version.h").read_text(), re.M)
    return {"version": ".".join(numbers) + "+torch" + torch_minor(), "dependencies": [f"torch=={torch_minor()}.*"]}
