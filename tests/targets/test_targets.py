"""The exact targets against each other, against autodiff and against a tight numerical solve: every
other test leans on them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.stats import norm

from diffusion_jax.assembly.build import build, members
from diffusion_jax.assembly.components import TARGETS
from diffusion_jax.core import integrators
from diffusion_jax.core.errors import UserError
from diffusion_jax.processes import gaussian
from diffusion_jax.targets import empirical, laws, presets, reference
from diffusion_jax.targets.laws import flow
from tests.families import PROCESSES, interior, smooth

every_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
MEAN = np.array([0.5, -1.0, 0.2])
ROOT = np.array([[0.9, 0.0, 0.0], [0.4, 0.5, 0.0], [-0.3, 0.2, 0.1]])
COVARIANCE = ROOT @ ROOT.T


def normal(dtype=None):
    return laws.gaussian(jnp.asarray(MEAN, dtype), jnp.asarray(COVARIANCE, dtype))


def mixture():
    means = jnp.array([[0.8, -0.3, 0.1], [-0.5, 0.6, 0.0]])
    return laws.mixture([0.6, 0.4], means, [[0.3, 0.2, 0.5], [0.15, 0.4, 0.1]])


def some(process, count=8):
    return jnp.asarray(np.random.default_rng(0).standard_normal((count, 3))), jnp.asarray(
        interior(process, count)
    )


@every_process
def test_score_is_the_gradient_of_the_log_density(process):
    with jax.enable_x64(True):
        x, t = some(process)
        cases = (
            (normal(), laws.denoise_gaussian, laws.log_density_gaussian),
            (mixture(), laws.denoise_mixture, laws.log_density_mixture),
        )
        for target, denoise, log_density in cases:

            def total(y, target=target, log_density=log_density):
                return log_density(target, process, y, t).sum()

            slope = jax.grad(total)(x)
            assert_allclose(
                gaussian.score(process, denoise(target, process)(x, t), t),
                slope,
                rtol=1e-8,
                atol=1e-8,
            )


@every_process
def test_one_component_is_a_gaussian(process):
    with jax.enable_x64(True):
        x, t = some(process)
        stds = jnp.array([0.9, 0.4, 0.1])
        one = laws.mixture([2.0], [MEAN], stds)
        same = laws.gaussian(jnp.asarray(MEAN), jnp.diag(stds**2))
        for a, b in zip(
            laws.denoise_mixture(one, process)(x, t)[:2],
            laws.denoise_gaussian(same, process)(x, t)[:2],
        ):
            assert_allclose(a, b, rtol=1e-10, atol=1e-10)
        densities = (
            laws.log_density_mixture(one, process, x, t),
            laws.log_density_gaussian(same, process, x, t),
        )
        assert_allclose(*densities, rtol=1e-10)


def test_density_by_hand():
    """At alpha = 1 and sigma = 3 (EDM, t = 3/80): N(mean, C + 9 I) by numpy's determinant and
    inverse.
    """
    with jax.enable_x64(True):
        process, x = PROCESSES["EDM"], np.random.default_rng(1).standard_normal((4, 3))
        total = COVARIANCE + 9 * np.eye(3)
        offset = x - MEAN
        expected = -0.5 * (
            np.einsum("bi,ij,bj->b", offset, np.linalg.inv(total), offset)
            + np.log(np.linalg.det(2 * np.pi * total))
        )
        assert_allclose(
            laws.log_density_gaussian(normal(), process, jnp.asarray(x), 3 / 80),
            expected,
            rtol=1e-10,
        )


@every_process
def test_gaussian_denoiser_solves_the_regression(process):
    """E[x0 | x_t] is the linear map Cov(x0, x_t) Cov(x_t)^-1, from the joint moments by numpy."""
    with jax.enable_x64(True):
        x, t = some(process)
        found = laws.denoise_gaussian(normal(), process)(x, t)
        for i in range(len(t)):
            alpha, sigma = float(process.alpha(t[i])), float(process.sigma(t[i]))
            gain = alpha * COVARIANCE @ np.linalg.inv(alpha**2 * COVARIANCE + sigma**2 * np.eye(3))
            assert_allclose(
                found.x0[i], MEAN + gain @ (np.asarray(x[i]) - alpha * MEAN), rtol=1e-9, atol=1e-10
            )
            assert_allclose(
                alpha * found.x0[i] + sigma * found.eps[i], x[i], rtol=1e-10, atol=1e-12
            )


@every_process
def test_flow_pushes_the_law_along(process):
    """The law at t goes to the law at s (moments by probing the affine map), and there and back
    again is the identity.
    """
    with jax.enable_x64(True):
        target, (s, t) = normal(), interior(process, 8)[jnp.array([2, 6])]
        alphas, sigmas = zip(
            *(
                (float(process.alpha(jnp.asarray(u))), float(process.sigma(jnp.asarray(u))))
                for u in (s, t)
            )
        )
        probes = jnp.concatenate([jnp.zeros((1, 3)), jnp.eye(3)])
        moved = np.asarray(flow(target, process, probes, t, s))
        matrix = (moved[1:] - moved[0]).T
        laws = [(a * MEAN, a**2 * COVARIANCE + b**2 * np.eye(3)) for a, b in zip(alphas, sigmas)]
        assert_allclose(matrix @ laws[1][0] + moved[0], laws[0][0], rtol=1e-9)
        assert_allclose(matrix @ laws[1][1] @ matrix.T, laws[0][1], rtol=1e-8, atol=1e-9)
        assert_allclose(
            flow(target, process, jnp.asarray(moved), s, t), probes, rtol=1e-9, atol=1e-9
        )


@pytest.mark.parametrize(
    "name", [n for n in ("VP", "VE", "RectifiedFlow", "Shifted") if smooth(PROCESSES[n])]
)
def test_flow_solves_the_probability_flow_ode(name):
    process = PROCESSES[name]
    with jax.enable_x64(True):
        target, x = normal(), some(process)[0]
        denoise, ts = laws.denoise_gaussian(target, process), jnp.linspace(0.8, 0.2, 401)

        def step(y, ends):
            return integrators.rk4(
                lambda u, z: gaussian.velocity(process, denoise(z, u), u), y, *ends
            ), None

        solved = jax.lax.scan(step, x, (ts[:-1], ts[1:]))[0]
        assert_allclose(laws.flow(target, process, x, 0.8, 0.2), solved, rtol=1e-7, atol=1e-8)


def test_draws_have_the_laws_moments():
    x = np.asarray(laws.draw_gaussian(normal("float32"), jax.random.key(0), 8192))
    assert np.all(np.abs(x.mean(0) - MEAN) < 4 * np.sqrt(np.diag(COVARIANCE) / 8192))
    scale = np.sqrt(np.outer(np.diag(COVARIANCE), np.diag(COVARIANCE)))
    assert np.all(np.abs(np.cov(x.T) - COVARIANCE) < 4 * np.sqrt(2 / 8192) * scale)
    law = mixture()
    y = np.asarray(laws.draw_mixture(law, jax.random.key(1), 8192))
    weights, means, variances = (np.asarray(v) for v in law)
    mean = weights @ means
    spread = weights @ (variances + means**2) - mean**2
    assert np.all(np.abs(y.mean(0) - mean) < 4 * np.sqrt(spread / 8192))
    assert_allclose(y.var(0), spread, rtol=0.06)


def test_any_shape_is_taken_and_given_back():
    target = laws.gaussian(jnp.zeros(12), jnp.eye(12))
    x = jnp.ones((2, 2, 2, 3))
    process = PROCESSES["VP"]
    assert laws.denoise_gaussian(target, process)(x, 0.5).x0.shape == x.shape
    assert laws.flow(target, process, x, 0.5, 0.2).shape == x.shape
    assert (
        laws.denoise_mixture(laws.mixture([1.0], jnp.zeros((1, 12)), 1.0), process)(
            x, 0.5
        ).eps.shape
        == x.shape
    )


def test_ring_of_gaussians():
    ring = laws.ring_of_gaussians(8, 2.0, 0.1)
    assert_allclose(np.hypot(*np.asarray(ring.means).T), 2.0, rtol=1e-6)
    assert_allclose(ring.weights, 1 / 8)
    assert_allclose(ring.variances, 0.01, rtol=1e-6)


# ---- targets that commands name ----
NAMED = [name for name in members(TARGETS) if not name.startswith("from_") and name != "empirical"]

SIGMA = (
    0.1  # the noise level at which densities are integrated: wide enough for a coarse quadrature
)


def exact_moments(target):
    """Mean and covariance at noise level SIGMA by quadrature of the density over the plane, which
    must hold mass one.
    """
    process, ticks = PROCESSES["EDM"], np.linspace(-5.5, 5.45, 220)
    x = np.stack(np.meshgrid(ticks, ticks), -1).reshape(-1, 2)
    blocks = jnp.asarray(x.reshape(20, -1, 2), "float32")
    density = jax.jit(
        lambda x: jax.lax.map(
            lambda y: target.log_density(process, y, SIGMA / process.sigma_max), x
        )
    )
    p = np.exp(np.asarray(density(blocks), float)).ravel() * 0.05**2
    mean = p @ x
    return p.sum(), mean, (x - mean).T @ (p[:, None] * (x - mean))


@pytest.mark.parametrize("name", NAMED)
def test_a_named_target_draws_from_the_density_it_states(name):
    target = build(TARGETS, name)
    mass, mean, covariance = exact_moments(target)
    assert_allclose(mass, 1.0, atol=1e-4)
    draws = np.asarray(jax.jit(target.draw, static_argnums=1)(jax.random.key(0), 20_000), float)
    assert draws.shape == (20_000, *target.shape)
    scale = np.sqrt(np.diag(covariance))
    assert np.all(np.abs(draws.mean(0) - mean) < 4.5 * scale / np.sqrt(20_000))
    found = np.cov(draws.T) + SIGMA**2 * np.eye(2)
    assert np.all(np.abs(found - covariance) < 4.5 * np.outer(scale, scale) * np.sqrt(2 / 20_000))
    if target.modes is not None:
        nearest = np.argmin(
            np.linalg.norm(draws[:, None] - np.asarray(target.modes.means), axis=-1), axis=1
        )
        found = np.bincount(nearest, minlength=len(target.modes.weights)) / 20_000
        assert np.abs(found - target.modes.weights).max() < (
            0.08 if name == "gmm" else 0.012
        )  # gmm's modes may overlap


@pytest.mark.parametrize("name", NAMED)
def test_a_named_target_denoises_along_its_own_score(name):
    with jax.enable_x64(True):
        target, process = build(TARGETS, name), PROCESSES["VP"]
        x, t = (
            jnp.asarray(np.random.default_rng(0).standard_normal((8, 2))),
            jnp.linspace(0.05, 0.95, 8),
        )
        slope = jax.grad(lambda y: target.log_density(process, y, t).sum())(x)
        assert_allclose(
            gaussian.score(process, target.denoise(process)(x, t), t), slope, rtol=1e-8, atol=1e-8
        )


def test_targets_have_any_dimension_and_the_precision_they_are_asked_in():
    target = build(TARGETS, "gmm(modes=5, dim=16, seed=3)")
    x = jnp.ones((4, 16))
    assert (
        target.draw(jax.random.key(0), 4).shape
        == target.denoise(PROCESSES["VP"])(x, 0.5).x0.shape
        == x.shape
    )
    single = np.asarray(target.denoise(PROCESSES["VP"])(x, 0.5).x0)
    with jax.enable_x64(True):
        double = target.denoise(PROCESSES["VP"])(jnp.ones((4, 16), "float64"), 0.5).x0
        assert double.dtype == "float64" and target.draw(jax.random.key(0), 4).dtype == "float64"
        assert_allclose(single, double, rtol=1e-5, atol=1e-5)
        assert np.abs(single - np.asarray(double)).max() > 0
    with pytest.raises(UserError, match="did you mean 'gmm8'"):
        build(TARGETS, "gmmm8")


# ---- the empirical distribution ----
def repeated_images(count=300, duplicates=20):
    """Dark bytes with bright pixels, some twice, some twice but for one gray level in one pixel."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 6, 6, 1)) * (rng.random((count, 6, 6, 1)) < 0.4)
    near = images[:duplicates].copy()
    near[:, 0, 0] ^= 1
    return np.concatenate([images, images[:duplicates], near]).astype(np.uint8)


def brute(images, process, x, t, counts=None):
    """E[x0 | x] and log p_t(x) of a finite set in float64 numpy, by sums of squares. counts (B, N):
    which images do.
    """
    y = images.reshape(len(images), -1) / 127.5 - 1
    with jax.enable_x64(True):
        alpha, sigma = (float(f(jnp.float64(t))) for f in (process.alpha, process.sigma))
    logit = -((x.reshape(len(x), 1, -1).astype(float) - alpha * y) ** 2).sum(-1) / (2 * sigma**2)
    counts = np.ones_like(logit, bool) if counts is None else counts
    logit = np.where(counts, logit, -np.inf)
    peak = logit.max(1, keepdims=True)
    weight = np.exp(logit - peak)
    total = weight.sum(1)
    log_density = (
        peak[:, 0] + np.log(total / counts.sum(1)) - 0.5 * y.shape[1] * np.log(2 * np.pi * sigma**2)
    )
    return (weight @ y) / total[:, None], log_density


@pytest.mark.parametrize("name", ["EDM", "RectifiedFlow", "SubVP"])
def test_the_empirical_denoiser_is_the_brute_force_one(name):
    """Float32 at every noise level, down to where distances divided by sigma^2 leave nothing to
    rounding; some images twice.
    """
    images, process = repeated_images(), PROCESSES[name]
    target, rng = empirical.empirical(images, block=64), np.random.default_rng(1)
    optimized = {"xla_backend_optimization_level": 3}  # as users compile: multiply-adds round once
    denoise = jax.jit(target.denoise(process), compiler_options=optimized)
    density = jax.jit(lambda x, t: target.log_density(process, x, t), compiler_options=optimized)
    for t in np.geomspace(process.t_min, process.t_max, 7).astype(np.float32):
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        x0 = images[rng.integers(len(images), size=8)] / 127.5 - 1
        x = (alpha * x0 + sigma * rng.standard_normal(x0.shape)).astype(np.float32)
        expected, log_density = brute(images, process, x, float(t))
        prediction = denoise(x, t)
        assert_allclose(np.asarray(prediction.x0).reshape(8, -1), expected, atol=2e-5)
        assert_allclose(density(x, t), log_density, rtol=2e-5, atol=2e-3)
        assert_allclose(alpha * prediction.x0 + sigma * prediction.eps, x, rtol=1e-5, atol=1e-5)


def test_the_empirical_denoiser_in_float64_does_not_see_its_blocks():
    images, process = repeated_images(), PROCESSES["VP"]
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 6, 6, 1)))
        expected, log_density = brute(images, process, np.asarray(x), 0.3)
        for block in (7, 340, 1000):
            target = empirical.empirical(images, block=block)
            assert_allclose(target.denoise(process)(x, 0.3).x0.reshape(4, -1), expected, atol=1e-12)
            assert_allclose(target.log_density(process, x, 0.3), log_density, rtol=1e-12)


def test_the_empirical_set_may_be_one_label_of_it():
    images, process = repeated_images(), PROCESSES["VP"]
    labels = np.arange(len(images)) % 3
    target = empirical.empirical(images, labels, block=64)
    x = np.random.default_rng(0).standard_normal((4, 6, 6, 1)).astype(np.float32)
    wanted = np.array([0, 2, 1, 3])  # 3 does not occur: any
    counts = (labels == wanted[:, None]) | (wanted[:, None] == 3)
    expected, log_density = brute(images, process, x, 0.5, counts)
    cond = {"label": jnp.asarray(wanted)}
    assert_allclose(target.denoise(process)(x, 0.5, cond).x0.reshape(4, -1), expected, atol=2e-5)
    assert_allclose(target.log_density(process, x, 0.5, cond), log_density, rtol=1e-5)
    drawn = np.asarray(target.draw(jax.random.key(0), 50))
    assert (
        np.abs(drawn[:, None] - (images / 127.5 - 1)).reshape(50, len(images), -1).max(-1).min(1)
        < 1e-6
    ).all()
    with pytest.raises(UserError, match="labels"):
        empirical.empirical(images, labels[:5])


# ---- the reference solution ----
@pytest.mark.parametrize("name", ["VP", "EDM", "RectifiedFlow", "DDPM_linear"])
def test_the_reference_is_the_gaussians_flow(name):
    process = PROCESSES[name]
    target = build(TARGETS, "normal(dim=3)")
    x = (
        1.5
        * np.random.default_rng(0).standard_normal((8, 3))
        * float(gaussian.prior_scale(process))
    )
    found = reference.reference(target.denoise(process), process, x, process.t_max, process.t_min)
    with jax.enable_x64(True):
        exact = target.flow(process, jnp.asarray(x), process.t_max, process.t_min)
    assert found.dtype == np.float64
    assert_allclose(found, exact, rtol=1e-9, atol=1e-9)


def test_the_reference_keeps_the_quantiles_of_a_mixture_on_the_line():
    """In one dimension the flow is monotone and carries p_t to p_s, so it keeps the distribution
    function.
    """

    process, weights, means, stds = (
        PROCESSES["VP"],
        np.array([0.3, 0.7]),
        np.array([-0.8, 0.5]),
        np.array([0.05, 0.2]),
    )
    target = presets.from_mixture(laws.Mixture(weights, means[:, None], stds[:, None] ** 2))
    x = np.linspace(-2, 2, 8)[:, None]
    found = reference.reference(target.denoise(process), process, x, 0.9, 0.05)

    def quantile(x, t):
        with jax.enable_x64(True):
            alpha, sigma = (
                float(process.alpha(jnp.float64(t))),
                float(process.sigma(jnp.float64(t))),
            )
        return (weights * norm.cdf(x, alpha * means, np.hypot(alpha * stds, sigma))).sum(1)

    assert_allclose(quantile(found, 0.05), quantile(x, 0.9), atol=1e-9)
    assert np.abs(found - x).max() > 0.3
