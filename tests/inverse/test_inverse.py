"""Measurements against explicit matrices; methods on Gaussian data, where each is exact or known in
closed form; the posterior against quadrature; known pixels bit for bit; edits.
"""

from __future__ import annotations

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from diffusion_jax import arrays
from diffusion_jax.errors import UserError
from diffusion_jax.inverse import edits, masks, measurements, methods, projections
from diffusion_jax.processes import gaussian, schedules
from diffusion_jax.samplers import ancestral, base, few_step, grids, multistep, ode
from diffusion_jax.targets import laws, posterior
from tests.families import PROCESSES, SAMPLERS, AnyOf, public

SHAPE = (4, 4, 3)
MASK = (np.arange(16).reshape(4, 4, 1) % 3 > 0).astype(np.float32)

MEASUREMENTS = {
    "inpaint": lambda **k: measurements.inpaint(SHAPE, MASK, **k),
    "colorize": lambda **k: measurements.colorize(SHAPE, **k),
    "superres": lambda **k: measurements.superres(SHAPE, 2, **k),
    "deblur": lambda **k: measurements.deblur(SHAPE, 0.6, **k),
    "deblur_uniform": lambda **k: measurements.deblur(SHAPE, 1, "uniform", **k),
    "linear": lambda **k: measurements.linear(
        SHAPE, np.random.default_rng(0).standard_normal((5, 48)), **k
    ),
}

METHODS = {name: make() for name, make in public(methods, "Method").items()}
every_measurement = pytest.mark.parametrize("name", MEASUREMENTS)


def test_every_measurement_and_method_is_here():
    made = set(public(measurements, "Measurement"))
    assert made == {name.partition("_")[0] for name in MEASUREMENTS} | {"saturate"}
    assert set(METHODS) == {"unguided", "ddnm", "pigdm", "dps", "replacement", "repaint"}
    assert set(public(masks, "Mask")) == {"half", "box", "random"}


# ---- measurements
@every_measurement
def test_all_of_a_measurement_is_that_of_its_matrix(name):
    """The transpose, the pseudo-inverse, and a function of A A^T, from the matrix that forward is."""
    measurement = MEASUREMENTS[name]()
    eye = jnp.eye(48).reshape(48, *SHAPE)
    rows = measurement.forward(eye)
    matrix = np.asarray(rows, np.float64).reshape(48, -1).T  # (M, 48)
    units = jnp.eye(len(matrix)).reshape(-1, *rows.shape[1:])

    def flat(a):
        return np.asarray(a).reshape(len(a), -1)

    assert_allclose(
        flat(measurement.adjoint(measurement.spectral(units, lambda s2: (s2 > 1e-9) * 1.0))).T,
        matrix.T,
        atol=1e-5,
    )
    assert_allclose(
        flat(measurements.pinv(measurement, measurement.forward(eye))).T,
        np.linalg.pinv(matrix, rcond=1e-3) @ matrix,
        atol=2e-4,
    )
    gram = matrix @ matrix.T
    wanted = gram @ np.linalg.inv(0.3 * gram + 0.2 * np.eye(len(gram)))
    assert_allclose(
        flat(measurement.spectral(units, lambda s2: s2 / (0.3 * s2 + 0.2))), wanted, atol=1e-5
    )


@every_measurement
def test_consistent_is_the_nearest_image_with_the_measurement(name):
    measurement = MEASUREMENTS[name]()
    rng = np.random.default_rng(1)
    x, other = (jnp.asarray(rng.standard_normal((2, *SHAPE)), "float32") for _ in range(2))
    y = measurement.forward(other)
    found = measurements.consistent(measurement, x, y)
    assert_allclose(measurement.forward(found), y, atol=2e-4)
    moved = np.asarray(
        measurements.pinv(measurement, measurement.forward(found - x))
    )  # the move lies in what A sees
    assert_allclose(found - x, moved, atol=2e-3)
    if name == "inpaint":
        known = np.broadcast_to(MASK == 1, x.shape)
        assert_array_equal(np.asarray(found)[known], np.asarray(other)[known])
        assert_array_equal(np.asarray(found)[~known], np.asarray(x)[~known])


def test_noise_is_of_the_measured_part_and_of_the_image():
    measurement = MEASUREMENTS["inpaint"](std=0.5)
    x = jnp.zeros((200, *SHAPE))
    y = np.asarray(measurements.measure(measurement, jax.random.key(0), x))
    assert not y[:, MASK[..., 0] == 0].any()
    assert abs(y[:, MASK[..., 0] == 1].std() - 0.5) < 0.01
    assert_array_equal(measurements.measure(measurement, jax.random.key(0), x[:3]), y[:3])


def test_blur_against_a_plain_loop():
    x = np.random.default_rng(0).standard_normal((1, 4, 4, 3))
    near = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    wanted = np.mean([np.roll(x, shift, (1, 2)) for shift in near], 0)
    assert_allclose(
        MEASUREMENTS["deblur_uniform"]().forward(jnp.asarray(x, "float32")), wanted, atol=1e-6
    )


def test_masks():
    assert masks.half((4, 6, 1)).mean() == 0.5 and masks.half((4, 6, 1))[:2].all()
    hole = masks.box((8, 8, 1))[..., 0]
    assert hole.sum() == 48 and not hole[2:6, 2:6].any()
    scattered = masks.random((10, 10, 3), 0.3, seed=1)
    assert scattered.shape == (10, 10, 1) and scattered.sum() == 30
    assert_array_equal(scattered, masks.random((10, 10, 3), 0.3, seed=1))


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: measurements.inpaint((8, 8, 1), np.ones((4, 8, 1))), "does not fit"),
        (lambda: measurements.colorize((8, 8, 1)), "needs color"),
        (lambda: measurements.superres((8, 8, 1), 3), "does not divide"),
        (lambda: measurements.superres((2,), 2), "is for images"),
        (lambda: measurements.deblur((8, 8, 1), -1.0), "width=-1.0: it must be at least"),
        (lambda: measurements.linear((2,), np.ones((1, 3))), "must be"),
        (
            lambda: measurements.linear((2,), np.ones((1, 2)), std=-1.0),
            "std=-1.0: it must be at least 0",
        ),
        (lambda: masks.box((8, 8, 1), 1.5), "between 0 and 1"),
        (lambda: masks.random((8, 8, 1), 0.0), "between 0 and 1"),
        (lambda: methods.repaint(0), "resample=0: it must be at least 1"),
        (lambda: edits.last_moves(jnp.ones(3), 0.0), "above 0"),
        (
            lambda: methods.restore(methods.ddnm(), measurements.saturate((2,)), *[None] * 7),
            "needs a linear measurement",
        ),
    ],
)
def test_mistakes_are_one_line(make, words):
    with pytest.raises(UserError, match=words) as error:
        make()
    assert "\n" not in str(error.value)


# ---- methods on Gaussian data
A, STD, Y = np.array([[1.0, 0.5, 0.0], [0.0, 1.0, -1.0]]), 0.3, np.array([0.7, -0.4])

MEAN, ROOT = (
    np.array([0.3, -0.2, 0.5]),
    np.array([[0.8, 0.0, 0.0], [0.5, 0.4, 0.0], [-0.3, 0.2, 0.6]]),
)

COVARIANCE = ROOT @ ROOT.T


def told_of(method, law, std=STD):
    """x0-hat of (index, x_t, t), by the method's denoiser, under whichever process the index says."""
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
            run = told_of(method, law)
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
            told_of(methods.pigdm(), law)(index, x, t).x0[0], x0 + u2 * jacobian.T @ pull, rtol=1e-9
        )
        y, denoise, nothing = (
            jnp.asarray(Y)[None],
            laws.denoise_gaussian(law, process),
            base.Noise(None, None),
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
    noise = base.Noise(lambda t, s, part=0: z * jnp.ones_like(x), lambda i: z * jnp.ones_like(x))

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
        told = probe(methods.pigdm(), ancestral.ddpm(), 200, measurement, y, law, process)[1]
        wanted = rho * 1.5
        assert abs(few - wanted) > 0.1 * wanted and abs(many - wanted) > 0.1 * wanted
        assert abs(again - wanted) < 0.5 * abs(few - wanted)
        assert np.isfinite(told)


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


# ---- the truth
def test_posterior_and_conditional_denoiser_against_quadrature():
    with jax.enable_x64(True):
        process, t, std = schedules.VP(), 0.3, 0.4
        matrix, y, x_t = np.array([[1.0, 0.5]]), np.array([[0.3]]), np.array([[0.1, -0.3]])
        law = laws.mixture(
            np.array([0.5, 0.3, 0.2]),
            np.array([[0.8, -0.3], [-0.5, 0.6], [0.2, 0.9]]),
            np.array([[0.3, 0.2], [0.4, 0.25], [0.2, 0.5]]),
        )
        axis = np.linspace(-3, 3, 401)
        x0 = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
        prior = sum(
            w * np.exp(-0.5 * ((x0 - m) ** 2 / v).sum(1)) / np.sqrt(v.prod())
            for w, m, v in zip(*map(np.asarray, law))
        )
        weight = prior * np.exp(-0.5 * ((y - x0 @ matrix.T) ** 2).sum(1) / std**2)
        mean = weight @ x0 / weight.sum()
        exact = posterior.posterior(law, jnp.asarray(matrix), std**2, jnp.asarray(y))
        found, variance = posterior.posterior_moments(exact)
        assert_allclose(found[0], mean, atol=1e-6)
        assert_allclose(variance[0], weight @ (x0 - mean) ** 2 / weight.sum(), atol=1e-6)
        alpha, sigma = (float(f(jnp.float64(t))) for f in (process.alpha, process.sigma))
        both = weight * np.exp(-0.5 * ((x_t - alpha * x0) ** 2).sum(1) / sigma**2)
        told = posterior.conditional(law, process, jnp.asarray(matrix), std, jnp.asarray(y))(
            jnp.asarray(x_t), jnp.float64(t)
        )
        assert_allclose(told.x0[0], both @ x0 / both.sum(), atol=1e-6)
        repeated = exact._replace(
            weights=jnp.repeat(exact.weights, 4000, 0), means=jnp.repeat(exact.means, 4000, 0)
        )
        draws = np.asarray(posterior.draw_posterior(repeated, jax.random.key(0)))
        assert_allclose(draws.mean(0), mean, atol=5 * np.sqrt(np.max(variance) / 4000))
        assert_allclose(draws.var(0), variance[0], rtol=0.15)


# ---- every method, process and sampler
@pytest.mark.parametrize("name", METHODS)
def test_every_method_under_every_process_ends_on_the_measurement(name):
    """Finite, A x0 = y where there is no noise, and an image depends on its own key alone."""
    law = laws.gaussian(MEAN, COVARIANCE)
    measurement = measurements.inpaint((3,), np.array([1.0, 0.0, 1.0], "float32"))
    y = measurement.forward(
        jnp.asarray(np.random.default_rng(0).standard_normal((3, 3)), "float32")
    )

    @jax.jit
    def run(index, keys, y, ts):
        process = AnyOf(index)
        x = base.start(process, keys, y.shape)
        denoise = laws.denoise_gaussian(law, process)
        return methods.restore(
            METHODS[name],
            measurement,
            y,
            ancestral.ddim(0.5),
            denoise,
            process,
            keys,
            x,
            ts,
            padded=True,
        ).x0

    for index, process in enumerate(PROCESSES.values()):
        keys, ts = jax.random.split(jax.random.key(0), 3), grids.uniform_logsnr(process, 7)
        x0 = np.asarray(run(index, keys, y, ts))
        assert np.isfinite(x0).all(), f"{name} under {list(PROCESSES)[index]}"
        assert_array_equal(x0[:, [0, 2]], np.asarray(y)[:, [0, 2]])
    assert_allclose(run(index, keys[::-1], y[::-1], ts), x0[::-1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_takes_a_guided_denoiser_and_a_wrapper(sampler):
    """Traced, not run: of the kinds of method one each."""
    process, law = schedules.VP(), laws.gaussian(MEAN, COVARIANCE)
    made = SAMPLERS[sampler]()

    def denoise(x, t, cond=None):
        return laws.denoise_gaussian(law, process)(x, t)._replace(nu=jnp.zeros_like(x))

    measurement, ts = measurements.linear((3,), A, STD), grids.uniform_logsnr(process, 3)
    for method in (methods.pigdm(), methods.repaint(2, 2), methods.dps()):

        def run(key, x, y):
            return methods.restore(method, measurement, y, made, denoise, process, key, x, ts).x0  # noqa: B023, E731

        out = jax.eval_shape(run, jax.random.key(0), jnp.zeros((2, 3)), jnp.zeros((2, 2)))
        assert out.shape == (2, 3)
        assert base.adaptive(made) or method.wrap(made, measurement, None).nfe >= made.nfe


def test_evaluations_of_wrapped_samplers():
    measurement = measurements.inpaint((2,), np.ones(2))

    def counted(method, sampler):
        return base.evaluations(method.wrap(sampler, measurement, None), np.zeros(4))

    assert counted(methods.replacement(), ode.heun()) == 7
    assert counted(methods.repaint(5, 2), ancestral.ddpm()) == 3 * 10 + 1
    assert counted(methods.dps(), ancestral.ddpm()) == 3 * 2 + 1
    # its first moves cost more: of two moves to a move of the grid, the first two's cost comes each
    # time
    pndm = multistep.pndm()
    assert counted(methods.repaint(3, 2), pndm) == 3 * (6 * pndm.nfe + sum(pndm.warmup[:6])) + 1


def test_repaint_counts_what_it_evaluates():
    process, calls = schedules.VP(), []
    measurement = measurements.inpaint((2,), np.array([1.0, 0.0], "float32"))

    def denoise(x, t, cond=None):
        jax.debug.callback(lambda: calls.append(1))
        return laws.denoise_gaussian(laws.gaussian(np.zeros(2), np.eye(2)), process)(x, t)

    ts, y = grids.uniform(process, 3), jnp.ones((1, 2))
    methods.restore(
        methods.repaint(3, 2),
        measurement,
        y,
        ancestral.ddpm(),
        denoise,
        process,
        jax.random.key(0),
        y,
        ts,
    )
    jax.effects_barrier()
    assert len(calls) == 2 * 6 + 1


def test_only_dps_takes_what_is_not_linear():
    """y = x + x^3: dps finds the x0 that it is of, to within its last step, 2 scale |grad |r|| <= 2
    scale (1 + 3 x^2).
    """
    assert {name for name, method in METHODS.items() if not method.linear} == {"unguided", "dps"}
    process, measurement, truth = (
        schedules.VP(),
        measurements.Measurement(lambda x: x + x**3),
        jnp.array([[0.5, -0.8]] * 4),
    )
    law, ts = laws.gaussian(np.zeros(2), np.eye(2)), grids.uniform_logsnr(process, 80)
    run = jax.jit(
        lambda keys, y: (
            methods.restore(
                methods.dps(0.05),
                measurement,
                y,
                ancestral.ddim(),
                laws.denoise_gaussian(law, process),
                process,
                keys,
                base.start(process, keys, y.shape),
                ts,
            ).x0
        )
    )
    found = run(jax.random.split(jax.random.key(0), 4), measurement.forward(truth))
    assert_allclose(found, truth, atol=2 * 0.05 * (1 + 3 * 0.8**2))


# ---- edits
def test_slerp_keeps_lengths_and_goes_along_the_arc():
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.standard_normal((3, 2, 4)), "float32") for _ in range(2))

    def unit(v):
        return v / np.linalg.norm(np.asarray(v).reshape(3, -1), axis=1)[:, None, None]

    a, b = unit(a), unit(b)
    assert_allclose(edits.slerp(a, b, 0.0), a, atol=1e-6)
    assert_allclose(edits.slerp(a, b, 1.0), b, atol=1e-6)
    middle = edits.slerp(a, b, 0.5)
    assert_allclose(middle, unit(a + b), atol=1e-5)
    assert_allclose(edits.slerp(a, a, 0.3), a, atol=1e-6)  # no arc
    assert np.all(
        np.isfinite(jax.grad(lambda a, b: edits.slerp(a, b, 0.3).sum(), argnums=(0, 1))(a, a))
    )


def by_class(process):
    """Two Gaussians of the same covariance, one for each label."""
    both = [
        laws.denoise_gaussian(laws.gaussian(centre, 0.25 * np.eye(2)), process)
        for centre in np.array([[1.0, 0.0], [-1.0, 0.5]])
    ]

    def denoise(x, t, cond):
        first, second = (one(x, t) for one in both)
        return jax.tree.map(
            lambda p, q: jnp.where(cond["label"][:, None] == 0, p, q), first, second
        )

    return denoise


def test_translation_of_gaussians_is_a_shift_and_interpolation_ends_at_its_ends():
    process, x0 = schedules.VP(), jnp.array([[1.3, -0.2], [0.7, 0.4]])
    zero, one, ts = (
        {"label": jnp.zeros(2, int)},
        {"label": jnp.ones(2, int)},
        grids.uniform_logsnr(process, 40),
    )
    sampler = multistep.dpmpp_2m()
    moved = jax.jit(
        lambda x: edits.translate(sampler, by_class(process), process, x, ts, zero, one)
    )(x0)
    assert_allclose(moved, x0 + np.array([-2.0, 0.5]), atol=0.02)
    way = jax.jit(
        lambda a, b: edits.interpolate(
            sampler, by_class(process), process, a, b, jnp.array([0.0, 0.5, 1.0]), ts, (zero, one)
        )
    )
    frames = way(x0, moved)
    assert frames.shape == (3, 2, 2)
    assert_allclose(frames[0], x0, atol=0.02)
    assert_allclose(frames[2], moved, atol=0.02)


def test_a_stochastic_sampler_blends_between_its_own_images():
    process, keys = schedules.VP(), arrays.example_keys(jax.random.key(0), 3)
    conds = {"label": jnp.zeros(3, int)}, {"label": jnp.ones(3, int)}
    a, b = (base.start(process, jax.random.key(seed), (3, 2)) for seed in (1, 2))
    sampler, ts = few_step.multistep(), grids.few_step(process, 2)
    frames = edits.blend(
        sampler, by_class(process), process, keys, a, b, jnp.array([0.0, 0.4, 1.0]), ts, conds
    )
    for frame, x, cond in ((frames[0], a, conds[0]), (frames[2], b, conds[1])):
        assert_allclose(
            frame,
            base.sample(sampler, by_class(process), process, keys, x, ts, cond).x0,
            rtol=1e-5,
            atol=1e-6,
        )
    assert (np.abs(frames[1] - frames[0]) > 1e-6).all()  # the start has moved, and not the class
    with pytest.raises(UserError, match="only a deterministic sampler can encode"):
        edits.interpolate(sampler, by_class(process), process, a, b, jnp.zeros(1), ts, conds)


def test_sdedit_keeps_less_of_the_guide_the_more_noise_there_is():
    """From time t on the mean is that of x0 given x_t: alpha^2 C / (alpha^2 C + sigma^2) of the
    guide is left.
    """
    process, guide, full = (
        schedules.VP(),
        jnp.full((400, 2), 2.0),
        grids.uniform_logsnr(schedules.VP(), 41),
    )
    denoise = laws.denoise_gaussian(laws.gaussian(np.zeros(2), np.eye(2)), process)
    run = jax.jit(
        lambda keys, ts: edits.sdedit(ancestral.ddpm(), denoise, process, keys, guide, ts)
    )
    left = []
    for strength in (0.25, 0.55, 1.0):
        ts = edits.last_moves(full, strength)
        assert len(ts) == round(40 * strength) + 1
        mean = float(np.mean(run(jax.random.key(0), ts)))
        alpha, sigma = (float(f(ts[0])) for f in (process.alpha, process.sigma))
        assert_allclose(mean, 2 * alpha**2 / (alpha**2 + sigma**2), atol=0.15)
        left.append(mean)
    assert left[0] > 1.7 and left[2] < 0.15 and sorted(left, reverse=True) == left


def test_public_functions_say_what_they_are():
    for name, function in (
        public(methods) | public(measurements) | public(masks) | public(edits)
    ).items():
        assert inspect.getdoc(function), name


def test_spread_is_the_posterior_variance_of_isotropic_data():
    process, t = schedules.EDM(), jnp.float32(0.01)
    law = laws.gaussian(np.zeros(2), 0.36 * np.eye(2))
    slope = jax.jacfwd(lambda x: laws.denoise_gaussian(law, process)(x[None], t).x0[0])(
        jnp.zeros(2)
    )
    sigma = process.sigma(t)
    assert_allclose(methods.spread(process, t, 0.6) * np.eye(2), sigma**2 * slope, rtol=1e-5)
