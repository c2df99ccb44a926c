"""Few-step models: on laws whose flow is known, the exact consistency function and average velocity
have no loss and no gradient, and a small network finds them by every objective; the formulas as
their papers have them; samplers; networks.
"""

from __future__ import annotations

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import norm

from configs import base as base_config
from configs import toy
from diffusion_jax import arrays
from diffusion_jax.arrays import expand
from diffusion_jax.assembly import datasets, denoiser, experiment, sampling, train, trainer, workdir
from diffusion_jax.denoisers import guidance, parameterization
from diffusion_jax.errors import UserError
from diffusion_jax.inverse import masks, measurements, methods
from diffusion_jax.models import unet
from diffusion_jax.objectives import consistency, distance, meanflow, times
from diffusion_jax.objectives.base import FewStepExample, FewStepNetworks, per_example
from diffusion_jax.processes import gaussian, schedules
from diffusion_jax.samplers import ancestral, base, few_step, grids, ode, singlestep
from diffusion_jax.studies import comparison, subjects
from diffusion_jax.targets import laws, presets, reference
from diffusion_jax.training import ema, restoring
from diffusion_jax.types import Prediction
from tests import commands
from tests.families import public

EDM, FLOW, TRIG = schedules.EDM(sigma_max=20.0), schedules.RectifiedFlow(), schedules.TrigFlow()
NORMAL = presets.normal(2, seed=1, condition=16.0)

MIXTURE = presets.from_mixture(
    laws.mixture([0.6, 0.4], [[0.8, -0.3], [-0.5, 0.6]], [[0.3, 0.2], [0.15, 0.4]])
)

COUNT = 512

OBJECTIVES = {
    f"{module.__name__.rpartition('.')[2]}.{name}": make
    for module in (consistency, meanflow)
    for name, make in public(module, "FewStep").items()
    if name != "in_steps"
}


# ---- the exact functions
def solve(target, process, x, t, s, steps=64):
    """x at time s: the flow of a Gaussian in closed form, else rk4 on the clock log(sigma / alpha)
    of targets.reference.

    Differentiable, of one time per example, and accurate to 1e-6 here.
    """
    if target.flow:
        return target.flow(process, x, t, s)

    def norm(t):
        return jnp.hypot(process.alpha(t), process.sigma(t))

    denoise = target.denoise(
        schedules.EDM(sigma_max=1.0)
    )  # its time is the noise level u = sigma / alpha
    start, end = (-0.5 * gaussian.logsnr(process, time) for time in (t, s))

    def slope(log_u, z):
        u = jnp.exp(log_u)
        x0, eps = denoise(expand(jnp.sqrt(1 + u**2), z) * z, u)[:2]
        return expand(u / (1 + u**2) ** 1.5, z) * (eps - expand(u, z) * x0)

    def move(z, i):
        a, h = start + i / steps * (end - start), (end - start) / steps
        k1 = slope(a, z)
        k2 = slope(a + h / 2, z + expand(h / 2, z) * k1)
        k3 = slope(a + h / 2, z + expand(h / 2, z) * k2)
        k4 = slope(a + h, z + expand(h, z) * k3)
        return z + expand(h / 6, z) * (k1 + 2 * k2 + 2 * k3 + k4), None

    return expand(norm(s), x) * jax.lax.scan(move, x / expand(norm(t), x), jnp.arange(steps))[0]


def exact(target, process):
    """A Denoise: the consistency function, x0-hat = x at t_min over alpha; told cond['to'], the
    average velocity's prediction.

    That is the solution of alpha_t x0 + sigma_t eps = x_t, alpha_s x0 + sigma_s eps = x_s; for s =
    t it is the denoiser.
    """
    denoiser = target.denoise(process)

    def denoise(x, t, cond=None):
        t = jnp.broadcast_to(t, x.shape[:1]).astype(x.dtype)
        s = (cond or {}).get("to", jnp.full_like(t, process.t_min))
        x_s = solve(target, process, x, t, s)
        if not cond or "to" not in cond:
            return gaussian.from_x0(process, x, x_s / expand(process.alpha(s), x), t)
        (a_t, b_t), (a_s, b_s) = (
            (process.alpha(u)[:, None], process.sigma(u)[:, None]) for u in (t, s)
        )
        det = a_s * b_t - a_t * b_s
        safe = jnp.where(jnp.abs(det) < 1e-9, 1.0, det)
        jump, still = (
            Prediction((b_t * x_s - b_s * x) / safe, (a_s * x - a_t * x_s) / safe),
            denoiser(x, t),
        )
        return Prediction(
            *(jnp.where(jnp.abs(det) < 1e-9, b, a) for a, b in zip(jump[:2], still[:2]))
        )

    return denoise


def examples(objective, target, progress, count=COUNT):
    keys = arrays.example_keys(jax.random.key(0), count)
    return objective.draw(keys, target.draw(jax.random.key(1), count).astype("float64"), progress)


def scored(objective, target, process, drawn, progress, shift=0.0):
    """(losses (B,), per-example d loss / d(c, d) (2, B)) of the student exact + shift + c + d x in
    v, at c = d = 0.
    """
    perfect = exact(target, process)

    def moved(c, d):
        def denoise(x, t, cond=None):
            """v-hat + c + d z for z = x / r, r^2 = alpha^2 + sigma^2: of order one at every noise
            level.
            """
            x0, eps = perfect(x, t, cond)[:2]
            alpha, sigma = expand(process.alpha(t), x), expand(process.sigma(t), x)
            r = jnp.hypot(alpha, sigma)
            more = (shift + c[:, None] + d[:, None] * x / r) / r
            return Prediction(x0 - sigma * more, eps + alpha * more)

        return denoise

    def losses(c, d):
        zero = jnp.zeros_like(c)
        constant = moved(zero, zero)
        found = objective.loss(
            FewStepNetworks(moved(c, d), constant, constant, target.denoise(process)),
            drawn,
            None,
            progress,
        )
        return found.sum(), found

    zero = jnp.zeros(len(drawn.t))
    gradients, found = jax.jit(jax.grad(losses, argnums=(0, 1), has_aux=True))(zero, zero)
    return np.asarray(found), np.stack(gradients)


def of_teacher(target):
    """The teacher's step, without error."""
    return base.memoryless(
        lambda noise, x, t, s, denoise, process: solve(
            target, process, x, jnp.full(1, t), jnp.full(1, s)
        )
    )


@pytest.mark.parametrize("target", [NORMAL, MIXTURE], ids=["gaussian", "mixture"])
def test_with_a_teacher_the_exact_function_has_no_loss(target):
    """And no gradient, and what is off by 0.1 has both. In steps that is so where the teacher's
    step is exact.
    """
    with jax.enable_x64(True):
        cases = {
            "cd": (consistency.distillation(EDM, solver=of_teacher(target)), EDM),
            "scd": (consistency.continuous_distillation(TRIG), TRIG),
            "meanflow": (meanflow.meanflow(FLOW, ratio=0.7, taught=True), FLOW),
            "imf": (meanflow.improved(FLOW, ratio=0.7, taught=True), FLOW),
        }
        for name, (objective, process) in cases.items():
            drawn = examples(objective, target, 1.0, 16)
            losses, gradient = scored(objective, target, process, drawn, 1.0)
            assert np.all(losses < 1e-8), (name, losses.max())
            assert np.all(np.abs(gradient) < 1e-3), (name, np.abs(gradient).max())
        losses, gradient = scored(objective, target, process, drawn, 1.0, shift=0.1)
        assert np.median(losses) > 1e-2 and np.median(np.abs(gradient)) > 1e-2


def test_in_steps_the_loss_of_the_exact_function_is_the_teachers_own_error():
    """A solver of order p errs by h^(p + 1) in a step, squared: twice as many steps divide the loss
    by 4^(p + 1).
    """
    with jax.enable_x64(True):
        for solver, order in ((ancestral.ddim(), 1), (ode.edm_heun(), 2), (singlestep.dpm_2s(), 2)):
            losses = []
            for steps in (81, 161):
                objective = consistency.distillation(EDM, solver=solver, steps=steps)
                t, s = EDM.t_max * jnp.asarray([0.03, 0.1, 0.3]), None

                def rho(u):
                    return u ** (1 / 7)

                h = (rho(20.0) - rho(0.002)) / (steps - 1)
                s = (rho(20.0 * t) - h) ** 7 / 20.0
                x_t = jnp.asarray([[0.3, 1.0], [2.0, -1.0], [-4.0, 3.0]])
                drawn = FewStepExample(x_t, t, x_t, x_t, s)
                losses.append(scored(objective, NORMAL, EDM, drawn, 0.0)[0])
            found = np.log2(losses[0] / losses[1]) / 2 - 1
            assert_allclose(found, order, atol=0.15)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_exact_function_is_where_training_ends(name):
    """The mean gradient there is zero to four standard errors, on Gaussian data, at fine steps;
    what is off is pulled back.

    On Gaussian data, because there robust means (pseudo-Huber, adaptive weights, normalised
    tangents) are means.
    """
    process = FLOW if name.startswith("meanflow") else EDM
    with jax.enable_x64(True):
        fine = {"consistency.distillation": dict(steps=320), "consistency.training": dict(s1=640)}
        objective = OBJECTIVES[name](process, **fine.get(name, {}))
        drawn = examples(objective, NORMAL, 1.0, 4 * COUNT)
        _, gradient = scored(objective, NORMAL, process, drawn, 1.0)
        mean, error = gradient.mean(1), gradient.std(1) / np.sqrt(gradient.shape[1])
        assert np.all(np.abs(mean) < 4 * error + 1e-5), (mean, error)
        _, gradient = scored(objective, NORMAL, process, drawn, 1.0, shift=0.3)
        assert gradient[0].mean() > 4 * gradient[0].std() / np.sqrt(gradient.shape[1]), (
            "the control"
        )


def test_draw_takes_one_key_for_the_batch():
    """Traced, not run, for all; the keys of the examples are those of base.sample."""
    for name, make in OBJECTIVES.items():
        draw = make(FLOW if name.startswith("meanflow") else EDM).draw
        drawn = jax.eval_shape(
            lambda key, x0: draw(key, x0, 0.5), jax.random.key(0), jnp.ones((3, 2))
        )  # noqa: B023
        assert (drawn.x_t.shape, drawn.t.shape, drawn.s.shape) == ((3, 2), (3,), (3,)), name
    found = per_example(lambda keys, x, *rest: (keys, *rest))(
        jax.random.key(0), jnp.ones((3, 2)), 0.5
    )
    assert_array_equal(
        jax.random.key_data(found[0]),
        jax.random.key_data(arrays.example_keys(jax.random.key(0), 3)),
    )
    assert found[1] == 0.5


# ---- the methods' own formulas
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
    neighbours that were drawn.
    """

    def count(objective, progress):  # of a grid in u^(1/7), from the step between neighbours
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


# ---- parameterizations and processes
def test_consistency_preconditioning_is_song_et_als():
    """On EDM: c_skip = sd^2 / ((u - u_min)^2 + sd^2), c_out = sd (u - u_min) / sqrt(sd^2 + u^2); at
    t_min F says nothing.
    """
    process, pair, sd = schedules.EDM(), parameterization.consistency(sigma_data=0.5), 0.5
    u = np.geomspace(0.002, 80, 7)
    x, F = np.random.default_rng(0).standard_normal((2, 7, 2))
    for dtype, rtol in (("float64", 1e-9), ("float32", 1e-3)):
        with jax.enable_x64(dtype == "float64"):
            t, x_t, out = jnp.asarray(u / 80, dtype), jnp.asarray(x, dtype), jnp.asarray(F, dtype)
            found = parameterization.decode(pair, process, out, x_t, t).x0
        c_skip, c_out = sd**2 / ((u - 0.002) ** 2 + sd**2), sd * (u - 0.002) / np.sqrt(sd**2 + u**2)
        assert_allclose(found, c_skip[:, None] * x + c_out[:, None] * F, rtol=rtol, atol=1e-6)
    for process in (process, FLOW, schedules.VP()):
        t = jnp.full(7, process.t_min)
        x0 = parameterization.decode(
            pair, process, 100 * jnp.asarray(F, jnp.float32), jnp.asarray(x, jnp.float32), t
        ).x0
        assert_allclose(x0, x / process.alpha(t)[:, None], rtol=1e-6)


def test_trigflow_with_edm_preconditioning_is_scms():
    """x0-hat = cos(phi) x + sin(phi) sigma_data F: minus their F_theta; x_t keeps the data's
    standard deviation.
    """
    t = jnp.asarray([0.1, 0.4, 0.9])
    x, F = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 2)), jnp.float32)
    x0 = parameterization.decode(parameterization.edm(0.5), TRIG, F, x, t).x0
    phi = np.pi / 2 * t[:, None]
    assert_allclose(x0, np.cos(phi) * x + np.sin(phi) * 0.5 * F, rtol=1e-5)
    assert_allclose((0.5 * TRIG.alpha(t)) ** 2 + TRIG.sigma(t) ** 2, 0.25, rtol=1e-6)
    assert_allclose(gaussian.angle(TRIG, t, 0.5), phi[:, 0], rtol=1e-6)


def test_a_denoiser_of_another_process():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((5, 2)), jnp.float32)
    t = jnp.asarray([0.05, 0.2, 0.4, 0.6, 0.9])
    vp = schedules.VP()
    found, own = (
        parameterization.change_process(MIXTURE.denoise(vp), vp, FLOW)(x, t),
        MIXTURE.denoise(FLOW)(x, t),
    )
    for a, b in zip(found[:2], own[:2]):
        assert_allclose(a, b, rtol=1e-3, atol=1e-4)


# ---- samplers
def test_multistep_keeps_the_law_on_any_times():
    """With the exact consistency function of N(m, C) every grid gives N(m, C) back, as far as the
    prior is the law at t_max.
    """
    process = schedules.EDM()
    for ts in (
        grids.few_step(process, 1),
        grids.few_step(process, 2),
        grids.levels(process, 4, levels=(5.0, 0.9, 0.05)),
    ):
        keys = jax.random.key(0)
        x = base.sample(
            few_step.multistep(),
            exact(NORMAL, process),
            process,
            keys,
            base.start(process, keys, (40_000, 2)),
            ts,
        ).x0
        truth = np.asarray(NORMAL.draw(jax.random.key(1), 40_000))
        assert_allclose(x.mean(0), truth.mean(0), atol=0.02)
        assert_allclose(np.cov(x.T), np.cov(truth.T), atol=0.02)


@pytest.mark.parametrize("residual", [None, 0.2], ids=["to the data", "to t_min"])
def test_multistep_is_algorithm_1(residual):
    """x <- f(x, T); then x <- f(x + sqrt(tau^2 - u_min^2) z, tau) (Song et al. 2023), u_min = 0 for
    a function that ends at the data.
    """
    process, exact = schedules.EDM(), MIXTURE.denoise(schedules.EDM())

    def f(x, t, cond=None):
        return exact(x, t)._replace(residual=residual and jnp.full(len(x), residual))

    keys = arrays.example_keys(jax.random.key(0), 3)
    ts = grids.levels(process, 3, levels=(0.8, 0.3))
    noise = base.independent(process, keys, jnp.zeros((3, 2)))
    x = y = base.start(process, keys, (3, 2))
    y = f(y, ts[0]).x0
    for i, tau in enumerate((0.8, 0.3)):
        level = np.sqrt(tau**2 - (residual or 0.0) ** 2)
        y = f(y + level * noise(i).path(ts[i], ts[i + 1]), jnp.float32(tau / 80)).x0
    found = base.sample(few_step.multistep(), f, process, keys, x, ts).x0
    assert_allclose(found, y, rtol=1e-4, atol=1e-5)
    assert base.evaluations(few_step.multistep(), ts) == 3 and base.draws_noise(
        few_step.multistep(), process
    )


@pytest.mark.parametrize("end", ["t_min", "data"])
def test_the_boundary_decides_how_much_noise_leads_back(end):
    """With an exact consistency function of N(0, v) that ends at either, x_s has exactly the
    variance alpha_s^2 v + sigma_s^2.

    One step is x_s = slope x + spread z; with the other end's noise it is off by (alpha_s u_min)^2,
    here 4 to 30 %. VP with a large t_min.
    """
    process, v = schedules.VP(t_min=0.2), 0.5
    start = jnp.asarray(process.t_min)
    u_min = process.sigma(start) / process.alpha(start)
    rest = u_min if end == "t_min" else 0.0

    def f(x, t, cond):
        u = process.sigma(t) / process.alpha(t)
        x0 = jnp.sqrt((v + rest**2) / (v + u**2)) * x / process.alpha(t)
        return gaussian.from_x0(process, x, x0, t)._replace(
            residual=jnp.full(len(x), u_min) if end == "t_min" else None
        )

    t, rows, z = (
        jnp.asarray(0.9),
        jnp.asarray([[0.0], [1.0], [0.0]]),
        jnp.asarray([[0.0], [0.0], [1.0]]),
    )
    for s in (0.25, 0.4, 0.8):
        moved = few_step.multistep().step(
            base.Noise(lambda t, s, part=0: z, None), rows, (), t, jnp.asarray(s), f, process, None
        )[0]
        variance = (
            moved[1] ** 2 * (process.alpha(t) ** 2 * v + process.sigma(t) ** 2) + moved[2] ** 2
        )
        assert_allclose(variance, process.alpha(s) ** 2 * v + process.sigma(s) ** 2, rtol=1e-5)


@pytest.mark.parametrize("make, ends", [("consistency", True), ("edm", False), ("v", False)])
def test_the_parameterization_says_where_its_function_ends(make, ends):
    """And what wraps the denoiser keeps it: guidance, thresholding, an inverse problem, another
    process.
    """
    process = schedules.EDM(sigma_min=0.1, sigma_max=20.0)
    pair = getattr(parameterization, make)()

    def network(params, x, c_noise, cond):
        return jnp.sin(3 * x) + (0.0 if cond is None else cond["label"][:, None])

    denoise = parameterization.denoiser(network, None, pair, process)
    label = {"label": jnp.ones(4)}
    x, t, null = jnp.ones((4, 2)), jnp.asarray(0.3), lambda cond: {"label": jnp.zeros(4)}
    whole = measurements.linear((2,), np.eye(2)[:1], std=0.1)
    wrapped = [
        guidance.clip_x0(denoise, process),
        guidance.rescale(guidance.conditional_pair(denoise, null), 2.0, process),
        guidance.interval(guidance.cfg(denoise, 2.0, null), denoise, process, 0.0, 9.0),
        parameterization.change_process(denoise, process, schedules.VP()),
        methods.ddnm().guide(denoise, process, whole, jnp.ones((4, 1))),
        methods.pigdm().guide(denoise, process, whole, jnp.ones((4, 1))),
    ]
    for each in wrapped:
        residual = jax.eval_shape(each, x, t, label).residual
        assert residual.shape == (4,) if ends else residual is None
    assert not ends or np.allclose(denoise(x, t, label).residual, 0.1, rtol=1e-5)
    t_min = jnp.full(4, process.t_min)
    assert (
        np.allclose(denoise(x, t_min, label).x0, x / process.alpha(t_min)[:, None], atol=1e-5)
        == ends
    )


def test_average_velocities_are_not_clipped():
    """A guided velocity may have an x0 outside of [-1, 1]: the jump of clip_x0 is the paper's z -
    (t - r) u all the same; the end is clipped.

    A denoiser, which has no second time, is clipped under few_step.jump as under ancestral.ddim.
    """
    x, t, s = jnp.asarray([[0.1, -0.1], [-0.2, 0.15]]), jnp.float32(0.55), jnp.float32(0.4)

    def average(x, t, cond=None):
        return gaussian.from_x0(FLOW, x, jnp.full_like(x, 1.4), t)

    for clipped in (guidance.clip_x0(average, FLOW), guidance.dynamic_threshold(average, FLOW)):
        u = (x - 1.4) / t
        moved = few_step.jump().step(None, x, (), t, s, clipped, FLOW, None)[0]
        assert_allclose(moved, x - (t - s) * u, rtol=1e-5)
        assert (
            np.abs(
                base.sample(
                    few_step.jump(), clipped, FLOW, jax.random.key(0), x, jnp.stack([t, s])
                ).x0
            ).max()
            <= 1
        )
    plain = guidance.without_end_time(guidance.clip_x0(MIXTURE.denoise(FLOW), FLOW, -0.05, 0.05))
    one, other = (
        sampler.step(None, x, (), t, s, plain, FLOW, None)[0]
        for sampler in (few_step.jump(), ancestral.ddim())
    )
    assert_allclose(one, other, rtol=1e-5)


def test_jumps_of_any_length_are_exact():
    """With the exact average velocity the sampler is on the trajectory after every jump; with a
    denoiser it is DDIM.
    """
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(0).standard_normal((5, 2)))
        ts = jnp.asarray([0.999, 0.7, 0.2, 0.1])
        run = jax.jit(
            lambda x: (
                base.sample(
                    few_step.jump(),
                    exact(MIXTURE, FLOW),
                    FLOW,
                    jax.random.key(0),
                    x,
                    ts,
                    observe=lambda x, t: x,
                ).observed
            )
        )
        assert_allclose(
            run(x)[-1], reference.reference(MIXTURE.denoise(FLOW), FLOW, x, 0.999, 0.1), atol=1e-5
        )
        seen = base.sample(
            few_step.jump(),
            exact(NORMAL, FLOW),
            FLOW,
            jax.random.key(0),
            x,
            ts,
            observe=lambda x, t: x,
        ).observed
        for s, found in zip(ts[1:], seen):
            assert_allclose(
                found, NORMAL.flow(FLOW, x, jnp.full(5, 0.999), jnp.full(5, s)), rtol=1e-9
            )
        denoise = MIXTURE.denoise(FLOW)
        both = [
            base.sample(s, denoise, FLOW, jax.random.key(0), x, ts).x0
            for s in (few_step.jump(), ancestral.ddim())
        ]
        assert_allclose(*both, rtol=1e-12)
    assert not base.draws_noise(few_step.jump(), FLOW)


def test_few_step_grids():
    process = schedules.EDM()
    assert_allclose(
        process.sigma(grids.few_step(process, 2)), [80.0, 0.5], rtol=1e-5
    )  # where noise and data are of one size
    many = grids.few_step(process, 1000)  # whose first and last would be outside
    assert len(many) == 1000 and process.t_min < many[-1] < many[1] < many[0] == process.t_max
    angle = gaussian.angle(process, grids.few_step(process, 4)[1:], 0.5)
    assert_allclose(angle, np.pi / 2 * np.array([0.75, 0.5, 0.25]), rtol=1e-4)
    assert_allclose(process.sigma(grids.levels(process, 3)), [80.0, 0.8, 0.3], rtol=1e-5)
    assert grids.few_step(FLOW, 1) == grids.levels(FLOW, 1) == np.float32(FLOW.t_max)
    with pytest.raises(UserError, match="has 4 times"):
        grids.levels(process, 5)


@pytest.mark.parametrize("task", ["inpaint", "colorize"])
def test_zero_shot_editing_is_algorithm_4(task):
    """Song et al. 2023, appendix D: x <- A^{-1}(A y (1 - Omega) + A x Omega) after every jump, here
    ddnm with multistep.
    """
    shape = (4, 4, 3)

    def f(x, t, cond=None):
        return gaussian.from_x0(process, x, jnp.tanh(x) * (1 + t), t)

    process, keys = schedules.EDM(), arrays.example_keys(jax.random.key(0), 2)
    y0 = jax.random.uniform(jax.random.key(1), (2, *shape), minval=-1.0)
    measurement = (
        measurements.inpaint(shape, masks.half(shape))
        if task == "inpaint"
        else measurements.colorize(shape)
    )
    known = jnp.asarray(masks.half(shape))

    def grey(x):
        return jnp.broadcast_to(x.mean(-1, keepdims=True), x.shape)

    mix = (
        (lambda x: known * y0 + (1 - known) * x)
        if task == "inpaint"
        else (lambda x: x - grey(x) + grey(y0))
    )
    ts = grids.levels(process, 3)
    x = base.start(process, keys, y0.shape)

    @jax.jit
    def by_hand(x):
        noise, y = base.independent(process, keys, y0), mix(f(x, ts[0]).x0)
        for i in (0, 1):
            y = mix(f(y + process.sigma(ts[i + 1]) * noise(i).path(ts[i], ts[i + 1]), ts[i + 1]).x0)
        return y

    seen, sampler = measurement.forward(y0), few_step.multistep()
    found = jax.jit(
        lambda x: (
            methods.restore(methods.ddnm(), measurement, seen, sampler, f, process, keys, x, ts).x0
        )
    )(x)
    assert_allclose(found, by_hand(x), atol=2e-5)


# ---- networks, averages
def test_forward_mode_through_attention():
    """d/dh of a small U-Net with attention along (x, c_noise) == differences, in float64; a second
    time, by its weights.
    """
    with jax.enable_x64(True):
        net = unet.UNet(
            num_classes=3,
            width=8,
            multipliers=(1,),
            blocks=1,
            attention=(4,),
            head_width=4,
            noise_embedding="smooth",
            second_time=True,
        )
        rng = np.random.default_rng(0)
        x, dx = jnp.asarray(rng.standard_normal((2, 2, 4, 4, 1)))
        c, label, to = jnp.asarray([0.3, -0.2]), jnp.asarray([0, 3]), jnp.asarray([0.2, 0.0])
        apply = jax.jit(
            lambda params, x, c, to: net.apply(params, x, c, {"label": label, "to": to})
        )
        shapes = jax.eval_shape(
            net.init, jax.random.key(0), x, c, {"label": label}
        )  # weights of an untold second time too
        params = jax.tree.map(
            lambda p: jnp.asarray(0.2 * rng.standard_normal(p.shape), p.dtype), shapes
        )

        def run(x, c):
            return apply(params, x, c, to)

        dc, h = (
            jnp.full(2, 0.05),
            0.04,
        )  # the embedding is fast, and like the norms float32: steps must not be too small
        slope = jax.jit(lambda *v: jax.jvp(run, (x, c), v)[1])(dx, dc)
        ends = [run(x + step * h * dx, c + step * h * dc) for step in (-2, -1, 1, 2)]
        numeric = (ends[0] - 8 * ends[1] + 8 * ends[2] - ends[3]) / (12 * h)
        assert np.abs(slope).max() > 0.1
        assert_allclose(slope, numeric, atol=2e-4 * np.abs(slope).max())
        heard = apply(params, x, c, jnp.asarray([0.9, 0.0])) - run(x, c)
        assert np.abs(heard[0]).max() > 1e-3 and np.abs(heard[1]).max() < 1e-9
        params["params"]["condition"]["to"]["kernel"] *= 0  # as at init
        assert_allclose(run(x, c), apply(params, x, c, jnp.asarray([0.9, 0.7])), atol=1e-9)


def test_the_second_time_is_a_flows():
    """The network is told sigma / (alpha + sigma) at s: s itself on rectified flow."""
    told = []

    def apply(params, x, c, cond):
        told.append(cond)
        return x

    for process in (FLOW, schedules.EDM()):
        denoise = parameterization.denoiser(apply, None, parameterization.velocity(), process)
        label = {"label": jnp.zeros(2)}
        for cond in (label, few_step.ending_at(label, jnp.float32(0.25), 2)):
            denoise(jnp.ones((2, 2)), 0.5, cond)
    assert "to" not in told[0] and set(told[1]) == {"label", "to"}
    assert_allclose(told[1]["to"], [0.25, 0.25])
    assert_allclose(told[3]["to"], 20 / 21, rtol=1e-6)
    denoise(jnp.ones((2, 2)), 0.5, few_step.ending_at(None, 0.25, 2))
    assert set(told[-1]) == {"to"}


def test_targets_follow_and_teachers_stand_still():
    steps = ema.together(
        ema.target(lambda step: 1 - 1 / (step + 2)), ema.frozen("teacher", {"w": jnp.full(2, 7.0)})
    )
    state = steps.init({"w": jnp.zeros(2)})
    for k in range(3):  # e <- e + (w - e) / (k + 2): the mean of 0 and the values so far
        state = steps.update(state, {"w": jnp.full(2, float(k + 1))}, jnp.float32(10 * k), 10)
    assert_allclose(state["target"]["w"], (0 + 1 + 2 + 3) / 4, rtol=1e-6)
    assert_allclose(state["teacher"]["w"], 7.0)


# ---- a network finds them
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


def network(params, x, c_noise, cond):
    """Two hidden layers of 64, told both times by sines."""
    to = (cond or {}).get("to", jnp.zeros(len(x)))
    waves = [
        f(k * time)[:, None]
        for time in (c_noise, to)
        for k in (1, 2, 4)
        for f in (jnp.sin, jnp.cos)
    ]
    h = jnp.concatenate([x, c_noise[:, None], to[:, None], *waves], -1)
    for weight, bias in params[:-1]:
        h = jax.nn.silu(h @ weight + bias)
    return h @ params[-1][0] + params[-1][1]


def fresh(key, sizes=(16, 64, 64, 2)):
    keys = jax.random.split(key, len(sizes) - 1)

    def scale(n, last):
        return 0.0 if last else 1 / np.sqrt(n)

    return [
        (scale(n, m == 2) * jax.random.normal(k, (n, m)), jnp.zeros(m))
        for k, n, m in zip(keys, sizes, sizes[1:])
    ]


@pytest.mark.parametrize("name", LEARNED)
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


# ---- the roof
def recipe(variant, teacher="", **changes):
    """A few-step config of points, 8 steps of 16."""
    config = toy.get_config("edm")
    config.model.update(width=8, blocks=1)
    config = base_config.few_step(config, variant, teacher)
    config.data.batch_size, config.optimizer.warmup = 16, 2
    config.training.update(steps=8, log_every=2, eval_every=8, sample_every=8, checkpoint_every=4)
    config.update(changes)
    return config


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory):
    """A teacher, and a student that went on after its 4th step."""
    root = tmp_path_factory.mktemp("few_step")
    train.train(recipe("teacher").lock(), str(root / "teacher"))
    for steps in (4, 8):
        student = recipe("cd", str(root / "teacher"))
        student.optimizer.schedule = "constant"
        student.training.steps = steps
        train.train(student.lock(), str(root / "cd"))
    return root


def test_a_student_is_trained_by_a_workdir(workdirs):
    """It begins as the teacher, which stands still in its state beside the slow copy; neither is
    offered to sample from.
    """
    config = workdir.saved_config(workdirs / "cd")
    trained, teacher = (
        workdir.load(workdirs / name, workdir.saved_config(workdirs / name))
        for name in ("cd", "teacher")
    )
    assert trained.step == 8 and trained.weights == "5k"
    whole = workdir.taught(experiment.assemble(config, (2,)))
    assert jax.tree.all(jax.tree.map(np.array_equal, whole.begin, teacher.params))
    assert workdir.taught(experiment.assemble(config, (2,)), workdirs / "cd").begin is None
    parts = trainer.training(whole)
    state = restoring.restore(
        workdirs / "cd" / "checkpoints", parts.runner.template(parts.init, jax.random.key(0))
    ).state
    assert set(state.ema) == {"5k", "target", "teacher"}
    assert jax.tree.all(jax.tree.map(np.array_equal, state.ema["teacher"], teacher.params))

    def flat(params):
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])

    def moved(params):
        return np.linalg.norm(flat(params) - flat(teacher.params))

    ahead, behind = moved(state.params), moved(state.ema["target"])
    assert 0 < behind < 0.5 * ahead
    settings = trained.experiment.sampling._replace(weights="teacher")
    with pytest.raises(UserError, match="There are: 5k, params"):
        trainer.weights_name(trained.experiment._replace(sampling=settings))
    chosen = sampling.plan(trained.experiment)
    assert sampling.evaluations(chosen) == 2
    draw = sampling.sample_with(trained.experiment, trained.params, chosen)
    assert np.isfinite(draw(jax.random.split(jax.random.key(0), 4), None)).all()


@pytest.mark.parametrize("variant", ["meanflow", "ect"])
def test_a_model_of_two_times_is_clipped_at_the_end_alone(variant):
    """Whose fresh network gives x0-hat = x at these x, outside of [-1, 1]; a model of one time is
    clipped in every move.
    """
    built = experiment.assemble(recipe(variant), (2,))
    x, t = jnp.full((3, 2), 3.0), jnp.full(3, 0.2 if variant == "meanflow" else 0.001)
    params = jax.jit(lambda: trainer.training(built).init(jax.random.key(0)).params)()
    denoise = denoiser.denoiser(built, params, clip="static")
    assert np.abs(denoise(x, t).x0).max() == 1
    assert np.abs(denoise(x, t, few_step.ending_at(None, t / 2, 3)).x0).max() == (
        1 if variant == "ect" else pytest.approx(3, rel=0.3)
    )


def test_few_step_workdirs_are_compared(workdirs):
    """By the sampler they are for, at one evaluation and more; there is no trajectory to be near
    to.
    """
    trained = workdir.load(workdirs / "cd", workdir.saved_config(workdirs / "cd"))
    dataset = datasets.dataset(trained.experiment.config)
    subject = subjects.of_model(trained, dataset, range(20), "cd")
    chosen = comparison.cells(
        ["few_step.multistep"], [1, 2, 4], trained.experiment.process, "few_step"
    )
    compared = comparison.compare(subject, chosen, workdirs / "compare")
    assert [result.row["evaluations"] for result in compared.results] == [1, 2, 4]
    assert all(
        result.row["sliced_wasserstein"] > 0 and "error" not in result.row
        for result in compared.results
    )
    assert "follows no path" in compared.exact.row["what"]


TINY = """
from configs import base as base_config

def get_config(name="ect"):
    config = base_config.base()
    config.data.update(name="npz", path="nowhere", batch_size=16)
    config.model = base_config.network("dit.DiT", width=8, depth=1, heads=1)
    config = base_config.few_step(config, name, "filled in by the command")
    config.training.update(steps=2, log_every=1, eval_every=0, sample_every=0, checkpoint_every=2)
    return config
"""


def test_the_command_trains_judges_and_finds_it_all_again(tmp_path):
    """The diffusion model and what starts from it, on images that --images names; times are also
    searched.
    """
    draw = np.random.default_rng(0)
    np.savez(
        tmp_path / "images.npz",
        images=draw.integers(0, 256, (60, 8, 8, 1), np.uint8),
        labels=np.arange(60) % 2,
    )
    (tmp_path / "tiny.py").write_text(TINY)
    line = [
        "few_step",
        f"--recipe={tmp_path / 'tiny.py'}",
        f"--workdir={tmp_path / 'all'}",
        f"--images={tmp_path / 'images.npz'}",
        "--methods=ect",
        "--nfe=1,2",
        "--teacher_nfe=3",
        "--num=12",
        "--search",
    ]
    done = commands.run(*line)
    assert done.returncode == 0, done.stderr
    kept = json.loads((tmp_path / "all" / "few_step.json").read_text())
    assert [(row["sampler"].partition(" ")[0], row["nfe"]) for row in kept["rows"]] == [
        ("diffusion", 1),
        ("diffusion", 2),
        ("diffusion", 3),
        ("ect", 1),
        ("ect", 2),
        ("ect,", 2),
    ]
    assert (
        all(row["frechet"] > 0 for row in kept["rows"]) and "| ect, times searched |" in done.stdout
    )
    assert {"few_step.png", "few_step_grid.png", "few_step.md"} <= {
        path.name for path in (tmp_path / "all").iterdir()
    }
    again = commands.run(*line)
    assert (
        again.stdout == done.stdout and "step 1/2" in done.stderr and "step 1/2" not in again.stderr
    )


def test_mistakes(workdirs, tmp_path):
    teacher = str(workdirs / "teacher")
    with pytest.raises(UserError, match="learns from a teacher: set config.distill.teacher"):
        trainer.training(experiment.assemble(recipe("scd"), (2,)))
    with pytest.raises(UserError, match="is for examples"):
        workdir.taught(experiment.assemble(recipe("cd", teacher), (3,)))
    other = recipe("ect", teacher)
    other.model.width = 16
    with pytest.raises(UserError, match="another network, by config.model.width"):
        workdir.taught(experiment.assemble(other, (2,)))
    assert workdir.taught(experiment.assemble(recipe("ect", teacher), (2,))).begin is not None
    meanflow_of_it = recipe("meanflow", init_from=teacher)
    with pytest.raises(UserError, match="another network, by config.parameterization"):
        workdir.taught(experiment.assemble(meanflow_of_it, (2,)))
    meanflow_of_it.parameterization = "edm()"  # the second time's weights are fresh
    begun = workdir.taught(experiment.assemble(meanflow_of_it, (2,)))
    params = trainer.training(begun).init(jax.random.key(0)).params
    assert not np.any(params["condition"]["to"]["kernel"])
    assert np.array_equal(params["first"]["kernel"], begun.begin["first"]["kernel"])
