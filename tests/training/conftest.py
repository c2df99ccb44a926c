"""Fixtures that several files of this folder share."""

from __future__ import annotations

import pytest

from diffusion_jax import data
from diffusion_jax.assembly import train
from tests.training import resumable
from tests.training.kill_battery import fingerprint
from tests.training.tiny_run import (
    STEPS,
    config,
)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """The run nobody disturbs: its folder and its fingerprint."""
    root = tmp_path_factory.mktemp("undisturbed") / "run"
    assert train.train(config(), str(root))
    return root, fingerprint(root, STEPS)


@pytest.fixture
def at(monkeypatch):
    """at(position, act): act() is called before the batch of that position is handed out, once."""
    acts, prefetch = {}, data.prefetch

    def watched(*args, **kwargs):
        for step, batch in prefetch(*args, **kwargs):
            acts.pop(step, lambda: None)()
            yield step, batch

    monkeypatch.setattr(data, "prefetch", watched)
    return acts.__setitem__


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory):
    """The run of `resumable` that nobody interrupts: its folder and its final state."""
    workdir = tmp_path_factory.mktemp("uninterrupted")
    return workdir, resumable.words(resumable.run(workdir).state)
