"""Folders of images as relative paths and as files, for the tests of layouts."""

from __future__ import annotations

from diffusion_jax.data import layout
from diffusion_jax.data.held_out import held_out
from tests.data.sets import write_image


def split(found: layout.Arranged) -> layout.Arranged:
    """Hold out a tenth of the images where the folder has no test split."""
    train, test = (found.train, found.test) if found.test else held_out(found.train, "data")
    return found._replace(train=train, test=test)


def counts(found: layout.Arranged) -> tuple[int, int]:
    return len(found.train), len(found.test)


def folder(tmp_path, *names, count=3):
    for name in names:
        for k in range(count):
            write_image(tmp_path / name / f"{k}.png", 10 * k, mode="L")
    return tmp_path
