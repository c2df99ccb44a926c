"""Samplers on Gaussian data, where every one of them is an affine map with known answer: orders, output laws,
equivalences, grids.

With the exact denoiser of N(mean, diag(variances)) one step is x_s = A x + b + C z per dimension, so the whole run's
output law is composed from probes of the step at x = 0, x = 1 and z = 1, without Monte Carlo. All steps of a grid are
probed at once.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import GRIDS, PROCESSES, SAMPLERS, logsnr_grid, smooth
from numpy.testing import assert_allclose

from diffusion_jax import arrays, parameterization, targets
from diffusion_jax.errors import UserError
from diffusion_jax.processes import discrete, gaussian, schedules
from diffusion_jax.samplers import ancestral, base, grids, multistep, ode, sde

every_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
every_name = pytest.mark.parametrize("name", PROCESSES)
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS)

# The order in the number of steps: of the path's error for deterministic samplers, of the output law's for stochastic
# ones. sde.edm adds its noise exactly and then takes Heun's step, so its law is of Heun's order. A new sampler states
# its own here.
DETERMINISTIC = {
    "ancestral.ddim()": (ancestral.ddim(), 1),
    "ode.euler()": (ode.euler(), 1),
    "ode.heun()": (ode.heun(), 2),
    "ode.rk4()": (ode.rk4(), 4),
    "ode.edm_heun()": (ode.edm_heun(), 2),
    "multistep.dpmpp_2m()": (multistep.dpmpp_2m(), 2),
    "multistep.dpmpp_2m(exact)": (multistep.dpmpp_2m("exact"), 2),
    "multistep.dpmpp_3m()": (multistep.dpmpp_3m(), 3),
    "multistep.dpmpp_3m(as the field has it)": (multistep.dpmpp_3m(curvature=0.5), 2),
    "multistep.dpm_2m()": (multistep.dpm_2m(), 2),
    "multistep.dpm_3m()": (multistep.dpm_3m(), 3),
    **{f"multistep.deis({p}, {clock})": (multistep.deis(p, clock), p) for p in (1, 2, 3) for clock in ("t", "logsnr")},
    **{f"multistep.lms({p})": (multistep.lms(p), p) for p in (1, 2, 3)},
    "multistep.ipndm()": (multistep.ipndm(), 2),
    **{f"multistep.unipc({p}, no corrector)": (multistep.unipc(p, corrector=False), p) for p in (1, 2, 3)},
    **{f"multistep.unipc({p}, {b})": (multistep.unipc(p, b), p + 1) for p in (1, 2) for b in ("bh1", "bh2")},
    "multistep.unipc(3)": (multistep.unipc(), 4),
}
STOCHASTIC = {
    "ancestral.ddpm(small)": (ancestral.ddpm("small"), 1),
    "ancestral.ddpm(large)": (ancestral.ddpm("large"), 1),
    "ancestral.ddim(0.5)": (ancestral.ddim(0.5), 1),
    "sde.euler_maruyama()": (sde.euler_maruyama(), 1),
    "sde.edm(no excess noise)": (sde.edm(S_churn=5.0, S_noise=1.0), 2),
}
MEANS, VARIANCES = np.array([0.5, -1.0, 0.0]), np.array([0.04, 1.0, 2.25])


def denoiser(process):
    """The exact denoiser of the Gaussian data, in the dtype of x; nu = 0.3 for the sampler that reads it."""

    def denoise(x, t, cond=None):
        target = targets.Gaussian(*(jnp.asarray(v, x.dtype) for v in (MEANS, VARIANCES, np.eye(3))))
        return targets.denoise_gaussian(target, process)(x, t)._replace(nu=jnp.full_like(x, 0.3))

    return denoise


def output_laws(sampler, process, ts):
    """What becomes of the data's own law at ts[0] on every second of the times ts, and on all of them: two dicts of
    (3,) in float64.

    mean, variance: of the output; slope: of the composed noiseless map; true_mean, true_variance, true_slope: the
    data's and the flow's.
    """
    with jax.enable_x64(True):
        ts = jnp.asarray(ts, "float64")
        alpha, sigma = (np.asarray(f(ts[jnp.array([0, -1])]))[:, None] for f in (process.alpha, process.sigma))
        means, variances = alpha * MEANS, alpha**2 * VARIANCES + sigma**2
        true = {"true_mean": means[1], "true_variance": variances[1], "true_slope": np.sqrt(variances[1] / variances[0])}
        if remembers(sampler, process, ts):
            return [true | law_of_run(sampler, process, part, means[0], variances[0]) for part in (ts[::2], ts)]
        maps = np.split(probe(sampler, process, (ts[::2], ts)), [len(ts[::2]) - 1])
    return [true | composed(steps, means[0], variances[0]) for steps in maps]


def remembers(sampler, process, ts):
    """Whether a step depends on more than x, t, s and one draw of noise."""
    drawn, x = [], jnp.zeros((1, 3))
    noise = base.Noise(lambda t, s, part=0: drawn.append(part) or x, lambda i: drawn.append("extra") or x)
    memory = sampler.init(x, ts)
    _, after = sampler.step(noise, x, memory, ts[0], ts[1], denoiser(process), process)
    return drawn not in ([], [0]) or not jax.tree.all(jax.tree.map(lambda a, b: a is b, memory, after))


DRAWS = 4  # of a step: two parts of the path, two extra


def law_of_run(sampler, process, ts, mean, variance):
    """The run is affine in its start and all its draws: one probe for x = 0, one for x = 1 and one for each draw."""
    n = len(ts) - 1
    x = jnp.zeros((2 + n * DRAWS, 3)).at[1].set(1.0)
    ones = jnp.zeros((n, DRAWS, len(x), 3)).at[jnp.arange(n * DRAWS) // DRAWS, jnp.arange(n * DRAWS) % DRAWS,
                                               2 + jnp.arange(n * DRAWS)].set(1.0)  # fmt: skip
    denoise = denoiser(process)

    @jax.jit
    def run(x):
        def step(carry, inputs):
            z, t, s = inputs
            noise = base.Noise(lambda t, s, part=0: z[part], lambda i: z[2 + i])
            return sampler.step(noise, *carry, t, s, denoise, process), None

        return jax.lax.scan(step, (x, sampler.init(x, ts)), (ones, ts[:-1], ts[1:]))[0][0]

    out = np.asarray(run(x))
    slope, drawn = out[1] - out[0], out[2:] - out[0]
    return {"slope": slope, "mean": slope * mean + out[0], "variance": slope**2 * variance + (drawn**2).sum(0)}


def probe(sampler, process, grids):
    """One step for every move of every grid, at (x, z) = (0, 0), (1, 0) and (0, 1): (steps, 3 probes, 3 dimensions)."""
    x, z = (jnp.array([[0.0], [on], [1 - on]]) * jnp.ones(3) for on in (1.0, 0.0))
    denoise = denoiser(process)
    inputs = [(sampler.init(x, ts), ts[:-1], ts[1:]) for ts in grids]
    inputs = [(jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, t.shape), memory), t, s) for memory, t, s in inputs]

    def step(memory, t, s):
        return sampler.step(constant(z), x, memory, t, s, denoise, process)[0]

    return np.asarray(jax.vmap(step)(*jax.tree.map(lambda *parts: jnp.concatenate(parts), *inputs)))


def constant(z):
    return base.Noise(lambda t, s, part=0: z, lambda i: z)


def composed(steps, mean, variance):
    slope = np.ones(3)
    for b, at_x, at_z in steps:
        A, C = at_x - b, at_z - b
        slope, mean, variance = A * slope, A * mean + b, A**2 * variance + C**2
    return {"slope": slope, "mean": mean, "variance": variance}


def path_error(law):
    """The largest error of the affine map against the exact flow: of a start one standard deviation out, and of the
    centre.
    """
    return max(np.abs(law["slope"] / law["true_slope"] - 1).max(),
               (np.abs(law["mean"] - law["true_mean"]) / np.sqrt(law["true_variance"])).max())


def law_error(law):
    """The largest error of mean (in standard deviations) and variance (relative) of the output."""
    return max((np.abs(law["mean"] - law["true_mean"]) / np.sqrt(law["true_variance"])).max(),
               np.abs(law["variance"] / law["true_variance"] - 1).max())


def observed_order(error, laws):
    """log2 of the ratio of the errors on n / 2 and on n steps."""
    coarse, fine = laws
    return np.log2(error(coarse) / error(fine))


# A table of betas makes alpha' jump at its nodes, so solvers in t keep an order above 1 only inside one noising step.
IN_TIME = ("ode.heun()", "ode.rk4()")


@pytest.mark.parametrize("label", IN_TIME)
def test_solvers_in_time_keep_their_order_inside_one_noising_step(label):
    sampler, order = DETERMINISTIC[label]
    laws = output_laws(sampler, discrete.DDPM((0.5, 0.9)), np.linspace(0.98, 0.52, 161))
    assert abs(observed_order(path_error, laws) - order) < 0.1


def test_every_sampler_states_its_order():
    assert {name.split("(")[0] for name in (*DETERMINISTIC, *STOCHASTIC)} == set(SAMPLERS)


@every_name
def test_deterministic_samplers_converge_at_their_order(name):
    process, ts = PROCESSES[name], logsnr_grid(name, 160)
    for label, (sampler, order) in DETERMINISTIC.items():
        if not smooth(process) and label in IN_TIME:
            continue
        wiggles = not smooth(process) and label == "ode.euler()"  # of the error, at the kinks that Euler in t sees
        tolerance = 0.4 if wiggles else 0.2
        assert abs(observed_order(path_error, output_laws(sampler, process, ts)) - order) < tolerance, label


@every_name
def test_stochastic_samplers_converge_to_the_datas_law(name):
    """At least at their order (Euler-Maruyama's first-order term happens to be small on VE), and to a law that is
    nearly there.
    """
    process, ts = PROCESSES[name], logsnr_grid(name, 160)
    for label, (sampler, order) in STOCHASTIC.items():
        laws = output_laws(sampler, process, ts)
        assert observed_order(law_error, laws) > order - 0.15 and law_error(laws[1]) < 0.1, label


def test_learned_variance_converges_too():
    """nu = 0.3 is a variance between the two; any constant is right to first order."""
    ts = logsnr_grid("VP", 160)
    assert observed_order(law_error, output_laws(ancestral.ddpm("learned"), PROCESSES["VP"], ts)) > 0.85


def test_edm_excess_noise_inflates_the_law():
    """S_noise = 1.1 must be seen in the output, or the parameter is not used."""
    process, ts = PROCESSES["EDM"], logsnr_grid("EDM", 160)
    laws = [output_laws(sde.edm(S_churn=40.0, S_noise=noise), process, ts)[1]["variance"] for noise in (1.0, 1.1)]
    assert np.all(laws[1] > 1.01 * laws[0])


# ---- equivalences ----------------------------------------------------------------------------------------------------

MIXTURE = targets.mixture([0.6, 0.4], [[0.8, -0.3], [-0.5, 0.6]], [[0.3, 0.2], [0.15, 0.4]])


def one_step(sampler, process, denoise=None, t=0.6, s=0.45):
    """x_s from a fixed x_t and fixed keys, float64 (8, 2)."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((8, 2)))
    keys = arrays.example_keys(jax.random.key(0), 8)
    t, s = (jnp.asarray(process.t_min + u * (process.t_max - process.t_min)) for u in (t, s))
    denoise = denoise or targets.denoise_mixture(MIXTURE, process)
    return sampler.step(base.independent(process, keys, x)(0), x, sampler.init(x, jnp.stack([t, s])), t, s, denoise, process)[0]


@every_process
def test_ddim_is_euler_in_the_straight_frame(process):
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(0).standard_normal((8, 2)))
        t, s = (process.t_min + u * (process.t_max - process.t_min) for u in (0.6, 0.45))
        alpha_t, sigma_t, alpha_s, sigma_s = (f(jnp.asarray(u)) for u in (t, s) for f in (process.alpha, process.sigma))
        eps = targets.denoise_mixture(MIXTURE, process)(x, t).eps
        euler = alpha_s * (x / alpha_t + (sigma_s / alpha_s - sigma_t / alpha_t) * eps)
        assert_allclose(one_step(ancestral.ddim(), process), euler, rtol=1e-9, atol=1e-12)


@every_process
def test_ddim_one_is_ancestral(process):
    """The same map of x and of the noise; on the DDPM chain this is Ho et al.'s sampler."""
    with jax.enable_x64(True):
        assert_allclose(
            one_step(ancestral.ddim(1.0), process), one_step(ancestral.ddpm("small"), process), rtol=1e-9, atol=1e-12
        )
        small, none = one_step(ancestral.ddim(1.0), process), one_step(ancestral.ddim(0.0), process)
        assert np.abs(small - none).min() > 0  # eta is used


@every_process
def test_learned_variance_spans_small_to_large(process):
    with jax.enable_x64(True):
        exact = targets.denoise_mixture(MIXTURE, process)
        for nu, name in ((-1.0, "small"), (1.0, "large")):
            learned = one_step(
                ancestral.ddpm("learned"), process, lambda x, t: exact(x, t)._replace(nu=jnp.full_like(x, nu))
            )
            assert_allclose(learned, one_step(ancestral.ddpm(name), process), rtol=1e-9, atol=1e-12)


def test_euler_in_t_is_ddim_on_edms_path():
    process = schedules.EDM()
    with jax.enable_x64(True):
        assert_allclose(one_step(ode.euler(), process), one_step(ancestral.ddim(), process), rtol=1e-9)
        assert_allclose(one_step(ode.heun(), process), one_step(ode.edm_heun(), process), rtol=1e-9)


@pytest.mark.parametrize("options", [{"S_churn": 0.0}, {"S_max": 1e-6}], ids=["churn_off", "out_of_range"])
def test_edm_without_churn_is_edm_heun(options):
    """To rounding, when compiled too, where a fused difference of squares once left sqrt(1e-16) of noise."""
    for process in (schedules.EDM(), schedules.VP()):
        with jax.enable_x64(True):
            pair = (sde.edm(**options), ode.edm_heun())
            steps = [jax.jit(jax.vmap(lambda t, one=one: one_step(one, process, t=t, s=0.9 * t))) for one in pair]
            churned, plain = (step(jnp.linspace(0.1, 0.9, 50)) for step in steps)
            assert_allclose(churned, plain, rtol=1e-11, atol=1e-11)


def test_ancestral_errors():
    with pytest.raises(UserError, match="did you mean 'learned'"):
        ancestral.ddpm("learnt")
    with pytest.raises(UserError, match="learn_variance"):
        one_step(ancestral.ddpm("learned"), schedules.VP())


def network(params, x_in, c_noise, cond):
    """A smooth made-up network of two inputs per example."""
    hidden = jnp.tanh(x_in @ params["w"] + c_noise[:, None] * params["b"])
    return hidden @ params["w"].T


@pytest.mark.parametrize("sampler", [ode.edm_heun(), ancestral.ddpm("small")], ids=["edm_heun", "ddpm"])
def test_one_network_is_the_same_model_under_any_process(sampler):
    """Same log-SNRs, x scaled by sqrt(alpha^2 + sigma^2): the images are equal to 1e-5 in float32."""
    keys = jax.random.split(jax.random.key(3), 2)
    params = {"w": jax.random.normal(keys[0], (2, 16)) / 2, "b": jax.random.normal(keys[1], (16,))}
    lam, unit = jnp.linspace(-5.0, 5.0, 12), jax.random.normal(jax.random.key(4), (8, 2))
    images = []
    for process in (schedules.EDM(), schedules.VP(), schedules.RectifiedFlow()):
        ts = gaussian.time_of_logsnr(process, lam)
        denoise = parameterization.denoiser(network, params, parameterization.edm(), process)
        x = unit * jnp.hypot(process.alpha(ts[0]), process.sigma(ts[0]))
        images.append(base.sample(sampler, denoise, process, jax.random.key(5), x, ts))
    for image in images[1:]:
        assert_allclose(image, images[0], rtol=1e-5, atol=1e-5)
    assert np.std(images[0]) > 0.1


# ---- the loop --------------------------------------------------------------------------------------------------------


def setting(count=6, n=5):
    process = schedules.VP()
    ts = grids.uniform(process, n)
    keys = arrays.example_keys(jax.random.key(1), count)
    return process, targets.denoise_mixture(MIXTURE, process), keys, base.start(process, keys, (count, 2)), ts


def parts(sampler):
    """The sampler by its name in SAMPLERS."""
    return SAMPLERS[sampler]()


@every_sampler
def test_sample_is_a_loop_of_steps_that_ends_in_x0_hat(sampler):
    sampler, (process, denoise, keys, x, ts) = parts(sampler), setting()
    calls = []

    def counting(y, t, cond=None):
        calls.append(t)
        return denoise(y, t, cond)

    path, memory = [x], sampler.init(x, ts)
    for i in range(len(ts) - 1):
        y, memory = sampler.step(base.independent(process, keys, x)(i), path[-1], memory, ts[i], ts[i + 1], counting, process)
        path.append(y)
    assert len(calls) == sampler.nfe * (len(ts) - 1) == base.evaluations(sampler, ts) - 1
    image, seen = base.sample(sampler, denoise, process, keys, x, ts, observe=lambda y, t: {"x": y, "t": t})
    assert_allclose(image, denoise(path[-1], ts[-1]).x0, rtol=2e-5, atol=1e-5)
    assert_allclose(seen["x"], np.stack(path[1:]), rtol=2e-5, atol=1e-5)
    assert_allclose(seen["t"], ts[1:])


@every_sampler
def test_an_image_depends_on_its_own_key_alone(sampler):
    """Not on the batch size, its neighbours or its place."""
    sampler, (process, denoise, keys, x, ts) = parts(sampler), setting()
    whole = base.sample(sampler, denoise, process, keys, x, ts)
    chosen = np.array([4, 1])
    part = base.sample(sampler, denoise, process, keys[chosen], base.start(process, keys[chosen], (2, 2)), ts)
    assert_allclose(part, whole[chosen], rtol=1e-5, atol=1e-6)
    assert len(np.unique(np.asarray(whole)[:, 0])) == 6


def test_one_key_for_the_batch_is_folded_with_the_place():
    process, denoise, keys, x, ts = setting()
    sampler = ancestral.ddpm()
    assert_allclose(
        base.sample(sampler, denoise, process, jax.random.key(1), x, ts),
        base.sample(sampler, denoise, process, keys, x, ts),
    )
    assert_allclose(base.start(process, jax.random.key(1), (6, 2)), x)
    later = arrays.example_keys(jax.random.key(1), 2, offset=4)  # a second part of the batch, on another device
    assert_allclose(base.start(process, later, (2, 2)), x[4:])


def test_sample_is_traced_once():
    process, denoise, keys, x, ts = setting()
    sampler = sde.edm()
    run = jax.jit(chex.assert_max_traces(lambda key, x, ts: base.sample(sampler, denoise, process, key, x, ts), n=1))
    images = [
        run(jax.random.key(seed), x, grid(process, 5)) for seed in (1, 2) for grid in (grids.uniform, grids.karras)
    ]
    assert all(np.isfinite(image).all() for image in images) and not np.allclose(images[0], images[1])


@pytest.mark.parametrize("sampler", [ancestral.ddpm(), ode.heun()], ids=["ddpm", "heun"])
def test_a_padded_grid_is_the_grid(sampler):
    process, denoise, keys, x, ts = setting()
    plain = base.sample(sampler, denoise, process, keys, x, ts)
    padded = base.sample(sampler, denoise, process, keys, x, jnp.concatenate([ts, jnp.full(4, ts[-1])]), padded=True)
    assert_allclose(padded, plain, rtol=1e-5, atol=1e-6)


def test_the_condition_reaches_the_denoiser():
    process, denoise, keys, x, ts = setting()

    def conditional(y, t, cond):
        return gaussian.from_x0(process, y, jnp.broadcast_to(cond["label"][:, None], y.shape), t)

    label = jnp.arange(6.0)
    image = base.sample(ancestral.ddim(), conditional, process, keys, x, ts, {"label": label})
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
        assert base.evaluations(sampler, np.zeros(base.points(sampler, 50))) in range(50 - sampler.nfe + 1, 51)


# ---- grids -----------------------------------------------------------------------------------------------------------

STRIDED = ("leading", "linspace", "trailing")


@every_process
def test_grids_go_strictly_down_from_end_to_end(process):
    for name, grid in GRIDS.items():
        ts = np.asarray(grid(process, 40))
        assert ts.shape == (40,) and ts.dtype == np.float32 and np.all(np.diff(ts) < 0), name
        if name not in STRIDED:
            assert ts[0] == np.float32(process.t_max) and ts[-1] == np.float32(process.t_min), name
            assert np.asarray(grid(process, 1)) == [np.float32(process.t_max)], name


@every_process
def test_grids_are_even_in_what_they_say(process):
    with jax.enable_x64(True):
        lam = np.asarray(gaussian.logsnr(process, grids.uniform_logsnr(process, 40)))
        ratio = np.exp(-0.5 * np.asarray(gaussian.logsnr(process, grids.karras(process, 40, rho=3.0)))) ** (1 / 3)
        for even in (lam, ratio, grids.uniform(process, 40), np.sqrt(grids.quadratic(process, 40))):
            steps = np.diff(even)
            assert_allclose(steps, steps.mean(), rtol=1e-6)


def test_karras_grid_is_equation_5():
    i, rho = np.arange(18), 7
    sigma = (80 ** (1 / rho) + i / 17 * (0.002 ** (1 / rho) - 80 ** (1 / rho))) ** rho
    assert_allclose(grids.karras(schedules.EDM(), 18) * 80, sigma, rtol=1e-5)


def test_strided_grids_are_diffusers_integers():
    """diffusers' timestep j is t = (j + 1) / N; the integers are worked out by hand."""
    chain = discrete.ddpm("cosine", steps=10)
    expected = {
        "leading": [6, 4, 2, 0],  # 10 // 4 = 2
        "linspace": [9, 6, 3, 0],
        "trailing": [9, 7, 4, 1],  # round(10, 7.5, 5, 2.5) - 1, halves to even: 10, 8, 5, 2
    }
    for name, j in expected.items():
        assert_allclose(GRIDS[name](chain, 4, steps=10), (np.array(j) + 1) / 10, rtol=1e-6, err_msg=name)
    assert_allclose(grids.leading(chain, 4, steps=10, offset=1), (np.array([7, 5, 3, 1]) + 1) / 10, rtol=1e-6)


@functools.cache
def _chain():
    return discrete.ddpm("linear")


@pytest.mark.parametrize("name", STRIDED)
def test_strided_grids_reject_what_does_not_fit(name):
    for n in (0, 11):
        with pytest.raises(UserError, match="between 1 and steps=10"):
            GRIDS[name](_chain(), n, steps=10)


def test_grids_reject_too_many_points():
    with pytest.raises(UserError, match="leaves the chain"):
        grids.leading(_chain(), 10, steps=10, offset=1)
    with pytest.raises(UserError, match="ask for fewer points"):
        grids.uniform_logsnr(schedules.RectifiedFlow(t_min=0.9, t_max=0.900001), 1000)
