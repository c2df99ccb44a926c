"""Runs that end the same however often they are stopped or killed."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import chex
import jax
import pytest

from diffusion_jax.training import checkpoint, loop, metrics, nonfinite, restoring
from tests.training import resumable
from tests.training.resumable import (
    BATCH,
    CALL,
    RUNNER,
    TOTAL,
    batch,
    deterministic_rows,
    init,
    run,
    words,
)


@pytest.mark.parametrize("stop", [4, 8])
def test_resumed_equals_uninterrupted_bit_for_bit(uninterrupted, tmp_path, stop):
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
        contextlib.closing(metrics.open_writer(tmp_path, names=())) as writer,
        contextlib.closing(checkpoint.Checkpointer(tmp_path / "checkpoints")) as checkpoints,
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
            progress="",
            hooks=[(8, lambda now, at: {"eval_loss": float(now.params["out"][0, 0])})],
        )
    assert end.stopped_by == signal.SIGTERM and end.step == stop + 2 == restoring.latest_step(
        tmp_path / "checkpoints"
    )
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
    chex.assert_trees_all_equal(words(run(tmp_path).state), uninterrupted[1])
    assert deterministic_rows(tmp_path) == deterministic_rows(uninterrupted[0])


def test_a_finished_run_run_again_changes_nothing(uninterrupted):
    before = {p: p.read_bytes() for p in uninterrupted[0].rglob("*") if p.is_file()}
    end = run(uninterrupted[0])
    assert end.step == TOTAL and end.stopped_by is None
    assert {p: p.read_bytes() for p in uninterrupted[0].rglob("*") if p.is_file()} == before


def test_a_second_interrupt_aborts(tmp_path):
    with pytest.raises(KeyboardInterrupt), loop._signals() as received:
        signal.raise_signal(signal.SIGINT)
        assert received == [signal.SIGINT]
        signal.raise_signal(signal.SIGINT)


def test_nonfinite_loss_stops_with_one_line_and_leaves_the_last_good_checkpoint(
    uninterrupted, tmp_path
):
    """Example 3 of step 17 is poisoned: the call of steps 16 and 17 ends at 18, where a checkpoint
    is due and must not be written.
    """
    with pytest.raises(nonfinite.NonFinite) as caught:
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
    assert restoring.latest_step(tmp_path / "checkpoints") == 12
    assert deterministic_rows(tmp_path) == [
        row for row in deterministic_rows(uninterrupted[0]) if row["step"] <= 16
    ]
    # without the poison it resumes as if nothing had happened
    chex.assert_trees_all_equal(words(run(tmp_path).state), uninterrupted[1])


@contextlib.contextmanager
def running(workdir, new_rows):
    """A process that trains in workdir, from the moment it has written so many rows of its own
    (their timing tells them apart).
    """
    path = workdir / "metrics.jsonl"
    before = metrics.read_rows(path)
    command = [sys.executable, resumable.__file__, str(workdir), "0.05"]
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


def test_killed_at_random_moments_and_terminated_the_run_ends_the_same(uninterrupted, tmp_path):
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
    chex.assert_trees_all_equal(words(run(tmp_path).state), uninterrupted[1])
    assert deterministic_rows(tmp_path) == deterministic_rows(uninterrupted[0])
