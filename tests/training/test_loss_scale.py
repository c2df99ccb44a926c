"""Scaled losses: gradients that float16 loses without a scale, and overflows."""

from __future__ import annotations

import functools
import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits
from diffusion_jax.assembly import experiment, train, trainer
from diffusion_jax.core.errors import UserError
from diffusion_jax.training import (
    ema,
    loss_scale,
    metrics,
    nonfinite,
    optimizer,
    restoring,
    state,
    step,
)
from tests.training.kill_battery import digest
from tests.training.test_nonfinite import poison
from tests.training.tiny_run import STEPS, config

SMALL = 1e-9  # float16 has no numbers below 6e-8
AVERAGES = ema.halflives((20,))
X = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)


def loss_fn(params, batch, keys, now):
    """The error of a product in float16, times a weight; its gradient by w is 2 (w x - y) x."""
    product = (params["w"].astype(jnp.float16) * batch["x"].astype(jnp.float16)).astype(jnp.float32)
    return batch["weight"] * jnp.sum(jnp.square(product - batch["x"]), axis=-1), {}


def batch(weight=SMALL):
    return {"x": X, "weight": np.full(4, weight, np.float32)}


@functools.cache
def program(scaling):
    """The compiled step, and the state before it."""
    tx, _ = optimizer.make_optimizer(
        "sgd", learning_rate=0.1 / SMALL, total_steps=100, clip=0.0, momentum=0.5
    )
    tx = loss_scale.with_state(scaling, tx)
    one = step.make_train_step(loss_fn, tx, AVERAGES, forensics=True, scaling=scaling)
    fresh = state.init_state({"w": jnp.full(8, 0.5)}, tx, AVERAGES, jax.random.key(0))
    return jax.jit(one), fresh


def test_a_gradient_that_float16_loses_trains_with_a_scale():
    one, before = program(None)
    found, numbers = one(before, batch())
    assert numbers["grad_norm"] == 0 and np.all(found.params["w"] == 0.5)
    one, before = program(loss_scale.dynamic())
    found, numbers = one(before, batch())
    gradient = 2 * SMALL * np.mean((0.5 * X - X) * X, axis=0)
    np.testing.assert_allclose(numbers["grad_norm"], np.linalg.norm(gradient), rtol=2e-3)
    np.testing.assert_allclose(found.params["w"], 0.5 - 0.1 / SMALL * gradient, rtol=2e-3)
    assert numbers["log2_loss_scale"] == 20 and "overflow" in numbers["nonfinite"]
    np.testing.assert_allclose(found.opt_state.log2_scale, 20.001, rtol=1e-7)
    for _ in range(60):
        found, numbers = one(found, batch())
    assert numbers["loss"] < 1e-2 * SMALL
    # a constant scale needs no state, and gives the same gradient
    one, before = program(loss_scale.fixed(2.0**20))
    found, numbers = one(before, batch())
    np.testing.assert_allclose(found.params["w"], 0.5 - 0.1 / SMALL * gradient, rtol=2e-3)
    assert "log2_loss_scale" not in numbers


def test_an_overflow_lowers_the_scale_and_changes_nothing_else():
    """The loss is finite; its gradient times 2^20 is not, in float16."""
    one, before = program(loss_scale.dynamic())
    before, _ = one(before, batch())
    found, numbers = one(before, batch(1.0))
    assert numbers["nonfinite"]["overflow"] and not numbers["nonfinite"]["flag"]
    assert np.isfinite(numbers["loss"]) and not np.isfinite(numbers["grad_norm"])
    same = jax.tree.map(
        np.array_equal, *((s.params, s.ema, s.opt_state.optimizer) for s in (before, found))
    )
    assert all(jax.tree.leaves(same)) and found.step == before.step + 1
    np.testing.assert_allclose(found.opt_state.log2_scale, 19.001, rtol=1e-7)
    # until it fits
    steps = 1
    while numbers["nonfinite"]["overflow"]:
        found, numbers = one(found, batch(1.0))
        steps += 1
    assert 2 < steps < 20 and not numbers["nonfinite"]["flag"]
    assert np.any(found.params["w"] != before.params["w"])


@pytest.mark.parametrize("weight, log2", [(np.inf, 8.0), (1e9, 0.0), (1e9, 0.5)])
def test_what_no_scale_can_mend_is_not_finite(weight, log2):
    """A loss that is not finite, and a gradient at a scale of 1, which meet the guard."""
    one, before = program(loss_scale.dynamic())
    start = before.opt_state._replace(log2_scale=jnp.float32(log2))
    found, numbers = one(before._replace(opt_state=start), batch(weight))
    overflow = log2 == 0.5
    assert bool(numbers["nonfinite"]["flag"]) != overflow
    assert bool(numbers["nonfinite"]["overflow"]) == overflow
    assert found.opt_state.log2_scale == (0.0 if overflow else log2)
    assert np.all(found.params["w"] == 0.5)
    if not overflow:
        assert nonfinite.kind(numbers["nonfinite"]) == ("loss" if weight == np.inf else "gradient")


def test_numbers_that_are_not_finite_are_replaced():
    grads = {"a": jnp.float32([np.nan, np.inf, -np.inf, 8.0]), "b": jnp.float32(2.0)}
    for scaling, most in (
        (loss_scale.fixed(4.0, True), 0.0),
        (loss_scale.fixed(4.0, True, 6.0), 6),
    ):
        found, replaced = loss_scale.unscaled(scaling, grads, jnp.float32(4.0))
        np.testing.assert_array_equal(found["a"], [0.0, most / 4, -most / 4, 2.0])
        assert found["b"] == 0.5 and replaced
    assert not loss_scale.unscaled(scaling, {"b": grads["b"]}, jnp.float32(4.0))[1]
    one, before = program(loss_scale.fixed(2.0**20, replace=True))
    found, numbers = one(before, batch(1.0))
    assert numbers["nonfinite"]["replaced"] and not numbers["nonfinite"]["flag"]
    assert np.isfinite(found.params["w"]).all() and np.isfinite(numbers["grad_norm"])


def test_overflows_are_counted_and_left_out_of_means():
    def call(*flags):
        found = {
            name: np.array([name == flag for flag in flags])
            for name in ("flag", "overflow", "replaced")
        }
        return {"loss": np.float32(range(len(flags))), "nonfinite": found}

    tally = metrics.add(metrics.empty_tally(), call("", "overflow", "flag", "replaced"))
    tally = metrics.add(json.loads(json.dumps(tally)), call("overflow"))
    assert metrics.row(tally) == {"loss": 1.5, "skipped": 1, "overflows": 2, "replaced": 1}


@pytest.mark.long
def test_a_run_with_an_overflow_goes_on_and_resumes_exactly(monkeypatch, tmp_path, at):
    poison(monkeypatch)  # the gradient of step 14 is NaN and its loss finite
    chosen = config(training__loss_scale="dynamic(growth=0.5)")
    assert train.train(chosen, str(tmp_path / "a"))
    rows = metrics.read_rows(tmp_path / "a" / "metrics.jsonl")
    assert [row["step"] for row in rows if "overflows" in row] == [15]
    assert rows[4]["overflows"] == 1 and np.isfinite(rows[4]["grad_norm"])
    model = experiment.assemble(chosen, (2,))
    parts = trainer.training(model)
    template = parts.runner.template(parts.init, jax.random.key(0))
    end = restoring.restore(tmp_path / "a" / "checkpoints", template).state
    assert end.opt_state.log2_scale == 20 + 0.5 * (STEPS - 1) - 1
    at(17, lambda: signal.raise_signal(signal.SIGTERM))
    assert not train.train(chosen, str(tmp_path / "b"))
    assert train.train(chosen, str(tmp_path / "b"))
    assert digest(model, tmp_path / "a", STEPS) == digest(model, tmp_path / "b", STEPS)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"training__loss_scale": "dynamik()"}, "scaling of the loss 'dynamik'.*'dynamic'"),
        ({"training__loss_scale": "dynamic(growth=2.0)"}, "growth=2.0"),
        ({"training__loss_scale": "fixed(scale=0.0)"}, "scale=0.0"),
    ],
)
def test_mistakes(tmp_path, changes, words):
    chosen = config().copy_and_resolve_references()
    with chosen.unlocked():
        chosen.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    with pytest.raises(UserError, match=words):
        train.train(chosen, str(tmp_path / "run"))


def test_float16_without_a_scaled_loss_is_refused(tmp_path):
    chosen = digits.get_config("vp")
    chosen.update_from_flattened_dict(
        {"model.dtype": "float16", "model.width": 8, "training.trackers": ()}
    )
    words = "config.model.dtype=float16 loses small gradients .*loss_scale='dynamic"
    with pytest.raises(UserError, match=words):
        train.train(chosen, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
