"""Few-step objectives: the papers' own formulas, curricula and distances."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import norm

from diffusion_jax.core import arrays
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Prediction
from diffusion_jax.objectives import consistency, distance, meanflow, weighting
from diffusion_jax.objectives.base import FewStepExample, FewStepNetworks
from diffusion_jax.processes import gaussian, schedules
from diffusion_jax.samplers import grids
from tests.objectives.exact_functions import EDM, FLOW, TRIG


def anything(x, t, cond=None):
    """Some smooth function (x, t, s) -> (B, 2) that is no one's solution."""
    s = (cond or {}).get("to", jnp.zeros_like(t))
    return (
        jnp.sin(1.3 * x + t[:, None])
        + 0.4 * x[:, ::-1] * jnp.cos(2 * t + s)[:, None]
        + 0.3 * s[:, None]
    )


def points(count=6):
    """x0, eps, t, s in float64."""
    rng = np.random.default_rng(0)
    t, s = np.sort(rng.uniform(0.05, 0.95, (2, count)), axis=0)[::-1]
    return (
        *(jnp.asarray(a) for a in rng.standard_normal((2, count, 2))),
        jnp.asarray(t),
        jnp.asarray(s),
    )


def networks(process, decode):
    def student(x, t, cond=None):
        return decode(x, t, anything(x, t, cond))

    return FewStepNetworks(student, student, student)


def of_velocity(x, t, u):
    """On rectified flow, from u = eps - x0."""
    return Prediction(x - t[:, None] * u, x + (1 - t[:, None]) * u)


@pytest.mark.parametrize("improved", [False, True], ids=["meanflow", "imf"])
def test_meanflow_is_the_papers(improved):
    """u_theta - [v - (t - s) (v . du/dx + du/dt)] (eq. 10 f.); iMF: V - v = u + (t - s) (u(x, t, t)
    . du/dx + du/dt) - v.
    """
    with jax.enable_x64(True):
        x0, eps, t, s = points()
        x_t, v = (1 - t[:, None]) * x0 + t[:, None] * eps, eps - x0

        def u(x, t):
            return anything(x, t, {"to": s})

        along = anything(x_t, t, {"to": t}) if improved else v
        now, slope = jax.jvp(u, (x_t, t), (along, jnp.ones_like(t)))
        expected = jnp.mean((now + (t - s)[:, None] * slope - v) ** 2, axis=1)
        make = meanflow.improved if improved else meanflow.meanflow
        for p in (0.0, 1.0):
            found = make(FLOW, p=p).loss(
                networks(FLOW, of_velocity), FewStepExample(x_t, t, x0, eps, s), None, 1.0
            )
            assert_allclose(found, expected / (expected + 1e-3) ** p, rtol=1e-9)
        if not improved:  # s = t: flow matching; and with guidance inside, eq. 19 with kappa = 0
            drawn, there = FewStepExample(x_t, t, x0, eps, t), anything(x_t, t, {"to": t})
            found = make(FLOW, p=0.0).loss(networks(FLOW, of_velocity), drawn, None, 1.0)
            assert_allclose(found, jnp.mean((there - v) ** 2, 1), rtol=1e-9)
            found = make(FLOW, p=0.0, guidance=2.0).loss(
                networks(FLOW, of_velocity), drawn, None, 1.0
            )
            assert_allclose(found, jnp.mean((there - (2 * v - there)) ** 2, 1), rtol=1e-9)


def test_the_continuous_loss_is_algorithm_1_of_scm():
    """In TrigFlow, x0-hat = cos x - sin sigma_d F: |F - F_- - g / (|g| + c)|^2 with their g at r =
    1/2.
    """
    with jax.enable_x64(True):
        sd, (x0, eps, t, _) = 0.5, points()
        phi = np.pi / 2 * t
        cos, sin = jnp.cos(phi)[:, None], jnp.sin(phi)[:, None]
        x_t, z = cos * x0 + sin * sd * eps, sd * eps

        def F(x, phi):
            return anything(x / sd, phi)

        _, dF = jax.jvp(F, (x_t, phi), (cos * z - sin * x0, jnp.ones_like(phi)))
        g = -(cos**2) * (sd * F(x_t, phi) - (cos * z - sin * x0)) - 0.5 * cos * sin * (
            x_t + sd * dF
        )
        g = g / (
            jnp.sqrt(jnp.mean(g**2, 1, keepdims=True)) + 0.1
        )  # of the data's scale, as algorithm 1 has it

        def decode(x, t, _):
            F_hat, phi = anything(x / sd, np.pi / 2 * t), (np.pi / 2 * t)[:, None]
            return gaussian.from_x0(TRIG, x, jnp.cos(phi) * x - jnp.sin(phi) * sd * F_hat, t)

        found = consistency.continuous(TRIG, warmup=0.2).loss(
            networks(TRIG, decode), FewStepExample(x_t, t, x0, eps, t), None, 0.1
        )
        assert_allclose(found, jnp.mean(g**2, 1), rtol=1e-7)


@pytest.mark.parametrize(
    "process", [EDM, FLOW, TRIG, schedules.VP()], ids=lambda p: type(p).__name__
)
def test_the_continuous_loss_is_the_limit_of_steps(process):
    """The gradient of |f(x_t) - f_-(x_s)|^2 / (phi_t - phi_s) as s -> t, times cot(phi) / sd, is
    that of the limit.
    """
    with jax.enable_x64(True):
        x0, eps, t, _ = points()
        t, sd = process.t_min + t * (process.t_max - process.t_min) * 0.5, 0.5
        x_t = gaussian.corrupt(process, x0, eps, t).x_t
        phi = gaussian.angle(process, t, sd)
        s = t - 1e-6 * t
        step = phi - gaussian.angle(process, s, sd)

        def gradient(objective, s):
            def total(w):
                student, constant = (
                    lambda x, t, cond=None, w=w: gaussian.from_x0(process, x, anything(x, t) * w, t)
                    for w in (w, jnp.ones((len(t), 1)))
                )
                return objective.loss(
                    FewStepNetworks(student, constant, constant),
                    FewStepExample(x_t, t, x0, eps, s),
                    None,
                    1.0,
                ).sum()

            return jax.grad(total)(jnp.ones((len(t), 1)))[:, 0]

        limit = gradient(consistency.continuous(process, c=1e6), s) * 1e6
        steps = gradient(consistency.discrete_time(process, None, distance.squared()), s)
        assert_allclose(limit, steps / step / jnp.tan(phi) / sd, rtol=2e-4)


def test_curricula_are_the_papers():
    """N and mu at the ends (Song et al. 2023, appendix C; Song & Dhariwal 2024, table 1), from
    adjacent times that were drawn.
    """

    def count(objective, progress):  # of a grid in u^(1/7), from the step between adjacent times
        drawn = objective.draw(
            arrays.example_keys(jax.random.key(0), 4), jnp.zeros((4, 1)), progress
        )

        def rho(t):
            return (20.0 * t) ** (1 / 7)

        return np.asarray((20 ** (1 / 7) - 0.002 ** (1 / 7)) / (rho(drawn.t) - rho(drawn.s)) + 1)

    training = consistency.training(EDM, s0=2, s1=150)
    assert_allclose([count(training, p)[0] for p in (0.0, 1.0)], [2, 151], rtol=5e-3)
    assert_allclose(training.ema_rate(0.0), np.exp(2 * np.log(0.9) / 2), rtol=1e-6)
    improved = consistency.improved(EDM, s0=10, s1=160)  # 10, 20, 40, 80, 160, each a fifth
    assert_allclose(
        [count(improved, p)[1] for p in (0.0, 0.19, 0.21, 0.5, 1.0)],
        [11, 11, 21, 41, 161],
        rtol=5e-3,
    )
    assert improved.ema_rate is None
    assert_allclose(count(consistency.distillation(EDM), 0.3), 18, rtol=1e-3)


def test_improved_training_draws_levels_by_their_mass():
    """p(i) ~ erf((log u_{i+1} - mean) / (sqrt 2 std)) - erf((log u_i - mean) / (sqrt 2 std)) (Song
    & Dhariwal 2024, eq. 10).
    """

    grid = np.asarray(grids.karras(EDM, 11))[::-1] * 20.0
    mass = np.diff(norm.cdf(np.log(grid), -1.1, 2.0))
    t = (
        consistency.improved(EDM, s0=10)
        .draw(arrays.example_keys(jax.random.key(0), 20_000), jnp.zeros((20_000, 1)), 0.0)
        .t
    )
    found = np.histogram(np.asarray(t) * 20.0, grid * 1.001)[0] / 20_000
    assert_allclose(found, mass / mass.sum(), atol=0.01)


def test_easy_tuning_goes_from_diffusion_to_consistency():
    """u_s = u_t (1 - (1 + 8 sigmoid(-u_t)) / 2^a), not below u_min: at a = 1 that is u_min for all
    u_t < 2, at a = 8 near t.
    """
    objective, keys = consistency.easy(EDM, stages=8), arrays.example_keys(jax.random.key(0), 2000)
    for progress, a in ((0.0, 1), (0.99, 8)):
        drawn = objective.draw(keys, jnp.zeros((2000, 1)), progress)
        u, s = 20.0 * np.asarray(drawn.t), 20.0 * np.asarray(drawn.s)
        assert_allclose(s, np.maximum(u * (1 - (1 + 8 / (1 + np.exp(u))) / 2**a), 0.002), rtol=1e-3)
    assert np.all(s[u > 0.01] > 0.95 * u[u > 0.01])


def test_distances():
    x, y = jnp.zeros((2, 3, 4)), jnp.stack([jnp.full((3, 4), 3e-3), jnp.full((3, 4), 7.0)])
    assert_allclose(distance.squared()(x, y), [9e-6, 49.0], rtol=1e-6)
    assert_allclose(
        distance.pseudo_huber(0.004)(x, y), [0.001, 7.0 - 0.004], rtol=1e-4
    )  # 3-4-5, and |x - y| - c
    assert_allclose(distance.perceptual(lambda x: x[:, :1])(x, y), [9e-6, 49.0], rtol=1e-6)
    assert_array_equal(
        jax.grad(lambda x: distance.pseudo_huber()(x, y).sum())(y), jnp.zeros_like(y)
    )  # not 0 / 0
    with pytest.raises(UserError, match="pseudo_huber: c=0.0: it must be at least"):
        distance.pseudo_huber(0.0)


def test_the_guided_velocity_of_meanflow_is_the_papers():
    """At s = t the loss is |u - v'|^2 with v' of eq. 21, inside the interval of times alone."""
    with jax.enable_x64(True):
        x0, eps, t, _ = points()
        drawn = FewStepExample(*gaussian.corrupt(FLOW, x0, eps, t), t)
        cond = {"label": jnp.ones(len(t))}

        def student(x, t, cond):
            return of_velocity(x, t, (1 + cond["label"][:, None]) * anything(x, t, cond))

        members = FewStepNetworks(student, student, student, null=lambda cond: {"label": 0 * t})
        low, high = 0.3, 0.7
        objective = meanflow.meanflow(
            FLOW, ratio=0.0, guidance=0.2, kappa=0.9, interval=(low, high), p=0.0
        )
        assert objective.guided
        u = anything(drawn.x_t, t, {"to": t})
        guided = 0.2 * (eps - x0) + 0.9 * 2 * u + (1 - 0.2 - 0.9) * u
        inside = ((t >= low) & (t <= high))[:, None]
        assert 0 < inside.sum() < len(t)
        wanted = ((2 * u - jnp.where(inside, guided, eps - x0)) ** 2).mean(1)
        assert_allclose(objective.loss(members, drawn, cond, 0.0), wanted, rtol=1e-9)
    with pytest.raises(UserError, match="interval"):
        meanflow.meanflow(FLOW, interval=(0.7, 0.3))


def test_the_weight_of_easy_tuning_may_be_that_of_a_noise_level():
    """(u^2 + sd^2) / (u sd)^2 on the distance of x0, in the authors' program."""
    with jax.enable_x64(True):
        x0, eps, t, s = points()
        drawn = FewStepExample(*gaussian.corrupt(EDM, x0, eps, t), s)
        objective = consistency.easy(EDM, weight=weighting.edm(), distance=distance.squared())
        plain = consistency.easy(EDM, distance=distance.squared())
        parts = networks(EDM, lambda x, t, F: Prediction(F, (x - F) / EDM.sigma(t)[:, None]))
        ratio = objective.loss(parts, drawn, None, 0.0) / plain.loss(parts, drawn, None, 0.0)
        u, earlier = EDM.sigma(t), EDM.sigma(s)
        assert_allclose(ratio, (u**2 + 0.25) / (0.5 * u) ** 2 * (u - earlier), rtol=1e-6)
