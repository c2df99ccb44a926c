"""Methods on Gaussian data, where each is exact or known in closed form."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose

from diffusion_jax.inverse import measurements, methods, projections
from diffusion_jax.processes import gaussian, schedules
from diffusion_jax.samplers import ancestral, base, grids, step_noise
from diffusion_jax.targets import laws
from tests.families import PROCESSES, AnyOf
from tests.inverse.problems import COVARIANCE, MEAN, STD, A, Y


def guided_x0(method, law, std=STD):
    """x0-hat of (index, x_t, t), by the method's denoiser, under the process of that index."""
    measurement = measurements.linear((3,), A, std)

    @jax.jit
    def run(index, x, t):
        process = AnyOf(index)
        guided = method.guide(
            laws.denoise_gaussian(law, process), process, measurement, jnp.asarray(Y, x.dtype)[None]
        )
        return guided(x, t)

    return run


def posterior_mean(covariance, a, variance, y, alpha, sigma, x):
    """E[x0 | x_t, y] by adding precisions, in numpy."""
    precision = np.linalg.inv(covariance) + alpha**2 / sigma**2 * np.eye(3) + a.T @ a / variance
    right = np.linalg.solve(covariance, MEAN) + alpha / sigma**2 * x + a.T @ y / variance
    return np.linalg.solve(precision, right)


def test_ddnm_and_pigdm_are_the_posterior_mean_of_isotropic_data_under_every_process():
    with jax.enable_x64(True):
        law, x = laws.gaussian(MEAN, 0.49 * np.eye(3)), np.array([[0.4, -0.9, 0.2]])
        for method in (methods.ddnm(0.7), methods.pigdm(0.7), methods.pigdm(0.7, symmetric=True)):
            run = guided_x0(method, law)
            for index, process in enumerate(PROCESSES.values()):
                for t in (0.2, 0.7):
                    alpha, sigma = (
                        float(process.alpha(jnp.float64(t))),
                        float(process.sigma(jnp.float64(t))),
                    )
                    found = run(index, x, t)
                    assert_allclose(
                        found.x0[0],
                        posterior_mean(0.49 * np.eye(3), A, STD**2, Y, alpha, sigma, x[0]),
                        rtol=1e-6,
                        atol=1e-8,
                    )
                    assert_allclose(alpha * found.x0 + sigma * found.eps, x, rtol=1e-9)


def test_pigdm_and_dps_pull_through_the_denoisers_jacobian():
    """On correlated data: what the papers' formulas say, J = C (C + u^2)^-1 written out."""
    with jax.enable_x64(True):
        process, t, s, x = schedules.VP(), 0.4, 0.3, np.array([[0.4, -0.9, 0.2]])
        law, measurement = laws.gaussian(MEAN, COVARIANCE), measurements.linear((3,), A, STD)
        alpha, sigma = float(process.alpha(jnp.float64(t))), float(process.sigma(jnp.float64(t)))
        u2 = (sigma / alpha) ** 2
        jacobian = COVARIANCE @ np.linalg.inv(COVARIANCE + u2 * np.eye(3))
        x0 = MEAN + jacobian @ (x[0] / alpha - MEAN)
        r2 = u2 / (1 + u2)
        pull = A.T @ np.linalg.solve(r2 * A @ A.T + STD**2 * np.eye(2), Y - A @ x0)
        index = list(PROCESSES).index("VP")
        assert_allclose(
            guided_x0(methods.pigdm(), law)(index, x, t).x0[0],
            x0 + u2 * jacobian.T @ pull,
            rtol=1e-9,
        )
        y, denoise, nothing = (
            jnp.asarray(Y)[None],
            laws.denoise_gaussian(law, process),
            step_noise.Noise(None, None),
        )
        sampler = ancestral.ddim()
        moves = [
            one.step(nothing, jnp.asarray(x), (), t, s, denoise, process, None)[0][0]
            for one in (
                sampler,
                *(methods.dps(0.3, own).wrap(sampler, measurement, y) for own in (False, True)),
            )
        ]
        residual = Y - A @ x0
        slope_in_z = (
            -jacobian.T @ A.T @ residual / np.linalg.norm(residual)
        )  # of |residual|; |r|^-1 grad |r|^2 is twice that
        for moved in moves[1:]:
            assert_allclose((moved - moves[0]) / process.alpha(s), -0.3 * 2 * slope_in_z, rtol=1e-6)


def probe(method, sampler, steps, measurement, y, law, process, z=0.0):
    """The end of a run from x = 0 whose every draw is z: the mean over all draws for z = 0, as
    everything is affine.
    """
    y = jnp.asarray(y)[None]
    wrapped = method.wrap(sampler, measurement, y)
    denoise = method.guide(laws.denoise_gaussian(law, process), process, measurement, y)
    ts = grids.uniform_logsnr(process, steps + 1).astype(y.dtype)
    x = jnp.zeros((1, len(law.mean)), y.dtype)
    noise = step_noise.Noise(
        lambda t, s, part=0: z * jnp.ones_like(x), lambda i: z * jnp.ones_like(x)
    )

    def move(x, times):
        return (wrapped.step(noise, x, (), *times, denoise, process, None)[0], None)

    return np.asarray(jax.lax.scan(move, x, (ts[:-1], ts[1:]))[0])[0]


def test_replacement_draws_the_measured_part_and_is_biased_on_the_rest():
    """A x_s has the law q(A x_s | y) after each move. The other coordinate's mean falls short of
    the posterior's, with however many steps, and repaint comes nearer: what Lugmayr et al. say of
    replacement alone, here in numbers.
    """
    with jax.enable_x64(True):
        process, rho, y = schedules.VP(), 0.9, np.array([1.5])
        law, measurement = (
            laws.gaussian(np.zeros(2), np.array([[1, rho], [rho, 1]])),
            measurements.linear((2,), [[1.0, 0.0]]),
        )
        alpha, sigma = (
            float(f(jnp.float64(process.t_min))) for f in (process.alpha, process.sigma)
        )
        ends = {
            z: probe(methods.replacement(), ancestral.ddpm(), 50, measurement, y, law, process, z)
            for z in (0.0, 1.0)
        }
        assert_allclose(ends[0.0][0], alpha * 1.5, rtol=1e-9)
        assert_allclose(ends[1.0][0], alpha * 1.5 + sigma, rtol=1e-9)
        few, many = (
            probe(methods.replacement(), ancestral.ddpm(), n, measurement, y, law, process)[1]
            for n in (50, 200)
        )
        again = probe(methods.repaint(10), ancestral.ddpm(), 50, measurement, y, law, process)[1]
        spread = probe(methods.pigdm(), ancestral.ddpm(), 200, measurement, y, law, process)[1]
        wanted = rho * 1.5
        assert abs(few - wanted) > 0.1 * wanted and abs(many - wanted) > 0.1 * wanted
        assert abs(again - wanted) < 0.5 * abs(few - wanted)
        assert np.isfinite(spread)


def test_repaint_of_a_noisy_measurement_is_the_posterior_and_does_not_drift_to_the_prior():
    """N(0, 1), y = 1, std 0.5: mean 0.8, variance 0.2, however often it resamples; another
    direction is measured five times weaker, and a third not at all. The grid has the two times at
    which y is as noisy as x_t, and on unit Gaussian data the moves of ddpm('large') are exact, so
    that only the method can be wrong.
    """
    with jax.enable_x64(True):
        process, count, std = schedules.VP(), 4000, 0.5
        rows, y = np.array([[1.0, 0.0, 0.0], [0.0, 0.2, 0.0]]), np.array([1.0, 0.2])
        ends = -2 * np.log([150.0, 1.0001 * std / 0.2, 1.0001 * std, 0.011])  # of sigma / alpha
        levels = np.concatenate(
            [np.linspace(a, b, 4, endpoint=False) for a, b in zip(ends, ends[1:])]
        )
        ts = gaussian.time_of_logsnr(process, jnp.asarray(levels))
        measurement, law = (
            measurements.linear((3,), rows, std),
            laws.gaussian(np.zeros(3), np.eye(3)),
        )
        keys = jax.random.split(jax.random.key(0), count)

        def run(method):
            return methods.restore(
                method,
                measurement,
                jnp.broadcast_to(y, (count, 2)),
                ancestral.ddpm("large"),
                laws.denoise_gaussian(law, process),
                process,
                keys,
                base.start(process, keys, (count, 3), ts.dtype),
                ts,
            ).x0

        found = np.asarray(jax.jit(run, static_argnums=0)(methods.repaint(10)))
        gain = rows.T @ np.linalg.inv(rows @ rows.T + std**2 * np.eye(2))
        assert_allclose(found.mean(0), gain @ y, atol=0.05)
        assert_allclose(np.cov(found.T), np.eye(3) - gain @ rows, atol=0.08)


def test_repaint_moves_plainly_where_nothing_is_replaced():
    with jax.enable_x64(True):
        law = laws.gaussian(MEAN, COVARIANCE)
        loud = measurements.linear((3,), np.eye(3), 1e4)  # noisier than every x_t
        plain, found = (
            probe(method, ancestral.ddim(), 6, loud, np.ones(3), law, schedules.VP())
            for method in (methods.unguided(), methods.repaint(4, 2))
        )
        twice = probe(
            methods.unguided(), ancestral.ddim(), 12, loud, np.ones(3), law, schedules.VP()
        )
        assert_allclose(found, twice, rtol=1e-9)  # jump = 2 halves the moves
        assert np.abs(found - plain).max() > 1e-6


def test_replacement_stops_where_the_measurement_is_noisier_than_the_path():
    process, measurement = schedules.EDM(), measurements.linear((2,), [[1.0, 0.0]], 0.5)
    x, y, z = jnp.array([[3.0, 4.0]]), jnp.array([[1.0]]), jnp.ones((1, 2))
    put = functools.partial(projections.draw_measured, measurement, process, x, y)
    assert_allclose(put(0.4 / 80, z), x)  # sigma = 0.4 < 0.5
    assert_allclose(put(1.3 / 80, z), [[1 + 1.2, 4.0]], rtol=1e-5)  # 1.3^2 = 0.5^2 + 1.2^2


def test_spread_is_the_posterior_variance_of_isotropic_data():
    process, t = schedules.EDM(), jnp.float32(0.01)
    law = laws.gaussian(np.zeros(2), 0.36 * np.eye(2))
    slope = jax.jacfwd(lambda x: laws.denoise_gaussian(law, process)(x[None], t).x0[0])(
        jnp.zeros(2)
    )
    sigma = process.sigma(t)
    assert_allclose(methods.spread(process, t, 0.6) * np.eye(2), sigma**2 * slope, rtol=1e-5)
