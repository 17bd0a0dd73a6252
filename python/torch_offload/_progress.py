"""A bar for loads that take long, where tqdm is installed and somebody looks at a terminal."""

import sys
from typing import Any, Callable


def make_bar() -> Callable[[int, int], None] | None:
    """None where there is no tqdm, or standard error is no terminal."""
    if sys.stderr is None or not sys.stderr.isatty():
        return None
    try:
        from tqdm import tqdm  # type: ignore[import-untyped,unused-ignore]
    except ImportError:
        return None
    bar: Any = None

    def show(done: int, total: int) -> None:
        nonlocal bar
        if bar is None:
            bar = tqdm(total=total, desc="loading", unit="B", unit_scale=True, unit_divisor=1024, delay=0.5, leave=False)
        bar.total = total
        bar.update(done - bar.n)
        if done >= total:
            bar.close()

    return show
