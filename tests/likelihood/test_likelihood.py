"""Likelihood by the probability flow against closed forms, under every kind of process, and bits
per dimension.
"""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback
from numpy.testing import assert_allclose
from scipy.stats import multivariate_normal, norm

from diffusion_jax.core.errors import UserError
from diffusion_jax.data.normalization import Normalization
from diffusion_jax.denoisers import guidance
from diffusion_jax.likelihood import flow
from diffusion_jax.processes import gaussian, schedules
from diffusion_jax.targets import laws
from tests.families import PROCESSES

MIXTURE = laws.mixture(
    [0.6, 0.4], [[0.8, -0.3, 0.1], [-0.5, 0.6, 0.0]], [[0.3, 0.2, 0.5], [0.15, 0.4, 0.1]]
)

ROOT_OF_C = np.array([[0.5, 0.0, 0.0], [0.4, 0.3, 0.0], [-0.3, 0.2, 0.1]], np.float32)
NORMAL = laws.gaussian(jnp.array([0.5, -0.3, 0.2]), jnp.asarray(ROOT_OF_C @ ROOT_OF_C.T))

LAWS = {
    "mixture": (MIXTURE, laws.denoise_mixture, laws.log_density_mixture, laws.draw_mixture),
    "gaussian": (NORMAL, laws.denoise_gaussian, laws.log_density_gaussian, laws.draw_gaussian),
}

CASES = [
    ("VP", "mixture"),
    ("SubVP", "gaussian"),
    ("VE", "mixture"),
    ("EDM", "gaussian"),
    ("RectifiedFlow", "mixture"),
    ("DDPM_linear", "gaussian"),
    ("VP", "gaussian"),
]


@functools.cache
def solved(name, law, solver=None, trace=None, count=32):
    target, denoise, _, draw = LAWS[law]
    process, x = PROCESSES[name], draw(target, jax.random.key(1), count)
    exact = denoise(target, process)
    run = jax.jit(
        lambda x: flow.log_likelihood(
            process, exact, x, jax.random.key(0), solver=solver, trace=trace
        )
    )
    return process, x, run(x)


def truth(process, law, x, t):
    target, _, log_density, _ = LAWS[law]
    return np.asarray(log_density(target, process, x, t))


@pytest.mark.parametrize("name, law", CASES)
def test_adaptive_is_the_closed_form(name, law):
    """The error is below 1e-3 nats a dimension at every point, given the true density at t_max.

    With the prior at t_max it is below that on average.
    """
    process, x, found = solved(name, law)
    change = truth(process, law, x, process.t_min) - truth(
        process, law, found.latent, process.t_max
    )
    assert_allclose(found.change / 3, change / 3, atol=1e-3)
    assert_allclose(np.mean(found.logp - truth(process, law, x, process.t_min)) / 3, 0, atol=1e-3)
    assert_allclose(found.logp, found.prior + found.change, rtol=1e-6)
    assert_allclose(
        found.prior, norm.logpdf(found.latent, 0, gaussian.prior_scale(process)).sum(1), rtol=1e-4
    )
    assert np.all((found.nfe > 50) & (found.nfe < 250))


@pytest.mark.parametrize("method, steps, tolerance", [("rk4", 48, 1e-3), ("heun", 128, 5e-3)])
def test_fixed_steps_agree(method, steps, tolerance):
    process, x, found = solved("VP", "gaussian", flow.fixed(method, steps))
    assert_allclose(found.logp / 3, solved("VP", "gaussian")[2].logp / 3, atol=tolerance)
    assert_allclose(
        found.latent, laws.flow(NORMAL, process, x, process.t_min, process.t_max), atol=0.01
    )
    assert np.all(found.nfe == steps * {"rk4": 4, "heun": 2}[method])


def test_one_model_has_one_likelihood_under_every_process_with_its_ends():
    """The same data law between the same log-SNRs, as VP and as a flow: in the unit frame all is
    equal.
    """
    straight = schedules.RectifiedFlow(t_min=0.01, t_max=0.99)
    whole = schedules.VP(t_min=1e-9)
    t_min, t_max = (
        float(gaussian.time_of_logsnr(whole, gaussian.logsnr(straight, jnp.float32(t))))
        for t in (0.01, 0.99)
    )
    z, found = jnp.array([[0.4, -0.2, 0.1], [0.0, 0.3, -0.1]]), []
    for process in (straight, schedules.VP(t_min=t_min, t_max=t_max)):
        exact, ends = (
            laws.denoise_gaussian(NORMAL, process),
            jnp.array([process.t_min, process.t_max]),
        )
        run = jax.jit(
            lambda x, process=process, exact=exact: flow.log_likelihood(
                process, exact, x, jax.random.key(0), solver=flow.fixed("rk4", 32)
            )
        )
        r = jnp.hypot(process.alpha(ends), process.sigma(ends))
        solution = run(z * r[0])
        found.append((solution.change - 3 * jnp.log(r[1] / r[0]), solution.latent / r[1]))
    assert_allclose(found[0][0], found[1][0], rtol=2e-4)
    assert_allclose(found[0][1], found[1][1], atol=2e-4)


def test_at_one_end_log_snr_all_processes_have_the_likelihood_of_equally_noised_data():
    """log p(alpha y) + D log alpha = log N(y; mean, C + exp(-lam) I) under every process."""
    y, lam = np.array([[0.4, -0.2, 0.1], [0.9, 0.3, -0.4]], np.float32), 4.0
    covariance = ROOT_OF_C @ ROOT_OF_C.T + np.exp(-lam) * np.eye(3)
    wanted = multivariate_normal.logpdf(y, [0.5, -0.3, 0.2], covariance)
    for process in (schedules.VP(), schedules.SubVP(), schedules.EDM(), schedules.RectifiedFlow()):
        ended = gaussian.ending_at(process, lam)
        alpha = ended.alpha(jnp.float32(ended.t_min))
        exact = laws.denoise_gaussian(NORMAL, process)
        solver = flow.fixed("rk4", 24)
        run = jax.jit(
            lambda x, ended=ended, exact=exact, solver=solver: flow.log_likelihood(
                ended, exact, x, jax.random.key(0), solver=solver
            )
        )
        found = run(alpha * y)
        at_noise = truth(process, "gaussian", found.latent, process.t_max)
        assert_allclose(found.change + at_noise + 3 * np.log(alpha), wanted, atol=5e-3)
    with pytest.raises(UserError, match="end_logsnr=12: the log-SNR of this process ends at 9.1"):
        gaussian.ending_at(schedules.VP(), 12.0)


def test_hutchinson_is_unbiased_and_a_full_basis_of_probes_is_exact():
    solver = flow.fixed("rk4", 48)
    exact = np.asarray(solved("VP", "gaussian", solver, count=512)[2].logp)
    errors = {}
    for law, k in (("rademacher", 1), ("gaussian", 1), ("gaussian", 8)):
        error = (
            np.asarray(solved("VP", "gaussian", solver, flow.hutchinson(k, law), 512)[2].logp)
            - exact
        )
        assert abs(error.mean()) < 4 * error.std() / np.sqrt(512), (law, k)
        errors[law, k] = error.std()
    assert 0 < errors["rademacher", 1] < errors["gaussian", 1]
    assert 2.2 < errors["gaussian", 1] / errors["gaussian", 8] < 3.6  # sqrt(8)
    rotation = jnp.asarray(
        np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0], "float32"
    )
    basis = solved("VP", "gaussian", solver, lambda key, x: rotation, 512)[2].logp
    assert_allclose(basis, exact, atol=1e-3)


def test_an_image_has_its_value_at_any_batch_size_and_one_trace_serves_all():
    process, (target, denoise, _, draw) = PROCESSES["VP"], LAWS["gaussian"]
    x, keys = draw(target, jax.random.key(1), 8), jax.random.split(jax.random.key(0), 8)

    @jax.jit
    @chex.assert_max_traces(n=2)
    def run(x, keys):
        solver = flow.adaptive(
            rtol=1e-3, atol=1e-3
        )  # at 1e-5 rounding may decide whether a step is taken again
        exact = denoise(target, process)
        return flow.log_likelihood(process, exact, x, keys, trace=flow.hutchinson(2), solver=solver)

    whole, again, part = run(x, keys), run(x + 0, keys), run(x[5:], keys[5:])
    assert_allclose(whole.logp, again.logp, rtol=0)
    assert_allclose(whole.logp[5:], part.logp, atol=1e-4)
    assert np.array_equal(whole.nfe[5:], part.nfe) and len(set(whole.nfe.tolist())) > 1


def test_nfe_is_what_was_evaluated():
    for method in flow.ADAPTIVE:
        seen = []

        def note(u, seen=seen):
            seen.append(u)
            return np.float32(0)

        def field(u, y, note=note):
            return -u * y + io_callback(note, jax.ShapeDtypeStruct((), jnp.float32), u)

        y, nfe = flow.adaptive(method, 1e-4, 1e-4)(field, jnp.array([0.3, 0.2]), 0.0, 2.0)
        jax.effects_barrier()
        assert len(seen) == nfe
        assert_allclose(y, np.array([0.3, 0.2]) * np.exp(-2), rtol=1e-3)


def test_conditions_guidance_and_image_shapes():
    """Class k is N(k, 0.25): each image is judged by its own; guidance 1 changes nothing, guidance
    0 is the null class.
    """
    process, x = schedules.VP(), jnp.stack([jnp.full((2, 1, 1), 0.3), jnp.full((2, 1, 1), 1.3)])

    def denoise(x_t, t, cond):
        mean = cond["label"].astype(x_t.dtype)[:, None, None, None]
        centered = x_t - process.alpha(t).reshape(-1, 1, 1, 1) * mean
        alpha, sigma = (f(t).reshape(-1, 1, 1, 1) for f in (process.alpha, process.sigma))
        return gaussian.from_x0(
            process, x_t, mean + alpha * 0.25 / (alpha**2 * 0.25 + sigma**2) * centered, t
        )

    def null(cond):
        return {"label": jnp.zeros_like(cond["label"])}

    run = jax.jit(
        lambda x, labels, scale: flow.log_likelihood(
            process,
            guidance.cfg(denoise, scale, null),
            x,
            jax.random.key(0),
            {"label": labels},
            solver=flow.fixed("rk4", 24),
        )
    )
    own, unconditional = (run(x, jnp.array([0, 1]), scale) for scale in (1.0, 0.0))
    expected = 2 * norm.logpdf(0.3, 0, np.sqrt(0.25))
    assert own.latent.shape == x.shape
    assert_allclose(
        own.logp, expected, atol=0.02
    )  # the prior knows nothing of the mean, alpha(1) = 0.0066
    assert_allclose(unconditional.logp[0], own.logp[0], atol=1e-4)
    assert_allclose(unconditional.logp[1], 2 * norm.logpdf(1.3, 0, np.sqrt(0.25)), atol=0.03)


# ---- bits per dimension
MEAN, STD = 0.1, 0.3


@pytest.mark.parametrize(
    "dequantize, t_min", [("uniform", 1e-4), ("process", 6e-3), ("process", 2e-4)]
)
def test_bits_of_quantized_gaussian_data_are_its_entropy_rate(dequantize, t_min):
    """-log2 of each bin's own probability, by scipy. sigma(t_min) is 0.4, 4 and 0.6 bins."""
    process = schedules.VP(t_min=t_min)
    x = MEAN + STD * jax.random.normal(jax.random.key(0), (512, 4))
    x0 = jnp.clip(jnp.round((x + 1) * 127.5), 0, 255) / 127.5 - 1
    denoise = laws.denoise_gaussian(laws.gaussian(jnp.full(4, MEAN), STD**2 * jnp.eye(4)), process)
    run = jax.jit(
        lambda x0: flow.bits_per_dim(
            process,
            denoise,
            x0,
            jax.random.key(1),
            dequantize=dequantize,
            draws=4,
            solver=flow.fixed("rk4", 24),
        )
    )
    found = run(x0)
    edges = np.asarray(x0, "float64")[..., None] + np.array([-1, 1]) / 255
    edges = np.where(np.abs(edges) > 1, np.inf * np.sign(edges), edges)
    exact = -np.log2(np.diff(norm.cdf(edges, MEAN, STD)))[..., 0].mean(1)
    mean, error = flow.mean_with_error(np.asarray(found.bits) - exact)
    slack = {6e-3: 0.01, 2e-4: 0.25, 1e-4: 0.003}[t_min]  # of P(x0 | x): see below
    assert -4 * error - 2e-3 < mean < slack + 4 * error and error < 0.02, (mean, error)
    assert np.all(found.importance <= found.bits + 1e-5) and np.mean(found.importance) < np.mean(
        found.bits
    )
    weights = np.asarray(found.log_weights, "float64")
    assert_allclose(found.bits, -weights.mean(1) / 4 / np.log(2), rtol=1e-5)
    assert_allclose(found.importance, -np.log(np.exp(weights).mean(1)) / 4 / np.log(2), rtol=1e-4)
    assert np.all(found.nfe == 4 * (96 + (dequantize == "process")))


def test_whole_numbers_of_channels_with_scales_of_their_own_have_their_entropy_rate():
    """-log2 of each integer's probability; the bins are 1 / scale, as Normalization says."""
    shift, scale, process = np.array([3.0, -20.0]), np.array([4.0, 9.0]), schedules.VP(t_min=1e-4)
    known = Normalization((*shift,), (*scale,), (-9.0, -50.0), (15.0, 10.0), "int16")
    assert_allclose(known.bins, 1 / scale)
    assert known._replace(dtype="float32").bins is None
    whole = np.rint(shift + scale * np.random.default_rng(0).standard_normal((256, 4, 2)))
    x0 = jnp.asarray(known.encode(whole).reshape(256, 8))
    law = laws.gaussian(jnp.zeros(8), jnp.eye(8))
    flat = laws.denoise_gaussian(law, process)

    def denoise(x_t, t, cond):
        found = flat(x_t.reshape(-1, 8), t, cond)
        return found._replace(x0=found.x0.reshape(x_t.shape), eps=found.eps.reshape(x_t.shape))

    found = jax.jit(
        lambda x: flow.bits_per_dim(
            process, denoise, x, jax.random.key(1), bins=known.bins, solver=flow.fixed("rk4", 24)
        )
    )(x0.reshape(256, 4, 2))
    edges = (whole[..., None] + np.array([-0.5, 0.5]) - shift[:, None]) / scale[:, None]
    exact = -np.log2(np.diff(norm.cdf(edges)))[..., 0].mean((1, 2))
    mean, error = flow.mean_with_error(np.asarray(found.bits) - exact)
    assert -4 * error - 2e-3 < mean < 0.01 + 4 * error and error < 0.02, (mean, error)


def test_continuous_data_have_no_offset_and_mistakes_are_named():
    process = schedules.VP()
    denoise = laws.denoise_gaussian(NORMAL, process)
    x = jnp.array([[0.4, -0.2, 0.1]])
    key, solver = jax.random.key(0), flow.fixed("rk4", 24)
    found = flow.bits_per_dim(process, denoise, x, key, dequantize="none", solver=solver)
    assert_allclose(
        found.bits, -truth(process, "gaussian", x, process.t_min) / 3 / np.log(2), atol=0.01
    )
    out_of_steps = flow.log_likelihood(
        process, denoise, x, jax.random.key(0), solver=flow.adaptive(max_steps=2)
    )
    assert np.isnan(out_of_steps.logp).all()
    for call, said in {
        lambda: flow.bits_per_dim(
            process, denoise, x, jax.random.key(0), dequantize="unifrom"
        ): "did you mean 'uniform'",
        lambda: flow.hutchinson(1, "gausian"): "did you mean 'gaussian'",
        lambda: flow.adaptive("tsit4"): "did you mean 'tsit5'",
        lambda: flow.fixed("hein"): "did you mean 'heun'",
        lambda: flow.solver("rk5"): "did you mean 'rk4'",
    }.items():
        with pytest.raises(UserError, match=said):
            call()
    mean, error = flow.mean_with_error(np.array([1.0, 2.0, 3.0, 6.0]))
    assert mean == 3.0 and abs(error - np.sqrt(14 / 3) / 2) < 1e-12
    assert np.isnan(flow.mean_with_error(np.ones(1))[1])
