"""Checkpoints that are whole or refused."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import pytest

from diffusion_jax.core.errors import UserError
from diffusion_jax.training import checkpoint, distributed, restoring
from tests.training.resumable import (
    RUNNER,
    TOTAL,
    deterministic_rows,
    init,
    run,
    template,
    words,
)


@pytest.fixture
def copy(uninterrupted, tmp_path):
    """A copy of the uninterrupted run's checkpoints: steps 30, 36 and 40."""
    return Path(shutil.copytree(uninterrupted[0] / "checkpoints", tmp_path / "checkpoints"))


def test_a_checkpoint_gives_back_every_bit(uninterrupted):
    workdir, final = uninterrupted
    restored = restoring.restore(workdir / "checkpoints", template())
    chex.assert_trees_all_equal(words(restored.state), final)
    assert restored.state.key.dtype == jax.random.key(0).dtype and restored.step == TOTAL
    assert restored.extra["config"] == {"name": "tiny"}
    assert restoring.latest_step(workdir / "checkpoints") == TOTAL
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == [
        "30",
        "36",
        "40",
    ]  # keep = 3


def test_dtypes_keys_of_other_kinds_and_numbers_survive(tmp_path):
    tree = {
        "half": jnp.arange(5, dtype=jnp.bfloat16) / 3,
        "flags": jnp.array([True, False]),
        "count": jnp.int32(7),
        "keys": jax.random.split(jax.random.key(3, impl="rbg"), 3),
    }
    with contextlib.closing(checkpoint.Checkpointer(tmp_path)) as checkpoints:
        checkpoints.save(5, tree, {"note": [1, None, 0.1]})
    restored = restoring.restore(
        tmp_path, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
    )
    assert restored.step == 5 and restored.extra == {"note": [1, None, 0.1]}
    assert str(restored.state["keys"].dtype) == str(tree["keys"].dtype)

    def unkeyed(t):
        return t | {"keys": jax.random.key_data(t["keys"])}

    chex.assert_trees_all_equal(unkeyed(restored.state), unkeyed(tree))
    chex.assert_trees_all_equal_dtypes(unkeyed(restored.state), unkeyed(tree))


def test_parameters_and_emas_alone(uninterrupted):
    folder, final = uninterrupted[0] / "checkpoints", uninterrupted[1]
    chex.assert_trees_all_equal(restoring.restore_params(folder).state, final.params)
    chex.assert_trees_all_equal(
        restoring.restore_params(folder, "2k", template=template().params).state, final.ema["2k"]
    )
    assert restoring.restore_params(folder, "50", step=30).step == 30
    with pytest.raises(UserError, match=r"unknown EMA '5k'.*There are: 2k, 50"):
        restoring.restore_params(folder, "5k")
    with pytest.raises(UserError, match="no checkpoint of step 13 .*30, 36, 40"):
        restoring.restore_params(folder, step=13)
    with pytest.raises(UserError, match="there is no checkpoint in"):
        restoring.restore_params(folder / "nowhere")
    assert (
        restoring.restore(folder / "nowhere", template()) is None
        and restoring.latest_step(folder / "nowhere") is None
    )


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda p: p | {"out": jnp.zeros((8, 5))},
            r"params/out is float32\[8, 4\] in the checkpoint and float32\[8, 5\] in this config",
        ),
        (
            lambda p: p | {"out": p["out"].astype(jnp.bfloat16)},
            r"params/out is float32\[8, 4\] in the checkpoint and bfloat16\[8, 4\] in this config",
        ),
        (
            lambda p: p | {"more": jnp.zeros(2)},
            r"params/more is missing in the checkpoint and float32\[2\] in this config",
        ),
        (
            lambda p: {"in": p["in"]},
            r"params/out is float32\[8, 4\] in the checkpoint and missing in this config",
        ),
    ],
)
def test_another_model_is_refused_by_its_first_differing_leaf(
    uninterrupted, capsys, change, message
):
    def other(key):
        now = init(key)
        return now._replace(params=change(now.params))

    with pytest.raises(UserError, match=message):
        restoring.restore(
            uninterrupted[0] / "checkpoints", RUNNER.template(other, jax.random.key(0))
        )
    assert capsys.readouterr().err == ""  # and nothing is called damaged


def data(folder):
    """The files that hold arrays, of which some hold copies that Orbax no longer reads."""
    return [path for path in (folder / "state").rglob("d/*") if path.is_file()]


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def all_of(change, paths):
    for path in paths:
        change(path)


def swap(folder, other):
    shutil.rmtree(folder)
    shutil.copytree(other, folder)


DAMAGE = {
    "truncated": lambda folder: all_of(
        lambda path: path.write_bytes(path.read_bytes()[:-100]), data(folder)
    ),
    "flipped": lambda folder: all_of(flip, data(folder)),
    "another step's data": lambda folder: swap(
        folder / "state", folder.parent / "36" / "state"
    ),  # well-formed
    "no state": lambda folder: shutil.rmtree(folder / "state"),
    "no data": lambda folder: shutil.rmtree(folder / "state" / "d"),
    "no description": lambda folder: shutil.rmtree(folder / "meta"),
    "flipped description": lambda folder: flip(folder / "meta" / "metadata"),
    "empty": lambda folder: (shutil.rmtree(folder), folder.mkdir()),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_newest_checkpoint_is_passed_over(copy, capfd, kind):
    before = restoring.restore(copy, template(), step=36)
    DAMAGE[kind](copy / "40")
    restored = restoring.restore(copy, template())
    assert restored.step == 36
    chex.assert_trees_all_equal(words(restored.state), words(before.state))
    assert restoring.restore_params(copy, "2k").step == 36
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2 and all(
        line.startswith(f"warning: checkpoint '{copy / '40'}' is damaged (") for line in lines
    ), lines
    assert all("trying that of step 36" in line for line in lines)


def test_a_byte_flipped_anywhere_never_gives_another_state(copy, uninterrupted, capfd):
    """For each file of the newest checkpoint in turn: the true state, or the fall-back; never wrong
    values.
    """
    good = {TOTAL: uninterrupted[1], 36: words(restoring.restore(copy, template(), step=36).state)}
    steps = []
    for path in sorted(p for p in (copy / "40").rglob("*") if p.is_file() and p.stat().st_size):
        whole = path.read_bytes()
        flip(path)
        restored = restoring.restore(copy, template())
        chex.assert_trees_all_equal(words(restored.state), good[restored.step])
        steps.append(restored.step)
        path.write_bytes(whole)
    assert 36 in steps and len(capfd.readouterr().err.splitlines()) == steps.count(36)


def test_all_damaged_is_an_error_and_not_a_fresh_start(copy):
    for folder in copy.iterdir():
        flip(folder / "meta" / "metadata")
    with pytest.raises(UserError, match="each of the 3 checkpoints in .* is damaged .*step 30"):
        restoring.restore(copy, template())
    with pytest.raises(UserError, match="the checkpoint in .* is damaged"):
        restoring.restore(copy, template(), step=40)


def test_a_run_goes_on_from_the_previous_checkpoint_and_saves_the_damaged_step_anew(
    uninterrupted, tmp_path, capfd
):
    workdir = Path(shutil.copytree(uninterrupted[0], tmp_path / "run"))
    DAMAGE["truncated"](workdir / "checkpoints" / "40")
    end = run(workdir)
    assert len(capfd.readouterr().err.splitlines()) == 1
    chex.assert_trees_all_equal(words(end.state), uninterrupted[1])
    assert deterministic_rows(workdir) == deterministic_rows(uninterrupted[0])
    assert (workdir / "checkpoints" / "40.damaged").is_dir()
    chex.assert_trees_all_equal(
        words(restoring.restore(workdir / "checkpoints", template()).state), uninterrupted[1]
    )


def test_a_process_that_dies_during_a_save_is_reported_as_lost(tmp_path, monkeypatch):
    """Its partner's save fails, which is no fault of the folder."""
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)

    def save(*_):
        try:
            raise jax.errors.JaxRuntimeError("Connection closed by peer")
        except jax.errors.JaxRuntimeError as error:
            raise ValueError("a barrier failed") from error

    monkeypatch.setattr(checkpoint.storage, "save", save)
    saving = checkpoint.Checkpointer(tmp_path / "checkpoints")
    with contextlib.closing(saving), pytest.raises(ValueError, match="barrier") as caught:
        saving.save(3, {"w": jnp.zeros(2)})
        saving.wait()
    assert "lost another one (Connection closed by peer)" in distributed.lost(caught.value)


def test_several_processes_finish_one_save_before_the_next(tmp_path, monkeypatch):
    """The newest and the best checkpoint of one step: their threads share Orbax's barriers."""
    happened = []

    class Manager:
        def __init__(self, name):
            self.name = name

        def wait_until_finished(self):
            happened.append(f"{self.name} is written")

        def latest_step(self):
            return None

        def close(self):
            pass

    def save(manager, *_):
        happened.append(f"{manager.name} begins")
        return True

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        checkpoint.storage, "open_manager", lambda directory, **_: Manager(directory.name)
    )
    monkeypatch.setattr(checkpoint.storage, "save", save)
    newest, best = (checkpoint.Checkpointer(tmp_path / name) for name in ("newest", "best"))
    newest.save(3, {"w": jnp.zeros(2)})
    best.save(3, {"w": jnp.zeros(2)})
    begins = happened.index("best begins")
    assert happened.index("newest begins") < happened.index("newest is written", 1) < begins
    best.close()
    newest.close()
