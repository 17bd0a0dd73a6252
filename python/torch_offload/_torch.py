"""That torch is the one that this was built with. Imported before anything that is compiled."""

import torch

from torch_offload import _build


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


if _minor(torch.__version__) != _minor(_build.TORCH):
    raise ImportError(
        f"torch_offload was built with torch {_build.TORCH}, and this is torch {torch.__version__}: what is built works "
        "with the same minor version only. Build it again for this one (pip install --no-build-isolation in its "
        f"sources), or install torch {_minor(_build.TORCH)}."
    )
if torch.version.cuda is None:
    raise ImportError(
        f"torch_offload was built with a torch for CUDA, and torch {torch.__version__} is one without: install one for "
        "CUDA. It also runs where there is no GPU."
    )
