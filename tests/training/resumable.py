"""A small run that the tests of checkpoints interrupt and kill.

`python tests/training/resumable.py WORKDIR SECONDS_PER_BATCH` trains in a process of its own."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.training import (
    checkpoint,
    ema,
    loop,
    metrics,
    optimizer,
    restoring,
    sharding,
    state,
    step,
)

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
    step.multi_step(step.make_train_step(loss_fn, TX, AVERAGES, schedule=RATE, forensics=True), 2)
)


def run(workdir: Path, *, total=TOTAL, poison=None, pause=0.0, progress=False, checkpoint_every=6):
    """What a main does: resume where there is a checkpoint, train, save. Rows every 4 steps, so
    checkpoints fall between rows.
    """
    restored = restoring.restore(workdir / "checkpoints", RUNNER.template(init, jax.random.key(0)))
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
        contextlib.closing(metrics.open_writer(workdir, start_step=start, names=())) as writer,
        contextlib.closing(
            checkpoint.Checkpointer(
                workdir / "checkpoints", restored_step=restored and restored.step
            )
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
            progress="images" if progress else "",
        )


def words(tree):
    """A state as numpy, its key as words."""
    return jax.device_get(tree._replace(key=jax.random.key_data(tree.key)))


def deterministic_rows(workdir):
    return [
        {key: value for key, value in row.items() if key != "timing"}
        for row in metrics.read_rows(workdir / "metrics.jsonl")
    ]


def template():
    return RUNNER.template(init, jax.random.key(0))


if __name__ == "__main__":
    run(Path(sys.argv[1]), pause=float(sys.argv[2]), progress=True)
