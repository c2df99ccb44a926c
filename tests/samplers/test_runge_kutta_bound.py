"""Heun at ten evaluations on the mixture: no grid makes it as accurate as DDIM on its own grid.

Ten evaluations are four steps of Heun. Here the five times are placed by minimizing the error over
the very starts on which it is measured, a lower bound for every grid, in NumPy in float64.
tests/samplers has the same comparison for every solver on the grid that suits it.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

MODES, STD = 8, 0.1  # laws.ring_of_gaussians: modes on the unit circle
ANGLE = 2 * np.pi * np.arange(MODES) / MODES
MEANS = np.stack([np.cos(ANGLE), np.sin(ANGLE)], 1)
ENDS = {  # log(sigma / alpha) at t_max and at t_min
    "VP": (np.log(157.0), np.log(0.01)),
    "EDM": (np.log(80.0), np.log(0.002)),
    "RectifiedFlow": (np.log(1e5), np.log(1e-5)),
}


def x0_hat(y, sigma):
    """E[x0 | y] for y = x / alpha = x0 + sigma n."""
    variance = STD**2 + sigma**2
    distance = y[:, None] - MEANS
    log_weight = -(distance**2).sum(-1) / (2 * variance)
    weight = np.exp(log_weight - log_weight.max(1, keepdims=True))
    weight /= weight.sum(1, keepdims=True)
    return (weight[..., None] * (MEANS + STD**2 / variance * distance)).sum(1)


def slope(y, sigma):
    return (y - x0_hat(y, sigma)) / sigma


def euler(y, levels):
    """DDIM: Euler steps in sigma / alpha, then x0-hat."""
    for a, b in zip(levels[:-1], levels[1:]):
        y = y + (b - a) * slope(y, a)
    return x0_hat(y, levels[-1])


def heun(y, levels):
    for a, b in zip(levels[:-1], levels[1:]):
        first = slope(y, a)
        y = y + (b - a) * (first + slope(y + (b - a) * first, b)) / 2
    return x0_hat(y, levels[-1])


def logistic(high, low, n, mean=-1.0, scale=2.0):
    """Levels of grids.logistic, which 'auto' means for DDIM."""
    first, last = (1 / (1 + np.exp(-(end - mean) / scale)) for end in (high, low))
    u = (first + np.linspace(0, 1, n + 1) * (last - first))[:-1]
    return np.exp(np.append(high, mean + scale * np.log(u / (1 - u))[1:]))


@pytest.mark.long
@pytest.mark.parametrize("process", ENDS)
def test_the_best_five_times_of_heun_are_worse_than_ddims_own_ten(process):
    high, low = ENDS[process]
    rng = np.random.default_rng(1)
    starts = rng.normal(size=(64, 2)) * np.exp(high)
    exact = heun(starts, np.exp(np.linspace(high, low, 4001)))

    def error(found):
        return np.sqrt(np.mean((found - exact) ** 2))

    def placed(z):
        share = np.exp(z - z.max())
        fraction = np.append(0, np.cumsum(share / share.sum()))[:-1]
        return error(heun(starts, np.exp(high + fraction * (low - high))))

    ddim = error(euler(starts, logistic(high, low, 10)))
    best = np.inf
    for _ in range(24):
        z = rng.normal(size=5) * 0.7
        for method in ("Powell", "Nelder-Mead"):
            found = minimize(placed, z, method=method, options={"maxiter": 4000, "maxfev": 4000})
            z = found.x
        best = min(best, found.fun)
    print(f"{process}: Heun's best {best:.4f}, DDIM {ddim:.4f}, ratio {best / ddim:.2f}")
    assert ddim < best < 1.3 * ddim
