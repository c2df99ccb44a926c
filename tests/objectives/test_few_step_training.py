"""A small network finds the consistency function or the average velocity by every objective."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusion_jax.core import arrays
from diffusion_jax.denoisers import parameterization
from diffusion_jax.objectives import consistency, meanflow, times
from diffusion_jax.objectives.base import FewStepNetworks
from diffusion_jax.samplers import base
from tests.objectives.exact_functions import EDM, FLOW, NORMAL, TRIG, network

# objective, process, parameterization, and the RMS error of the jump from noise to data, whose
# standard deviation is 0.73
PRECONDITIONED = parameterization.consistency(sigma_data=0.7)


TRIGONOMETRIC, VELOCITY = (
    parameterization.edm(noise_input="time"),
    parameterization.velocity(noise_input="time"),
)


LEARNED = {
    "cd": (consistency.distillation, EDM, PRECONDITIONED, 0.05),
    "ct": (functools.partial(consistency.training, s0=4, s1=40), EDM, PRECONDITIONED, 0.1),
    "ict": (functools.partial(consistency.improved, s1=160), EDM, PRECONDITIONED, 0.06),
    "ect": (
        functools.partial(consistency.easy, stages=6),
        EDM,
        parameterization.edm(sigma_data=0.7),
        0.06,
    ),
    "sct": (
        functools.partial(consistency.continuous, time=times.uniform()),
        TRIG,
        TRIGONOMETRIC,
        0.06,
    ),
    "scd": (
        functools.partial(consistency.continuous_distillation, time=times.uniform()),
        TRIG,
        TRIGONOMETRIC,
        0.06,
    ),
    "meanflow": (
        functools.partial(meanflow.meanflow, time=times.uniform(), ratio=0.75),
        FLOW,
        VELOCITY,
        0.1,
    ),
    "imf": (
        functools.partial(meanflow.improved, time=times.uniform(), ratio=0.75),
        FLOW,
        VELOCITY,
        0.1,
    ),
}


def fresh(key, sizes=(16, 64, 64, 2)):
    keys = jax.random.split(key, len(sizes) - 1)

    def scale(n, last):
        return 0.0 if last else 1 / np.sqrt(n)

    return [
        (scale(n, m == 2) * jax.random.normal(k, (n, m)), jnp.zeros(m))
        for k, n, m in zip(keys, sizes, sizes[1:])
    ]


IN_MAKE_TEST = ("cd", "ct", "sct", "meanflow")  # one of each kind
REST = [pytest.param(name, marks=pytest.mark.long) for name in LEARNED if name not in IN_MAKE_TEST]


@pytest.mark.parametrize("name", [*IN_MAKE_TEST, *REST])
def test_a_small_network_finds_the_flow(name):
    """Adam, 1500 steps of 256: the network's jump from noise to data is the trajectory's end, to
    the error stated above.
    """
    make, process, pair, allowed = LEARNED[name]
    objective, steps, batch = make(process), 1500, 256
    tx = optax.adam(optax.cosine_decay_schedule(4e-3, steps))

    def denoiser(params):
        return parameterization.denoiser(network, params, pair, process)

    def step(carry, k):
        params, slow, opt_state = carry
        progress, keys = (
            k / steps,
            arrays.example_keys(jax.random.fold_in(jax.random.key(0), k), batch),
        )
        drawn = objective.draw(keys, NORMAL.draw(arrays.fold_in(keys, 9), batch), progress)

        def loss(params):
            frozen = denoiser(jax.lax.stop_gradient(params))
            target = denoiser(slow) if objective.ema_rate else frozen
            everyone = FewStepNetworks(denoiser(params), frozen, target, NORMAL.denoise(process))
            return objective.loss(everyone, drawn, None, progress).mean()

        updates, opt_state = tx.update(jax.grad(loss)(params), opt_state)
        params = optax.apply_updates(params, updates)
        if objective.ema_rate:
            slow = arrays.tree_lerp(slow, params, 1 - objective.ema_rate(progress))
        return (params, slow, opt_state), None

    params = fresh(jax.random.key(0))
    params = jax.jit(lambda p: jax.lax.scan(step, (p, p, tx.init(p)), jnp.arange(steps))[0][0])(
        params
    )
    x, t = base.start(process, jax.random.key(5), (1000, 2)), jnp.full(1000, process.t_max)
    found = denoiser(params)(x, t).x0
    wanted = NORMAL.flow(process, x, t, jnp.full(1000, process.t_min)) / process.alpha(
        jnp.float32(process.t_min)
    )
    error = float(jnp.sqrt(jnp.mean((found - wanted) ** 2)))
    print(name, error)
    assert error < allowed
