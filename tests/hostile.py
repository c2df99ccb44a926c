"""What a hostile file leaves behind if something in it is run."""

from __future__ import annotations

import os
from pathlib import Path


class Marker:
    """A pickle of it, read by pickle itself, makes a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)
