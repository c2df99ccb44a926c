"""What a process printed, without the messages of XLA's Gloo about its connections."""

from __future__ import annotations

import re

GLOO = re.compile(r"\[Gloo\]|is connected to|peer ranks|^[\s\d]*$")


def without_gloo(text: str) -> str:
    """Return a text without Gloo's lines.

    Several threads print '[Gloo] Rank 0 is connected to 3 peer ranks. Expected number of connected
    peer ranks is : 3' piece by piece at once, so that a line can hold any pieces of two messages.
    """
    return "".join(line for line in text.splitlines(keepends=True) if not GLOO.search(line))
