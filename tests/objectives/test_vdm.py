"""Variational diffusion: the bound and its learned schedule, against closed forms and autodiff.

The data are Gaussian, so the denoiser is linear and the error of eps is f(gamma) = c^2 / (c^2 +
e^gamma) per dimension, c being the standard deviation. The schedule of least variance then has a
constant integrand, gamma'(u) f(gamma) = const.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import digits
from diffusion_jax.assembly import denoiser, sampling, train, trainer, workdir
from diffusion_jax.assembly.experiment import assemble
from diffusion_jax.core.arrays import expand
from diffusion_jax.core.errors import UserError
from diffusion_jax.likelihood import bins, bounds
from diffusion_jax.objectives import vdm
from diffusion_jax.processes import gaussian, learned, schedules
from diffusion_jax.samplers import base, grids
from tests.experiments.small_runs import small
from tests.training import tiny_run

CLOCK = schedules.VDM(gamma_min=-14.0, gamma_max=8.0)
START = (-8.0, 2.0)
STD, LEVELS, COUNT = 0.5, 16, 512
OBJECTIVE = vdm.vdm(CLOCK, levels=LEVELS, learn_ends=True, learn_shape=True, gammas=START, width=12)
SCHEDULE = OBJECTIVE.learned.schedule


def denoise(x_t, t, cond=None):
    """The exact denoiser of Gaussian data."""
    alpha, sigma = CLOCK.alpha(t), CLOCK.sigma(t)
    share = sigma / (alpha**2 * STD**2 + sigma**2)
    return gaussian.from_eps(CLOCK, x_t, expand(share, x_t) * x_t, t)


def predict(params, context, x_t, t):
    return denoise(x_t, t)


def data(seed=0):
    return STD * jax.random.normal(jax.random.key(seed), (COUNT, 8))


def steep():
    """Parameters of another shape: far from s(u) = u, and with other ends."""
    params, draw = SCHEDULE.fresh(), np.random.default_rng(0).standard_normal
    shape = jax.tree.map(lambda x: x + 1.5 * draw(x.shape).astype(np.float32), params["shape"])
    return {"ends": params["ends"] + jnp.asarray([1.0, -0.5]), "shape": shape}


@jax.jit
def loss(own, key, x0):
    return OBJECTIVE.learned.loss(predict, {}, own, key, x0, None)


def diffusion(own, key, x0):
    """The middle term of the bound, (B,)."""
    losses, _, examples = loss(own, key, x0)
    return losses - examples["prior"] - examples["reconstruction"]


def exact_diffusion(first, last):
    """1/2 int f dgamma in bits per dimension."""
    integral = [g - np.log(STD**2 + np.exp(g)) for g in (first, last)]
    return 0.5 * (integral[1] - integral[0]) / np.log(2)


# ---- the schedule
def test_the_shape_rises_from_0_to_1_and_is_nearly_even_before_training():
    u = jnp.linspace(0, 1, 401)
    for own in (SCHEDULE.fresh(), steep()):
        s = np.asarray(SCHEDULE.shape(own, u))
        assert s[0] == 0 and abs(s[-1] - 1) < 1e-6 and np.all(np.diff(s) > 0)
    np.testing.assert_allclose(SCHEDULE.shape(SCHEDULE.fresh(), u), u, atol=0.03)
    np.testing.assert_allclose(learned.shape(learned.fresh_shape(1024), u), u, atol=2e-3)


def test_the_schedule_is_the_papers_between_its_ends():
    """gamma(t(u)) = gamma_0 + (gamma_1 - gamma_0) s(u), whatever the shape."""
    own = steep()
    first, last = np.asarray(own["ends"], np.float64)
    process = SCHEDULE.trained(own)
    ts = grids.learned(process, 9)
    assert ts[0] == jnp.float32(process.t_max) and ts[-1] == jnp.float32(process.t_min)
    s = SCHEDULE.shape(own, jnp.linspace(1, 0, 9))
    np.testing.assert_allclose(-gaussian.logsnr(process, ts), first + (last - first) * s, atol=1e-4)
    with pytest.raises(UserError, match="has learned the shape"):
        grids.learned(CLOCK, 9)


def test_ends_stay_within_the_clock():
    beyond = SCHEDULE.trained(SCHEDULE.fresh() | {"ends": jnp.asarray([-99.0, 99.0])})
    assert (beyond.t_min, beyond.t_max) == pytest.approx((0, 1))


@pytest.mark.parametrize("gammas", [(-20.0, 5.0), (2.0, -8.0), (1.0,)])
def test_ends_that_the_process_lacks_are_refused(gammas):
    with pytest.raises(UserError, match="between the ends -14 and 8"):
        vdm.vdm(CLOCK, learn_ends=True, gammas=gammas)
    with pytest.raises(UserError, match="set learn_ends=True"):
        vdm.vdm(CLOCK, gammas=START)


# ---- the bound
def test_log_level_is_a_distribution_over_the_levels():
    """Against a loop in float64; without noise it is certain."""
    levels = np.linspace(-1, 1, LEVELS)
    mean, variance = np.array([-1.3, 0.01, 0.97]), 0.03
    weight = np.exp(-((mean[:, None] - levels) ** 2) / 2 / variance)
    exact = np.log(weight / weight.sum(1, keepdims=True))
    own = jnp.asarray(np.stack([levels] * 3), jnp.float32)
    noisy = jnp.broadcast_to(jnp.asarray(mean, jnp.float32)[:, None], own.shape)
    found = bins.log_level(own, noisy, jnp.log(jnp.float32(variance)), LEVELS)
    np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-4)
    certain = bins.log_level(own[0], own[0], jnp.float32(-20.0), LEVELS)
    np.testing.assert_allclose(certain, 0, atol=1e-5)


def test_the_expected_loss_does_not_depend_on_the_shape():
    fresh, other = SCHEDULE.fresh(), steep()["shape"]
    exact = exact_diffusion(*START)
    spread = []
    for own in (fresh, fresh | {"shape": other}):
        keys = jax.random.split(jax.random.key(1), 16)
        means = np.array([diffusion(own, key, data()).mean() for key in keys])
        assert abs(means.mean() - exact) < 4 * means.std(ddof=1) / np.sqrt(len(keys))
        spread.append(float(diffusion(own, keys[0], data()).std()))
    assert spread[1] > 1.05 * spread[0]  # though the variance does


def test_the_fixed_schedule_is_the_bound_of_likelihood_bounds():
    """Where the noise of the data end is far below a level, the bound is bounds.continuous_vlb."""
    x0 = jnp.clip(jnp.round((data() + 1) / 2 * (LEVELS - 1)), 0, LEVELS - 1) / (LEVELS - 1) * 2 - 1
    objective = vdm.vdm(CLOCK, levels=LEVELS)

    @jax.jit
    def both(key):
        drawn = objective.loss(denoise, objective.draw(key, x0))
        bound = bounds.continuous_vlb(CLOCK, denoise, x0, key, draws=16, levels=LEVELS)
        return drawn.mean(), bound["total"].mean()

    keys = jax.random.split(jax.random.key(2), 8)
    found = np.array([both(key) for key in keys])
    error = found.std(axis=0, ddof=1) / np.sqrt(len(keys))
    assert abs(np.subtract(*found.mean(axis=0))) < 4 * np.hypot(*error)


# ---- what trains the schedule
def test_gradients_are_those_of_the_losses_and_of_their_squares():
    """The single backward pass equals two of plain autodiff, with weights of the examples."""
    rng = np.random.default_rng(0)
    x, a, b, weights = (jnp.asarray(v, jnp.float32) for v in rng.standard_normal((4, 8)))

    def losses(main, own, rest):
        return jnp.sin(main * own[0]) + own[1] * rest**2

    def total(function, power):
        return jax.grad(
            lambda *args: jnp.sum(weights * function(*args, x) ** power), argnums=(0, 1)
        )

    main, own = total(vdm.by_loss_and_square(losses), 1)(a[0], (a, b))
    np.testing.assert_allclose(main, total(losses, 1)(a[0], (a, b))[0], rtol=1e-6)
    for one, two in zip(own, total(losses, 2)(a[0], (a, b))[1], strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5)


def test_ends_minimize_the_bound_and_the_shape_its_variance(monkeypatch):
    """The gradient of a batch equals autodiff of the mean bound and of the mean square."""
    own, x0, key = steep(), data(), jax.random.key(3)
    found = jax.jit(jax.grad(lambda own: loss(own, key, x0)[0].mean()))(own)
    monkeypatch.setattr(vdm, "by_loss_and_square", lambda losses: losses)
    args = key, x0, None

    def bound(own):
        return OBJECTIVE.learned.loss(predict, {}, own, *args)[0].mean()

    def square(own):
        losses, _, examples = OBJECTIVE.learned.loss(predict, {}, own, *args)
        return ((losses - examples["prior"] - examples["reconstruction"]) ** 2).mean()

    np.testing.assert_allclose(found["ends"], jax.jit(jax.grad(bound))(own)["ends"], rtol=1e-4)
    wanted = jax.jit(jax.grad(square))(own)["shape"]
    for one, two in zip(*map(jax.tree.leaves, (found["shape"], wanted)), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-3)


def test_the_gradient_of_an_end_is_that_of_the_integral():
    """d/dgamma_1 of the middle term is f(gamma_1) / 2 in expectation."""
    own, keys = SCHEDULE.fresh(), jax.random.split(jax.random.key(4), 64)
    slope = jax.jit(jax.grad(lambda own, key: diffusion(own, key, data()).mean()))
    found = np.array([slope(own, key)["ends"][1] for key in keys])
    exact = 0.5 * STD**2 / (STD**2 + np.exp(START[1])) / np.log(2)
    assert abs(found.mean() - exact) < 4 * found.std(ddof=1) / np.sqrt(len(keys))


def test_the_variance_falls_to_that_of_the_known_best_schedule():
    """Training approaches gamma'(u) f(gamma) = const, from far away."""
    tx = optax.adam(optax.cosine_decay_schedule(0.05, 1000))

    def move(carry, key):
        shape, state = carry
        own = {"ends": jnp.asarray(START), "shape": shape}
        losses, grads = jax.value_and_grad(
            lambda shape: loss(own | {"shape": shape}, key, data())[0].mean()
        )(shape)
        updates, state = tx.update(grads, state)
        return (optax.apply_updates(shape, updates), state), None

    first = SCHEDULE.fresh()
    keys = jax.random.split(jax.random.key(5), 1000)
    (shape, _), _ = jax.lax.scan(move, (first["shape"], tx.init(first["shape"])), keys)
    u = np.linspace(0, 1, 33)
    gammas = START[0] + (START[1] - START[0]) * np.asarray(
        SCHEDULE.shape({"shape": shape}, jnp.asarray(u))
    )
    # the best schedule: u is the share of the integral of f up to gamma
    best = [exact_diffusion(START[0], g) / exact_diffusion(*START) for g in gammas]
    np.testing.assert_allclose(best, u, atol=0.03)
    test = jax.random.split(jax.random.key(6), 8)
    before, after = (
        np.std([diffusion(first | {"shape": own}, key, data(1)) for key in test])
        for own in (first["shape"], shape)
    )
    # all that is left is the noise of the data: a mean of 8 squares has a variance of 2 / 8
    left = exact_diffusion(*START) * np.sqrt(2 / 8)
    assert before > 1.4 * left
    np.testing.assert_allclose(after, left, rtol=0.05)


# ---- runs
def config(**changes):
    process = f"schedules.VDM(gamma_min={CLOCK.gamma_min}, gamma_max={CLOCK.gamma_max})"
    objective = f"vdm.vdm(learn_ends=True, learn_shape=True, gammas={START}, width=8)"
    changes = {"sampler__grid": "learned", "sampler__nfe": 4} | changes
    return tiny_run.config(
        process=process, objective=objective, optimizer__learning_rate=0.05, **changes
    )


def other_ends(params, by):
    """The weights with other ends of the schedule."""
    own = params[learned.NAME]
    return params | {learned.NAME: own | {"ends": jnp.asarray(own["ends"]) + jnp.asarray(by)}}


def test_a_model_samples_by_the_schedule_of_its_weights():
    """Its process, its times and its prior; the network does not read the schedule."""
    experiment = assemble(config(), (2,))
    params = other_ends(experiment.kind.init(experiment, jax.random.key(0)), [1.0, -3.0])
    model = experiment.kind.learned_by(experiment, params)
    ends = jnp.asarray([model.process.t_min, model.process.t_max])
    np.testing.assert_allclose(
        -gaussian.logsnr(CLOCK, ends), params[learned.NAME]["ends"], atol=1e-4
    )
    chosen = sampling.method(model)
    np.testing.assert_array_equal(chosen.ts, grids.learned(model.process, len(chosen.ts)))
    keys = jax.random.split(jax.random.key(0), 2)
    # the program takes the weights, so its prior is theirs whatever the experiment knows
    draw = sampling.sample_fn(experiment, chosen.sampler, guided=False, clip="none")
    found = draw(denoiser.ensemble(model, params), keys, None, chosen.ts, jnp.float32(1))
    start = base.start(model.process, keys, (2, 2))
    denoise = denoiser.denoiser(model, params, clip="none")
    wanted = base.sample(chosen.sampler, denoise, model.process, keys, start, chosen.ts).x0
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    # a model that learns no schedule may start from these weights
    fresh = {name: own for name, own in params.items() if name != learned.NAME}
    assert trainer.grafted(fresh, params).keys() == fresh.keys()


@pytest.mark.long
def test_a_run_resumes_its_schedule_bit_by_bit(tmp_path):
    """The schedule is among the weights of a checkpoint; the loaded process has its ends."""
    images = small(digits.get_config("vdm"))
    images.process, images.objective = config().process, config().objective
    images.optimizer.learning_rate = 0.05
    images.conditional, images.sampler.guidance = False, 1.0
    images = images.lock()
    assert train.train(images, str(tmp_path / "whole"))
    assert train.train(images, str(tmp_path / "parts"), until=4)
    assert train.train(images, str(tmp_path / "parts"))
    models = [workdir.load(tmp_path / name) for name in ("whole", "parts")]
    for one, two in zip(*(jax.tree.leaves(model.params) for model in models), strict=True):
        np.testing.assert_array_equal(one, two)
    model, params = models[0].experiment, models[0].params
    gammas = np.asarray(params[learned.NAME]["ends"])
    assert np.abs(gammas - START).min() > 1e-3  # both have moved
    ends = jnp.asarray([model.process.t_min, model.process.t_max])
    np.testing.assert_allclose(-gaussian.logsnr(model.process, ends), gammas, atol=1e-4)
    draw = sampling.sample_with(model, params, sampling.method(model))
    assert np.isfinite(draw(jax.random.split(jax.random.key(0), 2), None)).all()
