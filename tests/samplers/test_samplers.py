"""The loop `base.sample`, with every sampler."""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from diffusion_jax.core import arrays
from diffusion_jax.core.errors import UserError
from diffusion_jax.denoisers import guidance, thresholding
from diffusion_jax.processes import gaussian, schedules
from diffusion_jax.samplers import (
    adaptive,
    ancestral,
    base,
    grids,
    multistep,
    ode,
    sde,
    step_noise,
)
from tests.families import PROCESSES, SAMPLERS, AnyOf
from tests.samplers.steps import setting

every_sampler = pytest.mark.parametrize("sampler", SAMPLERS)


def test_raw_keys_count_as_the_typed_keys_that_they_stand_for():
    """One key and a batch of two: a raw key is itself an array (2,), which must not pass for two
    keys.
    """
    pairs = (
        (jax.random.PRNGKey(3), jax.random.key(3)),
        (jax.random.split(jax.random.PRNGKey(3), 2), jax.random.split(jax.random.key(3), 2)),
    )
    for raw, typed in pairs:
        found, right = arrays.example_keys(raw, 2), arrays.example_keys(typed, 2)
        assert_array_equal(jax.random.key_data(found), jax.random.key_data(right))
        assert_array_equal(
            arrays.noise(raw, jnp.zeros((2, 3))), arrays.noise(typed, jnp.zeros((2, 3)))
        )


def parts(sampler):
    """The sampler by its name in SAMPLERS."""
    return SAMPLERS[sampler]()


@functools.cache
def sampled(sampler):
    """(images, what is seen on the way, their NFE) of the setting, by the sampler of this name."""
    process, denoise, keys, x, ts = setting()
    return base.sample(
        parts(sampler),
        denoise,
        process,
        keys,
        x,
        ts,
        observe=lambda y, t: {"x": y, "t": t},
    )


def test_a_padded_grid_is_observed_like_the_grid_itself():
    """And the padding as zeros."""
    process, denoise, keys, x, ts = setting()
    options = {"observe": lambda y, t: {"x": y, "t": t}}
    longer = jnp.concatenate([ts, ts[-1:], ts[-1:]])
    whole = base.sample(ancestral.ddpm(), denoise, process, keys, x, ts, **options).observed
    run = functools.partial(base.sample, ancestral.ddpm(), denoise, process, padded=True)
    padded = run(keys, x, longer, **options).observed
    for name, seen in whole.items():
        assert_allclose(padded[name][: len(seen)], seen, rtol=1e-5, atol=1e-6)
        assert_array_equal(padded[name][len(seen) :], 0)
        assert len(padded[name]) == len(seen) + 2


@every_sampler
def test_sample_is_a_loop_of_steps_that_ends_in_x0_hat(sampler):
    image, seen, nfe = sampled(sampler)
    sampler, (process, denoise, keys, x, ts) = parts(sampler), setting()
    calls = []

    def counting(y, t, cond):
        jax.debug.callback(lambda: calls.append(1))
        return denoise(y, t)

    def step(i, y, memory, t, s):
        noise = step_noise.independent(process, keys, x)(i)
        return sampler.step(noise, y, memory, t, s, counting, process, None)

    if base.adaptive(sampler):  # its loops are compiled in any case: once, and not at every step
        step = jax.jit(step)
    path, memory = [x], sampler.init(x, ts)
    for i in range(len(ts) - 1):
        y, memory = step(i, path[-1], memory, ts[i], ts[i + 1])
        path.append(y)
    jax.effects_barrier()
    if not base.adaptive(sampler):
        assert len(calls) == base.evaluations(sampler, ts) - 1 and set(np.asarray(nfe)) == {
            base.evaluations(sampler, ts)
        }
    tight = (
        1e-2 if base.adaptive(sampler) else 2e-5
    )  # whose tolerance is 1e-3: rounding moves the steps
    assert_allclose(image, denoise(path[-1], ts[-1]).x0, rtol=tight, atol=tight)
    assert_allclose(seen["x"], np.stack(path[1:]), rtol=tight, atol=tight)
    assert_allclose(seen["t"], ts[1:])


def test_times_that_do_not_decrease_are_refused():
    """In one line, wherever they are known; copies of the last time are for padded grids, and for
    those alone.
    """
    process, denoise, keys, x, ts = setting()
    run = functools.partial(base.sample, ancestral.ddim(), denoise, process, keys, x)
    wrong = {
        "ts\\[0\\]=0.001, then ts\\[1\\]=": ts[::-1],
        "decrease": jnp.array([1.0, 0.5, 0.5, 0.1]),
        "ts\\[1\\]=nan": ts.at[1].set(jnp.nan),
        "ts\\[4\\]=nan": ts.at[4].set(jnp.nan),
        "ts\\[0\\]=inf": ts.at[0].set(jnp.inf),
        "array \\(n,\\)": ts[None],
        "at least one": ts[:0],
    }
    for message, times in wrong.items():
        for padded in (False, True):
            with pytest.raises(UserError, match=message) as error:
                run(times, padded=padded)
            assert "\n" not in str(error.value)
        with pytest.raises(UserError, match=message):
            base.encode(ancestral.ddim(), denoise, process, x, times)
    copies = jnp.append(ts, ts[-1])
    with pytest.raises(UserError, match="decrease"):
        run(copies)
    with pytest.raises(UserError, match="after the first of them"):
        run(jnp.array([1.0, 0.1, 0.5, 0.1]), padded=True)
    assert jax.eval_shape(run, ts[::-1]).x0.shape == x.shape  # traced times cannot be looked at
    assert_allclose(run(list(map(float, ts))).x0, run(ts).x0, rtol=1e-6)


@every_sampler
def test_an_image_depends_on_its_own_key_alone(sampler):
    """Not on the batch size, the other images or its index."""
    whole = sampled(sampler)[0]
    sampler, (process, denoise, keys, _, ts) = parts(sampler), setting()
    chosen = np.array([4, 1])
    part = base.sample(
        sampler, denoise, process, keys[chosen], base.start(process, keys[chosen], (2, 2)), ts
    ).x0
    tight = 1e-2 if base.adaptive(sampler) else 1e-5
    assert_allclose(part, whole[chosen], rtol=tight, atol=tight)
    assert len(np.unique(np.asarray(whole)[:, 0])) == 6


def test_one_key_for_the_batch_is_folded_with_the_place():
    process, denoise, keys, x, ts = setting()
    sampler = ancestral.ddpm()
    assert_allclose(
        base.sample(sampler, denoise, process, jax.random.key(1), x, ts).x0,
        base.sample(sampler, denoise, process, keys, x, ts).x0,
    )
    assert_allclose(base.start(process, jax.random.key(1), (6, 2)), x)
    later = arrays.example_keys(
        jax.random.key(1), 2, offset=4
    )  # a second part of the batch, on another device
    assert_allclose(base.start(process, later, (2, 2)), x[4:])


def test_sample_is_traced_once():
    process, denoise, keys, x, ts = setting()
    sampler = sde.edm()
    run = jax.jit(
        chex.assert_max_traces(
            lambda key, x, ts: base.sample(sampler, denoise, process, key, x, ts).x0, n=1
        )
    )
    images = [
        run(jax.random.key(seed), x, grid(process, 5))
        for seed in (1, 2)
        for grid in (grids.uniform, grids.karras)
    ]
    assert all(np.isfinite(image).all() for image in images) and not np.allclose(
        images[0], images[1]
    )


@every_sampler
def test_the_smallest_budgets_are_one_evaluation_and_one_step(sampler):
    """x0-hat from noise where no step fits, on a grid of one time; the first step that fits is
    traced.
    """
    sampler, (process, denoise, keys, x, _) = parts(sampler), setting()
    if base.adaptive(sampler):  # its tolerance decides, and its grid is always two times
        return
    first = 1 + sampler.nfe + sum(sampler.warmup[:1])
    for nfe in range(1, first):
        assert base.points(sampler, nfe) == 1
    one = grids.uniform(process, 1)
    image, _, nfe = base.sample(sampler, denoise, process, keys, x, one)
    assert_allclose(image, denoise(x, one[0]).x0, rtol=1e-6)
    assert set(np.asarray(nfe)) == {1} == {base.evaluations(sampler, one)}
    two = grids.uniform(process, base.points(sampler, first))
    assert len(two) == 2 and base.evaluations(sampler, two) == first
    for ts, padded in ((one, True), (two, False), (two, True)):
        run = functools.partial(base.sample, sampler, denoise, process, keys, padded=padded)
        assert jax.eval_shape(run, x, ts).x0.shape == x.shape


@pytest.mark.parametrize("sampler", [ancestral.ddpm(), ode.heun()], ids=["ddpm", "heun"])
def test_a_padded_grid_is_the_grid(sampler):
    process, denoise, keys, x, ts = setting()
    plain = base.sample(sampler, denoise, process, keys, x, ts).x0
    padded = base.sample(
        sampler, denoise, process, keys, x, jnp.concatenate([ts, jnp.full(4, ts[-1])]), padded=True
    ).x0
    assert_allclose(padded, plain, rtol=1e-5, atol=1e-6)


def test_the_condition_reaches_the_denoiser():
    process, denoise, keys, x, ts = setting()

    def conditional(y, t, cond):
        return gaussian.from_x0(process, y, jnp.broadcast_to(cond["label"][:, None], y.shape), t)

    label = jnp.arange(6.0)
    image = base.sample(ancestral.ddim(), conditional, process, keys, x, ts, {"label": label}).x0
    assert_allclose(image, np.stack([label, label], 1))


def test_start_is_the_prior_and_no_steps_noise():
    process = schedules.VE()
    keys = arrays.example_keys(jax.random.key(0), 2000)
    x = base.start(process, keys, (2000, 2))
    assert abs(float(jnp.std(x)) / 50 - 1) < 4 / np.sqrt(8000)
    for step in range(3):
        z = arrays.noise(arrays.fold_in(keys, step), x)
        assert abs(np.corrcoef(np.ravel(x), np.ravel(z))[0, 1]) < 4 / np.sqrt(4000)


def test_nfe_budget():
    assert [base.points(ode.heun(), n) for n in (1, 2, 3, 9)] == [1, 1, 2, 5]
    assert [base.points(ancestral.ddim(), n) for n in (1, 2, 10)] == [1, 2, 10]
    for sampler in (ode.rk4(), ode.heun(), ancestral.ddim()):
        assert base.evaluations(sampler, np.zeros(base.points(sampler, 50))) in range(
            50 - sampler.nfe + 1, 51
        )
    assert (
        base.points(multistep.pndm(), 50) == 41
        and base.evaluations(multistep.pndm(), np.zeros(41)) == 50
    )
    assert base.points(multistep.pndm(), 5) == 2 and base.points(adaptive.tsit5(), 50) == 2
    with pytest.raises(UserError, match="read the nfe"):
        base.evaluations(adaptive.tsit5(), np.zeros(2))


@functools.cache
def karras_grid(name):
    """33 times under a process, the same for every sampler."""
    return grids.karras(PROCESSES[name], 33)


@pytest.mark.parametrize(  # the adaptive solvers differ in their tables alone, and compile long
    "sampler",
    [
        pytest.param(name, marks=[pytest.mark.long] if name.startswith("adaptive.dopri") else [])
        for name in SAMPLERS
    ],
)
def test_every_sampler_takes_guided_conditional_clipped_images_under_every_process(sampler):
    """A class-conditional denoiser of images under guidance and clipping: one program for every
    process and grid, which ends in finite images of the class asked for.
    """
    means = jnp.array([-0.5, 0.5, 0.0])  # two classes and 'any'
    label, keys = jnp.array([0, 1, 1]), arrays.example_keys(jax.random.key(2), 3)

    chex.clear_trace_counter()

    @jax.jit
    @functools.partial(chex.assert_max_traces, n=1)
    def run(index, keys, ts):
        process = AnyOf(index)

        def conditional(x, t, cond):
            """The exact denoiser of N(mean of the class, 0.1^2)."""
            alpha, sigma = (arrays.expand(f(t), x) for f in (process.alpha, process.sigma))
            mean = arrays.expand(means[cond["label"]], x)
            x0 = mean + alpha * 0.01 / (alpha**2 * 0.01 + sigma**2) * (x - alpha * mean)
            return gaussian.from_x0(process, x, x0, t)

        guided = guidance.cfg(
            conditional, 1.2, lambda cond: cond | {"label": jnp.full_like(cond["label"], 2)}
        )
        x = base.start(process, keys, (3, 2, 3, 2))
        clipped = thresholding.clip_x0(guided, process)
        return base.sample(
            SAMPLERS[sampler](), clipped, process, keys, x, ts, {"label": label}, padded=True
        ).x0

    for i, name in enumerate(PROCESSES):
        image = np.asarray(run(i, keys, karras_grid(name)))
        assert (
            image.shape == (3, 2, 3, 2) and np.isfinite(image).all() and np.abs(image).max() <= 1
        ), name
        if sampler != "corrector.ncsn":  # which needs many more levels
            assert np.abs(image.mean((1, 2, 3)) - 1.2 * np.array([-0.5, 0.5, 0.5])).max() < 0.2, (
                name
            )
