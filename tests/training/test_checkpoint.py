"""Checkpoints that are whole or refused, and runs that end the same however often they are killed.

`python tests/training/test_checkpoint.py WORKDIR SECONDS_PER_BATCH` is the run that the tests kill.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.training import checkpoint, ema, loop, metrics, optimizer, sharding, state, step

TOTAL, BATCH = 40, 8
AVERAGES = ema.halflives((50, 2_000))

TX, RATE = optimizer.make_optimizer(
    "adamw", learning_rate=0.02, total_steps=TOTAL, warmup=4, schedule="cosine"
)


def loss_fn(params, batch, keys, now):
    x = batch["image"]
    eps = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(keys)
    out = jnp.tanh((x + 0.3 * eps) @ params["in"]["kernel"] + params["in"]["bias"]) @ params["out"]
    return jnp.mean(jnp.square(out - x), axis=-1) / batch["fate"], {"level": 10 * eps[:, 0]}


def init(key):
    a, b = jax.random.split(key)
    params = {
        "in": {"kernel": jax.random.normal(a, (4, 8)), "bias": jnp.zeros(8)},
        "out": jax.random.normal(b, (8, 4)),
    }
    return state.init_state(params, TX, AVERAGES, key)


def batch(number, poison=None):
    """Noise, and a divisor of the loss: one, except 0 for example 3 of the poisoned step."""
    fate = np.ones(BATCH, np.float32)
    fate[3] = number != poison
    return {
        "image": np.random.default_rng(number).normal(size=(BATCH, 4)).astype(np.float32),
        "fate": fate,
    }


RUNNER = sharding.runner(devices=jax.devices()[:1])

CALL = RUNNER.compile(
    step.multi_step(step.make_train_step(loss_fn, TX, AVERAGES, schedule=RATE), 2)
)


def run(workdir: Path, *, total=TOTAL, poison=None, pause=0.0, progress=False, checkpoint_every=6):
    """What a main does: resume where there is a checkpoint, train, save. Rows every 4 steps, so
    checkpoints fall between rows.
    """
    restored = checkpoint.restore(workdir / "checkpoints", RUNNER.template(init, jax.random.key(0)))
    begin = RUNNER.init(init, jax.random.key(0)) if restored is None else restored.state
    start = 0 if restored is None else restored.step

    def feed(first):
        for number in range(first // 2, TOTAL):
            time.sleep(pause)
            yield (
                2 * number,
                RUNNER.put_batch(loop.stack(lambda k: batch(k, poison), 2)(number), axis=1),
            )

    with (
        contextlib.closing(
            metrics.open_writer(workdir, start_step=start, tensorboard=False)
        ) as writer,
        contextlib.closing(
            checkpoint.open_checkpoints(workdir / "checkpoints", after=restored and restored.step)
        ) as checkpoints,
    ):
        return loop.fit(
            begin,
            CALL,
            feed,
            total_steps=total,
            batch_size=BATCH,
            steps_per_call=2,
            log_every=4,
            checkpoint_every=checkpoint_every,
            checkpointer=checkpoints,
            writer=writer,
            extra={"config": {"name": "tiny"}},
            resumed=restored and restored.extra,
            hooks=[(8, lambda now, at: {"eval_loss": float(now.params["out"][0, 0])})],
            progress=progress,
        )


def words(tree):
    """A state as numpy, its key as words."""
    return jax.device_get(tree._replace(key=jax.random.key_data(tree.key)))


def deterministic_rows(workdir):
    return [
        {key: value for key, value in row.items() if key != "timing"}
        for row in metrics.read_rows(workdir / "metrics.jsonl")
    ]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The run nobody interrupts: its folder and its final state."""
    workdir = tmp_path_factory.mktemp("straight")
    return workdir, words(run(workdir).state)


def template():
    return RUNNER.template(init, jax.random.key(0))


@pytest.fixture
def copy(straight, tmp_path):
    """A copy of the uninterrupted run's checkpoints: steps 30, 36 and 40."""
    return Path(shutil.copytree(straight[0] / "checkpoints", tmp_path / "checkpoints"))


# ---- saved and restored ----
def test_a_checkpoint_gives_back_every_bit(straight):
    workdir, final = straight
    restored = checkpoint.restore(workdir / "checkpoints", template())
    chex.assert_trees_all_equal(words(restored.state), final)
    assert restored.state.key.dtype == jax.random.key(0).dtype and restored.step == TOTAL
    assert restored.extra["config"] == {"name": "tiny"}
    assert checkpoint.latest_step(workdir / "checkpoints") == TOTAL
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
    with contextlib.closing(checkpoint.open_checkpoints(tmp_path)) as checkpoints:
        checkpoints.save(5, tree, {"note": [1, None, 0.1]})
    restored = checkpoint.restore(
        tmp_path, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
    )
    assert restored.step == 5 and restored.extra == {"note": [1, None, 0.1]}
    assert str(restored.state["keys"].dtype) == str(tree["keys"].dtype)

    def unkeyed(t):
        return t | {"keys": jax.random.key_data(t["keys"])}

    chex.assert_trees_all_equal(unkeyed(restored.state), unkeyed(tree))
    chex.assert_trees_all_equal_dtypes(unkeyed(restored.state), unkeyed(tree))


def test_parameters_and_emas_alone(straight):
    folder, final = straight[0] / "checkpoints", straight[1]
    chex.assert_trees_all_equal(checkpoint.restore_params(folder).state, final.params)
    chex.assert_trees_all_equal(
        checkpoint.restore_params(folder, "2k", template=template().params).state, final.ema["2k"]
    )
    assert checkpoint.restore_params(folder, "50", step=30).step == 30
    with pytest.raises(UserError, match=r"unknown EMA '5k'.*There are: 2k, 50"):
        checkpoint.restore_params(folder, "5k")
    with pytest.raises(UserError, match="no checkpoint of step 13 .*30, 36, 40"):
        checkpoint.restore_params(folder, step=13)
    with pytest.raises(UserError, match="there is no checkpoint in"):
        checkpoint.restore_params(folder / "nowhere")
    assert (
        checkpoint.restore(folder / "nowhere", template()) is None
        and checkpoint.latest_step(folder / "nowhere") is None
    )


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda p: p | {"out": jnp.zeros((8, 5))},
            r"params/out is float32\[8, 4\] there and float32\[8, 5\] here",
        ),
        (
            lambda p: p | {"out": p["out"].astype(jnp.bfloat16)},
            r"params/out is float32\[8, 4\] there and bfloat16\[8, 4\] here",
        ),
        (
            lambda p: p | {"more": jnp.zeros(2)},
            r"params/more is missing there and float32\[2\] here",
        ),
        (lambda p: {"in": p["in"]}, r"params/out is float32\[8, 4\] there and missing here"),
    ],
)
def test_another_model_is_refused_by_its_first_differing_leaf(straight, capsys, change, message):
    def other(key):
        now = init(key)
        return now._replace(params=change(now.params))

    with pytest.raises(UserError, match=message):
        checkpoint.restore(straight[0] / "checkpoints", RUNNER.template(other, jax.random.key(0)))
    assert capsys.readouterr().err == ""  # and nothing is called damaged


# ---- damage ----
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
    before = checkpoint.restore(copy, template(), step=36)
    DAMAGE[kind](copy / "40")
    restored = checkpoint.restore(copy, template())
    assert restored.step == 36
    chex.assert_trees_all_equal(words(restored.state), words(before.state))
    assert checkpoint.restore_params(copy, "2k").step == 36
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2 and all(
        line.startswith(f"warning: checkpoint '{copy / '40'}' is damaged (") for line in lines
    ), lines
    assert all("trying that of step 36" in line for line in lines)


def test_a_byte_flipped_anywhere_never_gives_another_state(copy, straight, capfd):
    """For each file of the newest checkpoint in turn: the true state, or the fall-back; never wrong
    values.
    """
    good = {TOTAL: straight[1], 36: words(checkpoint.restore(copy, template(), step=36).state)}
    steps = []
    for path in sorted(p for p in (copy / "40").rglob("*") if p.is_file() and p.stat().st_size):
        whole = path.read_bytes()
        flip(path)
        restored = checkpoint.restore(copy, template())
        chex.assert_trees_all_equal(words(restored.state), good[restored.step])
        steps.append(restored.step)
        path.write_bytes(whole)
    assert 36 in steps and len(capfd.readouterr().err.splitlines()) == steps.count(36)


def test_all_damaged_is_an_error_and_not_a_fresh_start(copy):
    for folder in copy.iterdir():
        flip(folder / "meta" / "metadata")
    with pytest.raises(UserError, match="each of the 3 checkpoints in .* is damaged .*step 30"):
        checkpoint.restore(copy, template())
    with pytest.raises(UserError, match="the checkpoint in .* is damaged"):
        checkpoint.restore(copy, template(), step=40)


def test_a_run_goes_on_from_the_previous_checkpoint_and_saves_the_damaged_step_anew(
    straight, tmp_path, capfd
):
    workdir = Path(shutil.copytree(straight[0], tmp_path / "run"))
    DAMAGE["truncated"](workdir / "checkpoints" / "40")
    end = run(workdir)
    assert len(capfd.readouterr().err.splitlines()) == 1
    chex.assert_trees_all_equal(words(end.state), straight[1])
    assert deterministic_rows(workdir) == deterministic_rows(straight[0])
    assert (workdir / "checkpoints" / "40.damaged").is_dir()
    chex.assert_trees_all_equal(
        words(checkpoint.restore(workdir / "checkpoints", template()).state), straight[1]
    )


# ---- stopped and resumed ----
@pytest.mark.parametrize("stop", [4, 8])
def test_resumed_equals_uninterrupted_bit_for_bit(straight, tmp_path, stop):
    """Saved by SIGTERM at step 6, where a checkpoint was due anyhow, or 10, where none was; both in
    the middle of a row's interval.
    """

    def feed(first):
        for number in range(first // 2, TOTAL):
            if 2 * number == stop:
                signal.raise_signal(signal.SIGTERM)
            yield 2 * number, RUNNER.put_batch(loop.stack(batch, 2)(number), axis=1)

    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with (
        contextlib.closing(metrics.open_writer(tmp_path, tensorboard=False)) as writer,
        contextlib.closing(checkpoint.open_checkpoints(tmp_path / "checkpoints")) as checkpoints,
    ):
        end = loop.fit(
            RUNNER.init(init, jax.random.key(0)),
            CALL,
            feed,
            total_steps=TOTAL,
            batch_size=BATCH,
            steps_per_call=2,
            log_every=4,
            checkpoint_every=6,
            checkpointer=checkpoints,
            writer=writer,
            extra={"config": {"name": "tiny"}},
            progress=False,
            hooks=[(8, lambda now, at: {"eval_loss": float(now.params["out"][0, 0])})],
        )
    assert end.stopped_by == signal.SIGTERM and end.step == stop + 2 == checkpoint.latest_step(
        tmp_path / "checkpoints"
    )
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
    chex.assert_trees_all_equal(words(run(tmp_path).state), straight[1])
    assert deterministic_rows(tmp_path) == deterministic_rows(straight[0])


def test_a_finished_run_run_again_changes_nothing(straight):
    before = {p: p.read_bytes() for p in straight[0].rglob("*") if p.is_file()}
    end = run(straight[0])
    assert end.step == TOTAL and end.stopped_by is None
    assert {p: p.read_bytes() for p in straight[0].rglob("*") if p.is_file()} == before


def test_a_second_interrupt_aborts(tmp_path):
    with pytest.raises(KeyboardInterrupt), loop._signals() as received:
        signal.raise_signal(signal.SIGINT)
        assert received == [signal.SIGINT]
        signal.raise_signal(signal.SIGINT)


def test_nonfinite_loss_stops_with_one_line_and_leaves_the_last_good_checkpoint(straight, tmp_path):
    """Example 3 of step 17 is poisoned: the call of steps 16 and 17 ends at 18, where a checkpoint
    is due and must not be written.
    """
    with pytest.raises(loop.NonFinite) as caught:
        run(tmp_path, poison=17)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 17), 3)
    level = 10 * float(jax.random.normal(key, (4,))[0])
    message = str(caught.value)
    assert (
        "\n" not in message
        and "the loss is not finite at step 17, example 3 of its batch" in message
    )
    assert (
        f"log-SNR {level:.3f}" in message
        and f"the last good checkpoint is '{tmp_path / 'checkpoints' / '12'}'" in message
    )
    assert (caught.value.step, caught.value.example) == (17, 3)
    assert checkpoint.latest_step(tmp_path / "checkpoints") == 12
    assert deterministic_rows(tmp_path) == [
        row for row in deterministic_rows(straight[0]) if row["step"] <= 16
    ]
    # without the poison it goes on as if nothing had been
    chex.assert_trees_all_equal(words(run(tmp_path).state), straight[1])


@contextlib.contextmanager
def running(workdir, new_rows):
    """A process that trains in workdir, from the moment it has written so many rows of its own
    (their timing tells them apart).
    """
    path = workdir / "metrics.jsonl"
    before = metrics.read_rows(path)
    command = [sys.executable, __file__, str(workdir), "0.05"]
    environ = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environ) as process:
        try:
            while (
                process.poll() is None
                and sum(row not in before for row in metrics.read_rows(path)) < new_rows
            ):
                time.sleep(0.005)
            yield process
        finally:
            process.kill()


def test_killed_at_random_moments_and_terminated_the_run_ends_the_same(straight, tmp_path):
    """kill -9 before and after the first checkpoint, or in the middle of it, then SIGTERM, then to
    the end.
    """
    for rows in (1, 4):
        with running(tmp_path, rows) as process:
            time.sleep(random.uniform(0, 0.1))
            process.kill()
            assert process.wait() == -signal.SIGKILL
    with running(tmp_path, 1) as process:
        process.terminate()
        _, errors = process.communicate()
        assert process.returncode == 0 and "SIGTERM: finishing this call and saving" in errors, (
            errors
        )
    chex.assert_trees_all_equal(words(run(tmp_path).state), straight[1])
    assert deterministic_rows(tmp_path) == deterministic_rows(straight[0])


if __name__ == "__main__":
    run(Path(sys.argv[1]), pause=float(sys.argv[2]), progress=True)
