"""How far a long pass has come: a bar on a terminal, a line now and then in a log; with rate and
time left.
"""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm


@contextmanager
def progress(
    total: int,
    description: str,
    *,
    enabled: bool = True,
    unit: str = "images",
    line_every: float = 15.0,
) -> Iterator[Callable[[int], None]]:
    """advance(n) after n more images: a bar on a terminal; in logs a plain line now and then, and
    one at the end.
    """
    if enabled and sys.stderr.isatty():
        size = (
            shutil.get_terminal_size()
        )  # unlike tqdm's own, never 0 x 0, where a bar would stay invisible
        shape = {"ncols": size.columns - 1, "nrows": size.lines}
        with tqdm(total=total, desc=description, unit=f" {unit}", file=sys.stderr, **shape) as bar:
            yield bar.update
        return
    done, began, printed = 0, time.monotonic(), time.monotonic()

    def advance(count: int) -> None:
        nonlocal done, printed
        done, now = done + count, time.monotonic()
        if enabled and (done == total or now - printed > line_every):
            rate = done / max(now - began, 1e-9)
            left = f", {math.ceil((total - done) / rate)} s left" if done < total else ""
            print(
                f"{description}: {done}/{total} {unit}, {rate:.1f} {unit}/s{left}",
                file=sys.stderr,
                flush=True,
            )
            printed = now

    yield advance
