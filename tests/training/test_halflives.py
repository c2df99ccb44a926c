"""Moving averages with half-lives in images, against their closed forms."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.core.errors import UserError
from diffusion_jax.training import ema


def test_ema_of_constant_parameters_halves_its_distance_each_halflife():
    average = ema.halflives((100,), ramp=None)
    value = {"100": jnp.float32(3.0)}
    for k in range(40):
        value = average.update(value, jnp.float32(1.0), jnp.float32(10 * k), 10)
        # e_k - c = (e_0 - c) beta^k with beta = 0.5^(10/100)
        np.testing.assert_allclose(value["100"] - 1.0, 2.0 * 0.5 ** ((k + 1) / 10), rtol=2e-5)


def test_ema_of_linear_parameters_lags_by_the_geometric_sum():
    average, beta = ema.halflives((50,), ramp=0), 0.5 ** (8 / 50)
    value = {"50": jnp.float32(0.0)}
    for k in range(1, 60):
        value = average.update(value, jnp.float32(k), jnp.float32(8 * (k - 1)), 8)
    # d_k = beta (d_{k-1} + 1), d_0 = 0  =>  e_k = k - beta (1 - beta^k) / (1 - beta)
    np.testing.assert_allclose(value["50"], 59 - beta * (1 - beta**59) / (1 - beta), rtol=1e-5)


@pytest.mark.parametrize(
    "seen, share", [(0, 1.0), (1000, 0.5), (10_000_000, 1 - 0.5 ** (50 / 50_000))]
)
def test_ema_ramp(seen, share):
    """h = min(50k, 0.05 seen): nothing seen forgets the start, 1000 seen has half-life 50 = one
    batch, much seen has 50k.
    """
    value = ema.halflives((50_000,), ramp=0.05).update(
        {"50k": jnp.float32(0)}, jnp.float32(1), jnp.float32(seen), 50
    )
    np.testing.assert_allclose(value["50k"], share, rtol=1e-5)


def test_ema_names():
    assert [ema.name(h) for h in (500, 2_000, 50_000, 1_500_000)] == ["500", "2k", "50k", "1.5M"]
    with pytest.raises(UserError, match="half-lives"):
        ema.halflives((500, 500))
