"""The pure step, its evaluation and the loop, on a regression model of two layers."""

from __future__ import annotations

import json
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.core.errors import UserError
from diffusion_jax.training import ema, loop, metrics, optimizer, sharding, state, step

BATCH = 16


def loss_fn(params, batch, keys, now):
    """Denoise by two dense layers; the level is drawn per example, far enough to leave the bins on
    both sides.
    """
    x = batch["image"]
    eps = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(keys)
    level = 30.0 * jax.vmap(jax.random.uniform)(keys) - 15.0
    out = jnp.tanh((x + 0.3 * eps) @ params["in"]["kernel"] + params["in"]["bias"]) @ params["out"]
    losses = jnp.mean(jnp.square(out - x), axis=-1)
    return losses, {"level": level, "double": 2 * losses}


def init_params(key):
    a, b = jax.random.split(key)
    return {
        "in": {"kernel": 0.5 * jax.random.normal(a, (4, 8)), "bias": jnp.zeros(8)},
        "out": 0.5 * jax.random.normal(b, (8, 4)),
    }


def batch(number):
    return {"image": np.random.default_rng(number).normal(size=(BATCH, 4)).astype(np.float32)}


AVERAGES = ema.halflives((200, 5_000))


@pytest.fixture(scope="module")
def trainer():
    """SGD by calls of two steps: the runner, the compiled call, a fresh state and its feed."""
    tx, rate = optimizer.make_optimizer(
        "sgd", learning_rate=0.1, total_steps=12, warmup=3, momentum=0.9
    )
    runner = sharding.runner(devices=jax.devices()[:1])
    chex.clear_trace_counter()
    two = step.multi_step(
        step.make_train_step(loss_fn, tx, AVERAGES, schedule=rate, forensics=True), 2
    )
    call = runner.compile(chex.assert_max_traces(two, n=1))
    stacked = loop.stack(batch, 2)

    def feed(start):
        return ((2 * n, runner.put_batch(stacked(n), axis=1)) for n in range(start // 2, 100))

    def init(key):
        return state.init_state(init_params(key), tx, AVERAGES, key)

    def fresh():
        return runner.init(init, jax.random.key(1))

    return SimpleNamespace(tx=tx, rate=rate, runner=runner, call=call, feed=feed, fresh=fresh)


def test_step_reports_the_loss_by_level(trainer):
    one = jax.jit(
        step.make_train_step(loss_fn, trainer.tx, AVERAGES, levels=step.Levels(-12, 12, 3))
    )
    before = trainer.fresh()
    _, numbers = one(before, batch(0))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(
        jax.random.fold_in(before.key, 0), jnp.arange(BATCH)
    )
    losses, examples = jax.device_get(
        jax.jit(loss_fn)(before.params, batch(0), keys, step.Now(0, {}))
    )
    level = examples["level"]
    assert np.abs(level).max() > 12
    inside = [level < -4, np.abs(level) < 4, level > 4]  # what is beyond +-12 counts at the ends
    by_level = numbers["loss_by_level"]
    np.testing.assert_array_equal(by_level["edges"], [-12, -4, 4, 12])
    np.testing.assert_array_equal(by_level["count"], [member.sum() for member in inside])
    np.testing.assert_allclose(
        by_level["sum"], [losses[member].sum() for member in inside], rtol=1e-5
    )
    np.testing.assert_allclose(numbers["loss"], losses.mean(), rtol=1e-6)
    np.testing.assert_allclose(numbers["double"], 2 * losses.mean(), rtol=1e-6)
    assert "level" not in numbers and "nonfinite" not in numbers


def test_the_plain_step_is_the_step_with_forensics(trainer):
    """The same state and numbers; only the call with forensics reports what is not finite."""
    plain = step.make_train_step(loss_fn, trainer.tx, AVERAGES, schedule=trainer.rate)
    state, numbers = jax.jit(step.multi_step(plain, 2))(
        trainer.fresh(), next(iter(trainer.feed(0)))[1]
    )
    other, seen = trainer.call(trainer.fresh(), next(iter(trainer.feed(0)))[1])
    assert not seen.pop("nonfinite")["flag"].any() and seen.keys() == numbers.keys()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        (state.params, state.ema, numbers),
        (other.params, other.ema, seen),
    )


def test_step_norms_and_rate(trainer):
    before = trainer.fresh()
    after, numbers = jax.jit(
        step.make_train_step(loss_fn, trainer.tx, AVERAGES, schedule=trainer.rate)
    )(before, batch(0))

    def flat(tree):
        return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]).astype(np.float64)

    np.testing.assert_allclose(numbers["learning_rate"], 0.1 / 3, rtol=1e-6)
    np.testing.assert_allclose(numbers["param_norm"], np.linalg.norm(flat(after.params)), rtol=1e-6)
    np.testing.assert_allclose(
        numbers["update_norm"], np.linalg.norm(flat(after.params) - flat(before.params)), rtol=1e-4
    )
    assert numbers["grad_norm"] > 1  # clipped to 1, so the first SGD update is the rate
    np.testing.assert_allclose(numbers["update_norm"], 0.1 / 3, rtol=1e-5)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_nonfinite_step_leaves_the_state_and_names_the_example(trainer, what):
    def broken(params, batch, keys, now):
        losses, examples = loss_fn(params, batch, keys, now)
        zero = params["out"][0, 0] * 0
        wrong = jnp.where(
            jnp.arange(BATCH) >= 5, 1 / zero if what == "loss" else jnp.sqrt(zero), 0.0
        )  # sqrt has no slope at 0
        return losses + wrong, examples | {"level": jnp.arange(BATCH) / 2.0}

    before = trainer.fresh()
    after, numbers = jax.jit(step.make_train_step(broken, trainer.tx, AVERAGES, forensics=True))(
        before, batch(0)
    )
    chex.assert_trees_all_equal(
        (after.params, after.opt_state, after.ema), (before.params, before.opt_state, before.ema)
    )
    layers, losses, levels = (
        numbers["nonfinite"].pop(name) for name in ("layers", "losses", "levels")
    )
    norms = [np.linalg.norm(leaf) for leaf in jax.tree.leaves(jax.device_get(before.params))]
    np.testing.assert_allclose(layers["parameter"], norms, rtol=1e-6)
    np.testing.assert_array_equal(np.isfinite(losses), what == "gradient" or np.arange(BATCH) < 5)
    np.testing.assert_array_equal(levels, np.arange(BATCH) / 2.0)
    if what == "gradient":  # that of the one parameter whose root was taken
        assert [bool(x) for x in np.isfinite(layers["gradient"])] == [True, True, False]
    report = jax.tree.map(float, numbers["nonfinite"])
    if what == "loss":
        assert report == {"flag": 1, "gradient": 0, "update": 0, "example": 5, "level": 2.5}
    else:
        assert (report["flag"], report["gradient"], report["example"]) == (1, 1, -1) and np.isnan(
            report["level"]
        )


def test_accumulation_must_divide_the_batch(trainer):
    with pytest.raises(UserError, match="accumulate=3 does not divide"):
        jax.eval_shape(
            step.make_train_step(loss_fn, trainer.tx, AVERAGES, accumulate=3),
            trainer.fresh(),
            batch(0),
        )


def test_donation_takes_the_placed_copy_and_nothing_else(trainer):
    mine = jax.tree.map(jnp.copy, trainer.fresh())
    placed = trainer.runner.put_state(mine)
    values = jax.device_get(mine._replace(key=0))
    trainer.call(placed, next(iter(trainer.feed(0)))[1])
    assert placed.params["out"].is_deleted() and placed.ema["200"]["out"].is_deleted()
    chex.assert_trees_all_equal(jax.device_get(mine._replace(key=0)), values)


def test_evaluation_weighs_batches_by_size_and_repeats_itself(trainer):
    state, runner = trainer.fresh(), trainer.runner
    run = runner.compile_eval(step.make_eval_step(loss_fn))
    parts = [batch(0), {"image": batch(1)["image"][:4]}]
    first, again = (
        loop.evaluate(run, state, parts, jax.random.key(5), put_batch=runner.put_batch)
        for _ in range(2)
    )
    assert first == again
    losses, fold = [], jax.vmap(jax.random.fold_in, (None, 0))
    for i, part in enumerate(parts):
        keys = fold(jax.random.fold_in(jax.random.key(5), i), jnp.arange(len(part["image"])))
        losses.append(jax.jit(loss_fn)(state.params, part, keys, step.Now(0, {}))[0])
    np.testing.assert_allclose(first["loss"], np.concatenate(losses).mean(), rtol=1e-6)
    assert len(first["loss_by_level"]) == 12 == len(first["level_edges"]) - 1
    json.dumps(first, allow_nan=False)


def rows_of(trainer, folder, **arguments):
    writer = metrics.open_writer(folder, names=())
    end = loop.fit(
        trainer.fresh(),
        trainer.call,
        trainer.feed,
        total_steps=12,
        batch_size=BATCH,
        steps_per_call=2,
        writer=writer,
        progress="",
        **{"log_every": 2} | arguments,
    )
    writer.close()
    assert end.step == int(end.state.step) == 12 and end.stopped_by is None
    return metrics.read_rows(folder / "metrics.jsonl")


def test_rows_are_means_over_the_interval(trainer, tmp_path):
    """One trace serves every fit of this module (the fixture's chex.assert_max_traces)."""
    fine, coarse = rows_of(trainer, tmp_path / "a"), rows_of(trainer, tmp_path / "b", log_every=8)
    assert [row["step"] for row in fine] == [2, 4, 6, 8, 10, 12] and [
        row["step"] for row in coarse
    ] == [8, 12]
    assert [row["images"] for row in coarse] == [8 * BATCH, 12 * BATCH]
    timing = fine[-1]["timing"]
    assert timing["seconds_per_step"] == BATCH / timing["images_per_s"]
    np.testing.assert_allclose(
        coarse[0]["loss"], np.mean([row["loss"] for row in fine[:4]]), rtol=1e-12
    )
    assert (
        coarse[0].keys()
        == fine[0].keys()
        >= {"grad_norm", "learning_rate", "loss_by_level", "level_edges", "double", "timing"}
    )


def test_hooks_run_at_their_multiples_and_at_the_end(trainer, tmp_path):
    seen = []

    def hook(current, at):
        seen.append((at, int(current.step)))
        return {"eval_loss": float(at)}

    rows = rows_of(trainer, tmp_path, hooks=[(8, hook), (0, hook)], log_every=4)
    assert seen == [(8, 8), (12, 12)]
    assert [(row["step"], "eval_loss" in row) for row in rows] == [
        (4, False),
        (8, False),
        (8, True),
        (12, False),
        (12, True),
    ]


@pytest.mark.parametrize(
    "arguments", [{"log_every": 3}, {"checkpoint_every": 5}, {"hooks": [(1, None)]}]
)
def test_cadences_must_fit_the_calls(trainer, arguments):
    with pytest.raises(UserError, match="must be a multiple of steps_per_call=2"):
        loop.fit(
            trainer.fresh(),
            trainer.call,
            trainer.feed,
            total_steps=12,
            batch_size=BATCH,
            steps_per_call=2,
            **{"log_every": 2, "checkpoint_every": 2} | arguments,
        )


def test_data_at_another_position_is_refused(trainer):
    with pytest.raises(RuntimeError, match="the batch of step 2 where that of step 0 is due"):
        loop.fit(
            trainer.fresh(),
            trainer.call,
            lambda start: trainer.feed(2),
            total_steps=12,
            batch_size=BATCH,
            steps_per_call=2,
            progress="",
        )


@pytest.mark.parametrize(
    "shape, message",
    [({"data": 7, "fsdp": 3}, "does not fit"), ({"fdsp": 2}, "did you mean 'fsdp'")],
)
def test_mesh_mistakes(shape, message):
    with pytest.raises(UserError, match=message):
        sharding.make_mesh(shape)
    with pytest.raises(UserError, match="did you mean 'pmap'"):
        sharding.runner("pmapp")
