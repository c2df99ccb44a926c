"""Loss-aware times: the history of losses, unbiased weights, and the bound that they train."""

from __future__ import annotations

from collections import deque

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import digits
from diffusion_jax.assembly import trainer
from diffusion_jax.assembly.experiment import assemble
from diffusion_jax.objectives import learned_variance, resampling
from diffusion_jax.objectives.resampling import LENGTH, NAME, LossHistory, Resampling
from diffusion_jax.samplers import grids
from diffusion_jax.training import ema, state, step
from tests.experiments.small_runs import small
from tests.likelihood.chains import CHAIN, bound_of, exact_denoiser, pixels

LEVELS = Resampling(5, 0.1, 0.5)
TIMES = np.linspace(0.1, 0.5, 5)


def probabilities(history):
    chances = np.asarray(resampling._chances(history), np.float64)
    return chances / chances.sum()


def filled(losses):
    return LossHistory(jnp.asarray(losses, jnp.float32), jnp.full(len(losses), LENGTH, jnp.int32))


def test_the_history_keeps_the_last_losses_of_every_level():
    """A queue for each level, as improved DDPM describes it; batches with many of one level too."""
    rng, history = np.random.default_rng(0), LEVELS.fresh()
    queues = [deque([], LENGTH) for _ in range(5)]
    update = jax.jit(LEVELS.update)
    for _ in range(14):
        index = rng.choice(5, 64, p=[0.02, 0.03, 0.05, 0.3, 0.6])
        losses = rng.exponential(size=64).astype(np.float32)
        history = update(history, jnp.asarray(TIMES[index], jnp.float32), losses)
        for i, loss in zip(index, losses, strict=True):
            queues[i].append(loss)
        moments = [np.sqrt(np.mean(np.square(queue))) if queue else 0.0 for queue in queues]
        if all(len(queue) == LENGTH for queue in queues):
            shares = 0.999 * np.array(moments) / sum(moments) + 0.001 / 5
            np.testing.assert_allclose(probabilities(history), shares, rtol=1e-5)
        else:
            np.testing.assert_allclose(probabilities(history), 0.2, rtol=1e-6)
    assert all(len(queue) == LENGTH for queue in queues)


def test_times_are_drawn_by_their_losses_and_their_weights_are_unbiased():
    history = filled(np.outer([8.0, 1.0, 0.0, 1e-3, 4.0], np.ones(LENGTH)))
    p, count = probabilities(history), 20_000
    t, weights = LEVELS.draw(jax.random.split(jax.random.key(0), count), history)
    index = np.rint((np.asarray(t) - 0.1) / 0.1).astype(int)
    np.testing.assert_allclose(weights, 1 / (5 * p[index]), rtol=1e-5)  # so E f / (T p) = mean f
    found = np.bincount(index, minlength=5) / count
    assert np.all(np.abs(found - p) < 4.5 * np.sqrt(p * (1 - p) / count) + 1e-6)
    again = LEVELS.draw(jax.random.split(jax.random.key(0), count)[5:6], history)[0]
    assert again[0] == t[5]  # of its own key alone


def test_the_bound_of_a_batch_is_the_whole_bound_under_any_history():
    steps = 8
    objective = learned_variance.vlb(CHAIN, steps)
    denoise, x0 = exact_denoiser(CHAIN, grids.uniform(CHAIN, steps)), pixels(8192)
    history = filled(np.random.default_rng(0).uniform(0.5, 2.0, (steps, LENGTH)))

    @jax.jit
    def weighted(keys):
        t, weights = objective.resampling.draw(keys, history)
        return weights * objective.loss(denoise, objective.at(keys, x0, t), None)

    found = np.asarray(weighted(jax.random.split(jax.random.key(2), 8192)))
    bound = bound_of(steps, "learned")
    whole = float(np.mean(bound["diffusion"] + bound["reconstruction"]))
    assert abs(found.mean() - whole) < 4 * found.std() / np.sqrt(8192)


def test_a_mapped_step_keeps_the_losses_of_all_devices():
    """Two devices, by vmap over the axis of the devices, keep what one keeps of the whole batch."""

    def loss(params, batch, keys, now):
        losses = params["w"] * batch["t"]
        return losses, {"time": batch["t"], "unweighted": losses}

    def remember(averages, examples):
        arguments = averages[NAME], examples["time"], examples["unweighted"]
        return averages | {NAME: LEVELS.update(*arguments)}

    averages, tx = ema.frozen(NAME, LEVELS.fresh()), optax.sgd(0.0)
    first = state.init_state({"w": jnp.ones(())}, tx, averages, jax.random.key(0))
    batch = {"t": jnp.asarray(TIMES[[0, 1, 1, 4, 1, 2]], jnp.float32)}
    options = {"remember": remember}
    whole, metrics = step.make_train_step(loss, tx, averages, **options)(first, batch)
    assert not {"time", "unweighted"} & metrics.keys()
    mapped = step.make_train_step(loss, tx, averages, axis_name="d", **options)
    parts = jax.tree.map(lambda x: x.reshape(2, 3), batch)
    after, _ = jax.vmap(mapped, in_axes=(None, 0), axis_name="d")(first, parts)
    for one, two in zip(whole.ema[NAME], after.ema[NAME], strict=True):
        np.testing.assert_array_equal(one, two[0])
        np.testing.assert_array_equal(one, two[1])
    assert whole.ema[NAME].counts.tolist() == [1, 3, 1, 0, 1]


@pytest.mark.long
def test_a_run_keeps_its_history_in_the_state():
    config = small(digits.get_config("iddpm"))
    config.objective = "learned_variance.vlb(steps=4000)"
    experiment = assemble(config, (8, 8, 1), 10)
    parts = trainer.training(experiment, jax.devices()[:1])
    now = parts.runner.init(parts.init, jax.random.key(0))
    batch = {"image": np.zeros((1, 16, 8, 8, 1), np.float32), "label": np.zeros((1, 16), np.int32)}
    now, metrics = parts.step(now, parts.runner.put_batch(batch, axis=1))
    assert int(now.ema[NAME].counts.sum()) == 16 and np.isfinite(metrics["loss"]).all()
    held_out = parts.evaluate(now, jax.tree.map(lambda x: x[0], batch), jax.random.key(1))
    assert np.isfinite(held_out["loss"])
