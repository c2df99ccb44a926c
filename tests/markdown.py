"""Markdown tables as the tests compare them."""

from __future__ import annotations

import re


def squeezed(text: str) -> str:
    """The text with single spaces, whatever the widths of the columns of its tables."""
    return re.sub(r" {2,}", " ", text)
