"""Optimizers by name, learning-rate schedules and clipping."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.core.errors import UserError
from diffusion_jax.training import optimizer


@pytest.mark.parametrize("name", ["adam", "adamw", "lion", "nadamw", "contrib.muon"])
def test_optimizers_by_name_descend(name):
    tx, _ = optimizer.make_optimizer(name, learning_rate=0.1, total_steps=10)
    w = {"w": jnp.ones((2, 2))}

    @jax.jit
    def move(w, memory):
        updates, memory = tx.update(w, memory, w)  # the gradient of |w|^2 / 2
        return jax.tree.map(jnp.add, w, updates), memory

    memory = tx.init(w)
    for _ in range(3):
        w, memory = move(w, memory)
    assert jnp.all(w["w"] < 1)


def test_clipping_is_by_global_norm():
    gradient = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([4.0])}  # norm 5
    for clip, scale in ((1.0, 0.2), (10.0, 1.0), (0, 1.0)):
        tx, _ = optimizer.make_optimizer("sgd", learning_rate=1.0, total_steps=10, clip=clip)
        updates, _ = tx.update(gradient, tx.init(gradient), gradient)
        np.testing.assert_allclose(updates["b"], -4.0 * scale, rtol=1e-6)


@pytest.mark.parametrize(
    "kind, values",
    [
        ("constant", {10: 2.0, 60: 2.0, 110: 2.0}),
        ("linear", {10: 2.0, 60: 1.0 + 0.1, 110: 0.2, 500: 0.2}),
        ("cosine", {10: 2.0, 60: 1.0 + 0.1, 110: 0.2, 500: 0.2}),
        ("rsqrt", {10: 2.0, 40: 1.0, 160: 0.5}),
    ],
)
def test_schedules(kind, values):
    """Warm-up over 10 of 110 steps to 2, to a tenth of it at the end; rsqrt halves at four times
    its reference step.
    """
    rate = optimizer.learning_rate_schedule(
        2.0, total_steps=110, warmup=10, schedule=kind, final=0.1
    )
    np.testing.assert_allclose([rate(0), rate(4), rate(9)], [0.2, 1.0, 2.0], rtol=1e-6)
    for at, value in values.items():
        np.testing.assert_allclose(rate(at), value, rtol=1e-6)


def test_the_rate_is_computed_once_for_all_parameters():
    """The compiled program has one cosine, not one for each leaf."""
    rate = optimizer.learning_rate_schedule(2.0, total_steps=110, warmup=10, schedule="cosine")

    @jax.jit
    def move(step, leaves):
        return [leaf - rate(step) * leaf for leaf in leaves]

    program = move.lower(jnp.int32(60), [jnp.ones(8)] * 3).compile().as_text()
    assert program.count(" cosine(") == 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"name": "adanw"}, "unknown optimizer 'adanw'.*adamw"),
        ({"name": "chain"}, "unknown optimizer 'chain'"),
        ({"name": "contrib.mu"}, "unknown optimizer"),
        ({"name": "sgd", "b1": 0.9}, r"optimizer.b1=0.9: sgd has no such argument .*momentum"),
        (
            {"name": "adam", "weight_decay": 0.1},
            "optimizer.weight_decay=0.1: adam has no such argument",
        ),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"clip": -1.0}, "optimizer.clip=-1.0"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
    ],
)
def test_optimizer_mistakes(arguments, message):
    with pytest.raises(UserError, match=message):
        optimizer.make_optimizer(**{"learning_rate": 0.1, "total_steps": 10} | arguments)
