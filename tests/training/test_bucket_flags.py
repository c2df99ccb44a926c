"""Flags whose values are URLs of an object store: what is fetched, and what is sent."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffusion_jax.core import staging
from diffusion_jax.core.errors import UserError
from experiments import arguments, values
from tests.training import test_buckets
from tests.training.test_buckets import RUN, put

store = test_buckets.store


def test_a_flag_takes_the_urls_that_it_can_use(store, monkeypatch):
    """Folders and files to write are sent at the end, files to read are fetched and not written."""
    kinds = {
        "workdir": "folder",
        "out": "file",
        "reference": "read",
        "images": "data",
        "recipe": "",
    }
    monkeypatch.setattr(values, "PATHS", kinds)
    put(store / "run", a="1"), put(store / "old", r="2")
    assert arguments._path("workdir", RUN) == staging.local(RUN)
    written = Path(arguments._path("out", "fakebucket://b/new/name"))
    written.with_suffix(".txt").write_text("3")
    assert Path(arguments._path("reference", "fakebucket://b/old/r")).read_text() == "2"
    assert arguments._path("images", RUN) == RUN
    staging.push()
    assert (store / "new/name.txt").read_text() == "3"
    for name, url, said in (
        ("recipe", "gs://b/x", "--recipe=gs://b/x: it must be a local path"),
        ("out", "fakebucket://b/a", "name a file in a folder of the bucket"),
        ("out", "fakebucket://b/a/", "name a file in a folder of the bucket"),
        ("reference", "fakebucket://b/none", "the bucket has nothing there"),
    ):
        with pytest.raises(UserError, match=said):
            arguments._path(name, url)
