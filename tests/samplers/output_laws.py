"""The laws of samplers' outputs on Gaussian data, where every sampler is an affine map.

With the exact denoiser of N(mean, diag(variances)) one step is x_s = A x + b + C z per dimension,
so the output law of a whole run is composed from probes at x = 0, x = 1 and z = 1 of every draw,
without Monte Carlo. One compiled program per sampler serves every process.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.samplers import step_noise
from diffusion_jax.targets import laws
from tests.families import PROCESSES, AnyOf

MEANS, VARIANCES = np.array([0.5, -1.0, 0.0]), np.array([0.04, 1.0, 2.25])


def denoiser(process):
    """The exact denoiser of the Gaussian data, in the dtype of x; nu = 0.3 for the sampler that
    reads it.
    """

    def denoise(x, t, cond=None):
        target = laws.Gaussian(*(jnp.asarray(v, x.dtype) for v in (MEANS, VARIANCES, np.eye(3))))
        return laws.denoise_gaussian(target, process)(x, t)._replace(nu=jnp.full_like(x, 0.3))

    return denoise


def draws_of(sampler, process, x, ts):
    """The draws that a step of the sampler reads: ('path', part) and ('extra', number)."""
    found = set()

    def read(*draw):
        found.add(draw)
        return jnp.zeros_like(x)

    noise = step_noise.Noise(lambda t, s, part=0: read("path", part), lambda j: read("extra", j))
    jax.eval_shape(
        lambda: sampler.step(
            noise, x, sampler.init(x, ts), ts[0], ts[1], denoiser(process), process, None
        )
    )
    return sorted(found)


def law_of_run(sampler, process, ts, moves):
    """(slope, offset, variance of what the draws add), (3,) each: the run over the first `moves`
    steps of ts is affine in its start and all its draws, so x = 0, x = 1 and one row for each draw
    say everything.
    """
    draws = draws_of(sampler, process, jnp.zeros((2, 3), ts.dtype), ts)
    x = jnp.zeros((2 + len(draws) * (len(ts) - 1), 3), ts.dtype).at[1].set(1.0)
    row = jnp.arange(len(x)) - 2

    def move(i, carry):
        drawn = {
            draw: jnp.where(row == i * len(draws) + d, 1.0, 0.0)[:, None] * jnp.ones(3, ts.dtype)
            for d, draw in enumerate(draws)
        }
        noise = step_noise.Noise(
            lambda t, s, part=0: drawn["path", part], lambda j: drawn["extra", j]
        )
        return sampler.step(noise, *carry, ts[i], ts[i + 1], denoiser(process), process, None)

    out = jax.lax.fori_loop(0, moves, move, (x, sampler.init(x, ts)))[0]
    return out[1] - out[0], out[0], ((out[2:] - out[0]) ** 2).sum(0)


@functools.cache
def runs(sampler):
    """law_of_run compiled once for every process and grid of one length."""
    return jax.jit(lambda index, ts, moves: law_of_run(sampler, AnyOf(index), ts, moves))


def output_laws(sampler, process, ts):
    """What becomes of the data's own law at ts[0] on every second of the times ts, and on all of
    them: two dicts of (3,) in float64.

    mean, variance: of the output; slope: of the composed noiseless map; true_mean, true_variance,
    true_slope: the data's and the flow's.
    """
    with jax.enable_x64(True):
        ts = jnp.asarray(ts, "float64")
        alpha, sigma = (
            np.asarray(f(ts[jnp.array([0, -1])]))[:, None] for f in (process.alpha, process.sigma)
        )
        means, variances = alpha * MEANS, alpha**2 * VARIANCES + sigma**2
        true = {
            "true_mean": means[1],
            "true_variance": variances[1],
            "true_slope": np.sqrt(variances[1] / variances[0]),
        }
        laws = []
        for part in (ts[::2], ts):
            padded = jnp.concatenate([part, jnp.broadcast_to(part[-1:], (len(ts) - len(part),))])
            if process in PROCESSES.values():
                found = runs(sampler)(
                    list(PROCESSES.values()).index(process), padded, len(part) - 1
                )
            else:
                found = law_of_run(sampler, process, padded, len(part) - 1)
            slope, offset, added = map(np.asarray, found)
            laws.append(
                true
                | {
                    "slope": slope,
                    "mean": slope * means[0] + offset,
                    "variance": slope**2 * variances[0] + added,
                }
            )
        return laws


def path_error(law):
    """The largest error of the affine map against the exact flow: of a start one standard deviation
    out, and of the center.
    """
    return max(
        np.abs(law["slope"] / law["true_slope"] - 1).max(),
        (np.abs(law["mean"] - law["true_mean"]) / np.sqrt(law["true_variance"])).max(),
    )


def law_error(law):
    """The largest error of mean (in standard deviations) and variance (relative) of the output."""
    return max(
        (np.abs(law["mean"] - law["true_mean"]) / np.sqrt(law["true_variance"])).max(),
        np.abs(law["variance"] / law["true_variance"] - 1).max(),
    )


def observed_order(error, laws):
    """log2 of the ratio of the errors on n / 2 and on n steps."""
    coarse, fine = laws
    return np.log2(error(coarse) / error(fine))
