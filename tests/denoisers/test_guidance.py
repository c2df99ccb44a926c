"""Guidance and thresholding on mixtures and Gaussians, where the denoisers that it should lead to
are known; guides by name.
"""

from __future__ import annotations

import contextlib
import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from configs import digits, toy
from configs.base import base, network, vae
from diffusion_jax import data, files
from diffusion_jax.assembly import (
    conditions,
    denoiser,
    experiment,
    sampling,
    train,
    train_classifier,
    workdir,
)
from diffusion_jax.assembly.kinds import classifier as classifiers
from diffusion_jax.denoisers import guidance, guides
from diffusion_jax.errors import UserError
from diffusion_jax.evaluation import generate
from diffusion_jax.models.classifier import HalfUNet
from diffusion_jax.processes import gaussian, schedules
from diffusion_jax.studies import comparison, guidance_sweep
from diffusion_jax.targets import laws
from diffusion_jax.training import metrics
from diffusion_jax.types import Prediction
from tests import commands
from tests.families import PROCESSES

KINDS = (
    "VP",
    "EDM",
    "RectifiedFlow",
    "DDPM_cosine",
)  # guidance sees no more of a process than alpha and sigma

every_process = pytest.mark.parametrize("process", [PROCESSES[name] for name in KINDS], ids=KINDS)
WEIGHTS, CENTRES, STD = np.array([0.7, 0.3]), np.array([[0.8, -0.3], [-0.5, 0.6]]), 0.3
NULL = -1


def null(cond):
    return {"label": jnp.full_like(cond["label"], NULL)}


def by_class(process, calls=None):
    """The exact denoiser of one class, or of the whole mixture where the label is NULL; appends
    each call's batch size to `calls`.
    """
    whole = laws.denoise_mixture(laws.mixture(WEIGHTS, CENTRES, STD), process)
    single = [
        laws.denoise_gaussian(laws.gaussian(centre, STD**2 * jnp.eye(2)), process)
        for centre in jnp.asarray(CENTRES)
    ]

    def denoise(x_t, t, cond):
        if calls is not None:
            calls.append(len(x_t))
        label = cond["label"][:, None]
        return jax.tree.map(
            lambda u, a, b: jnp.where(label == NULL, u, jnp.where(label == 0, a, b)),
            whole(x_t, t),
            *(one(x_t, t) for one in single),
        )

    return denoise


def points():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((6, 2)), "float32")
    return x, {"label": jnp.array([0, 1, 0, 1, 1, 0])}


@every_process
def test_cfg_spans_unconditional_to_conditional(process):
    (x, cond), denoise, t = points(), by_class(process), 0.4
    conditional, unconditional = denoise(x, t, cond), denoise(x, t, null(cond))
    assert np.abs(conditional.x0 - unconditional.x0).max() > 0.01
    for scale, expected in ((0.0, unconditional), (1.0, conditional)):
        chex.assert_trees_all_close(
            guidance.cfg(denoise, scale, null)(x, t, cond), expected, rtol=1e-4, atol=1e-5
        )
    guided = guidance.cfg(denoise, 3.0, null)(x, t, cond)
    assert_allclose(
        guided.x0, unconditional.x0 + 3 * (conditional.x0 - unconditional.x0), rtol=1e-4, atol=1e-5
    )
    alpha, sigma = process.alpha(jnp.float32(t)), process.sigma(jnp.float32(t))
    assert_allclose(
        alpha * guided.x0 + sigma * guided.eps, x, rtol=1e-4, atol=1e-5
    )  # still what x_t is made of


def test_cfg_is_one_call_and_one_compile():
    calls, process, (x, cond) = [], schedules.VP(), points()
    denoise = by_class(process, calls)
    run = jax.jit(
        chex.assert_max_traces(
            lambda scale, t: guidance.cfg(denoise, scale, null)(x, t, cond).x0, n=1
        )
    )
    images = [run(scale, jnp.full(6, t)) for scale, t in ((0.0, 0.3), (2.0, 0.3), (7.5, 0.6))]
    assert calls == [12]  # both halves in one batch, traced once for all scales
    assert not np.allclose(images[0], images[1])


def test_cfg_keeps_the_learned_variance_between_its_bounds():
    """nu is interpolated up to the conditional one and never extrapolated."""

    def denoise(x_t, t, cond):
        nu = jnp.where(cond["label"][:, None] == NULL, -0.5, 0.9) * jnp.ones_like(x_t)
        return Prediction(x_t, x_t, nu)

    x, cond = points()
    for scale, nu in ((0.0, -0.5), (0.5, 0.2), (1.0, 0.9), (4.0, 0.9)):
        assert_allclose(guidance.cfg(denoise, scale, null)(x, 0.5, cond).nu, nu, rtol=1e-6)


# ---- away from a worse prediction ----
@every_process
def test_labelled_mixture_is_its_classes(process):
    """The mixture's own labels, against the denoisers of its parts."""
    (x, cond), law = points(), laws.mixture(WEIGHTS, CENTRES, STD)
    ours, parts = laws.denoise_mixture(law, process, labels=[0, 1]), by_class(process)
    for told in (cond, null(cond)):
        chex.assert_trees_all_close(ours(x, 0.4, told), parts(x, 0.4, told), rtol=1e-4, atol=1e-5)


def test_autoguidance_spans_worse_to_better():
    process, (x, cond) = schedules.VP(), points()
    better, worse = (
        by_class(process),
        laws.denoise_mixture(laws.mixture(WEIGHTS, CENTRES, 0.8), process),
    )
    for scale, expected in ((0.0, worse), (1.0, better)):
        guided = guidance.autoguidance(better, worse, scale)(x, 0.4, cond)
        chex.assert_trees_all_close(guided, expected(x, 0.4, cond), rtol=1e-4, atol=1e-5)
    itself = guidance.autoguidance(better, better, 5.0)(x, 0.4, cond)
    chex.assert_trees_all_close(itself, better(x, 0.4, cond), rtol=1e-5, atol=1e-6)


def test_a_learned_variance_survives_a_guide_that_learned_none():
    def better(x, t, cond=None):
        return Prediction(x, x, 0.3 * x)

    def worse(x, t, cond=None):
        return Prediction(2 * x, 0 * x)

    x = points()[0]
    assert_allclose(guidance.autoguidance(better, worse, 3.0)(x, 0.5).nu, 0.3 * x)
    assert guidance.autoguidance(worse, better, 3.0)(x, 0.5).nu is None


@every_process
def test_rescale_keeps_the_contrast(process):
    (x, cond), denoise, t = points(), by_class(process), 0.4
    pair = guidance.conditional_pair(denoise, null)
    conditional, plain = denoise(x, t, cond), guidance.extrapolate(pair, 4.0)(x, t, cond)
    chex.assert_trees_all_close(
        guidance.rescale(pair, 4.0, process, 0.0)(x, t, cond), plain, rtol=1e-4, atol=1e-5
    )
    chex.assert_trees_all_close(
        guidance.rescale(pair, 1.0, process, 0.7)(x, t, cond), conditional, rtol=1e-4, atol=1e-5
    )
    half, whole = (
        guidance.rescale(pair, 4.0, process, strength)(x, t, cond) for strength in (0.5, 1.0)
    )
    assert np.all(
        np.isfinite(jax.grad(lambda x: guidance._std(x).sum())(jnp.zeros((2, 3, 1))))
    )  # a constant image
    assert_allclose(np.std(whole.x0, 1), np.std(conditional.x0, 1), rtol=1e-4)
    assert_allclose(half.x0, (whole.x0 + plain.x0) / 2, rtol=1e-4, atol=1e-5)
    alpha, sigma = process.alpha(jnp.float32(t)), process.sigma(jnp.float32(t))
    assert_allclose(alpha * half.x0 + sigma * half.eps, x, rtol=1e-4, atol=1e-5)


@every_process
def test_interval_is_of_noise_levels(process):
    (x, cond), denoise = points(), by_class(process)
    guided, t = guidance.cfg(denoise, 3.0, null), jnp.linspace(0.2, 0.8, 6)
    level = process.sigma(t) / process.alpha(t)
    low, high = (float(jnp.sqrt(level[i] * level[i + 1])) for i in (1, 3))
    found = guidance.interval(guided, denoise, process, low, high)
    expected = [(guided if i in (2, 3) else denoise)(x, t, cond) for i in range(6)]
    for i in range(6):
        own = jax.tree.map(lambda p: p[i], expected[i])
        chex.assert_trees_all_close(
            jax.tree.map(lambda p: p[i], found(x, t, cond)), own, rtol=1e-4, atol=1e-5
        )
        same = jax.tree.map(lambda p: p[i], found(x, t[i], cond))  # a scalar time
        chex.assert_trees_all_close(same, own, rtol=1e-4, atol=1e-5)
    for high, expected in ((math.inf, guided), (0.0, denoise)):
        found = guidance.interval(guided, denoise, process, 0.0, high)(x, t, cond)
        chex.assert_trees_all_close(found, expected(x, t, cond), rtol=1e-4, atol=1e-5)


def test_outside_its_interval_guidance_costs_nothing():
    ran, process, (x, cond) = [], schedules.EDM(), points()

    def counted(x_t, t, cond):
        jax.debug.callback(lambda: ran.append(len(x_t)))
        return by_class(process)(x_t, t, cond)

    found = guidance.interval(guidance.cfg(counted, 2.0, null), counted, process, 1.0, 10.0)
    run = jax.jit(
        lambda level: found(x, gaussian.time_of_logsnr(process, -2 * jnp.log(level)), cond).x0
    )
    for level in (0.5, 5.0):
        run(jnp.float32(level)).block_until_ready()
        jax.effects_barrier()
    assert ran == [6, 12]


# ---- along a gradient ----
def exact_logits(process):
    """log p(class, x_t) of every class, the classifier that Bayes' rule asks for up to softmax."""
    law = laws.mixture(WEIGHTS, CENTRES, STD)

    def logits(x_t, t):
        every = [{"label": jnp.full(len(x_t), label)} for label in (0, 1)]
        return jnp.stack(
            [laws.log_density_mixture(law, process, x_t, t, [0, 1], told) for told in every], 1
        )

    return logits


@every_process
def test_classifier_guidance_is_bayes_rule(process):
    (x, cond), denoise, t = points(), by_class(process), 0.4

    def unconditional(x_t, t, cond=None):
        return denoise(x_t, t, null(cond))

    log_prob = guidance.class_log_prob(exact_logits(process))
    assert_allclose(
        jnp.exp(log_prob(x, t, cond)) + jnp.exp(log_prob(x, t, {"label": 1 - cond["label"]})),
        1,
        rtol=1e-5,
    )
    anything = {"label": 0 * cond["label"] + 2}
    for scale, told, expected in (
        (0.0, cond, unconditional),
        (1.0, cond, denoise),
        (2.0, anything, unconditional),
    ):
        guided = guidance.classifier(unconditional, process, log_prob, scale)(x, t, told)
        chex.assert_trees_all_close(guided, expected(x, t, cond), rtol=1e-3, atol=1e-4)
    half = guidance.classifier(unconditional, process, log_prob, 0.5)(x, t, cond)
    chex.assert_trees_all_close(
        half, guidance.cfg(denoise, 0.5, null)(x, t, cond), rtol=1e-3, atol=1e-4
    )  # the same, if exact


def test_log_ratio_makes_one_class_of_another():
    process, (x, cond) = schedules.VP(), points()
    denoise, zero = by_class(process), lambda cond: {"label": 0 * cond["label"]}
    log_prob = guidance.class_log_prob(exact_logits(process), against=0)
    guided = guidance.classifier(
        lambda x, t, c=None: denoise(x, t, zero(c)), process, log_prob, 1.0
    )
    chex.assert_trees_all_close(guided(x, 0.4, cond), denoise(x, 0.4, cond), rtol=1e-3, atol=1e-4)


MEAN, COVARIANCE = np.array([0.3, -0.2]), np.array([[0.5, 0.2], [0.2, 0.3]])


@every_process
def test_linear_energy_tilts_a_gaussian(process):
    """p(x0) exp(-scale c.x0) of N(m, C) is N(m - scale C c, C)."""
    x, c, scale, t = points()[0], np.array([0.7, -1.1]), 1.5, jnp.linspace(0.2, 0.8, 6)
    denoise = laws.denoise_gaussian(laws.gaussian(MEAN, COVARIANCE), process)
    tilted = laws.denoise_gaussian(
        laws.gaussian(MEAN - scale * COVARIANCE @ c, COVARIANCE), process
    )
    guided = guidance.energy(denoise, process, lambda x0, t, cond: x0 @ c, scale)
    chex.assert_trees_all_close(guided(x, t), tilted(x, t), rtol=1e-3, atol=1e-4)


@every_process
def test_gaussian_energy_with_the_posterior_variance_is_exact(process):
    """y = a.x0 + r n on N(m, C): exact if E has r^2 + a'C_t a, C_t the covariance of x0 given x_t;
    with r^2 alone it is not.
    """
    a, y, r, t = np.array([1.0, 0.5]), 0.9, 0.4, 0.5
    gain = COVARIANCE @ a / (a @ COVARIANCE @ a + r**2)
    posterior = laws.gaussian(
        MEAN + gain * (y - a @ MEAN), COVARIANCE - np.outer(gain, a @ COVARIANCE)
    )
    denoise = laws.denoise_gaussian(laws.gaussian(MEAN, COVARIANCE), process)
    exact, x = laws.denoise_gaussian(posterior, process), points()[0]

    def misfit(x0, t, cond, known=True):
        snr = (process.alpha(t) / process.sigma(t)) ** 2
        spread = a @ jnp.linalg.inv(jnp.linalg.inv(COVARIANCE) + snr * jnp.eye(2)) @ a
        return 0.5 * (y - x0 @ a) ** 2 / (r**2 + known * spread)

    guided = guidance.energy(denoise, process, misfit)(x, jnp.float32(t))
    chex.assert_trees_all_close(guided, exact(x, t), rtol=1e-3, atol=1e-4)
    naive = guidance.energy(denoise, process, lambda x0, t, cond: misfit(x0, t, cond, known=False))(
        x, jnp.float32(t)
    )
    assert np.abs(naive.x0 - exact(x, t).x0).max() > 0.05


def test_composition_is_by_calling():
    """Affine guidances commute; thresholding does not commute with them: what is called last has
    the last word.
    """
    process, (x, cond) = schedules.VP(), points()
    better, worse = (
        by_class(process),
        laws.denoise_mixture(laws.mixture(WEIGHTS, CENTRES, 0.8), process, [0, 1]),
    )
    inner = guidance.cfg(guidance.autoguidance(better, worse, 2.0), 3.0, null)
    outer = guidance.autoguidance(
        guidance.cfg(better, 3.0, null), guidance.cfg(worse, 3.0, null), 2.0
    )
    chex.assert_trees_all_close(inner(x, 0.3, cond), outer(x, 0.3, cond), rtol=1e-3, atol=1e-4)
    last = guidance.clip_x0(guidance.cfg(better, 8.0, null), process)
    first = guidance.cfg(guidance.clip_x0(better, process), 8.0, null)
    assert np.abs(last(x, 0.5, cond).x0).max() <= 1 < np.abs(first(x, 0.5, cond).x0).max()


# ---- guides by name ----
def tiny(guide="cfg()", load=None, model="mlp.MLP", shape=(2,), **changes):
    """A tiny experiment of three classes."""
    config = base()
    config.update(changes)
    options = {
        "mlp.MLP": dict(width=8, blocks=1),
        "unet.UNet": dict(multipliers=(1,), attention=(), blocks=1, width=8),
    }
    config.model = network(model, **options[model])
    config.sampler.update(guide=guide, nfe=3, clip="none")
    return experiment.assemble(config, shape, 3, load)


def weights(built, seed):
    """Parameters of its shapes that are not its zeros."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda key: built.kind.init(built, key), jax.random.key(0))
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape), leaf.dtype), shapes
    )


def drawn(built, params, scales):
    """Samples of the three classes at these scales, by one program."""
    chosen, cond = sampling.plan(built), conditions.cond_for(built, [0, 1, 2])
    run = sampling.sample_fn(built, chosen.sampler, guided=True, clip="none")
    params, keys = denoiser.ensemble(built, params), jax.vmap(jax.random.key)(jnp.arange(3))
    samples = [run(params, keys, cond, chosen.ts, jnp.float32(scale)) for scale in scales]
    assert run._cache_size() == 1
    return np.asarray(samples)


def test_a_guide_of_the_config_with_a_traced_scale():
    built = tiny()
    params = weights(built, 0)
    plain = drawn(built, params, (0.0, 1.0, 3.0))
    assert np.abs(plain[1] - plain[0]).max() > 1e-2 and np.abs(plain[2] - plain[1]).max() > 1e-2
    assert sampling.plan(built, guidance=2.0).guided and not sampling.plan(built).guided
    everywhere = drawn(
        experiment.guided_by("interval(cfg(rescale=0.0), high=1e6)", built), params, (0.0, 3.0)
    )
    assert_allclose(everywhere, plain[::2], rtol=1e-4, atol=1e-5)
    nowhere = drawn(experiment.guided_by("interval(low=1e5, high=1e6)", built), params, (0.0, 3.0))
    assert_allclose(nowhere, [plain[1]] * 2, rtol=1e-4, atol=1e-5)


def test_autoguidance_by_another_network():
    """At scale 0 it is the other, at 1 the model itself."""
    plain, asked = tiny(), []
    params, worse = weights(plain, 0), weights(plain, 1)

    def load(other):
        asked.append(other)
        return plain, worse

    built = tiny("interval(autoguidance(workdir='small', ema='5k'))", load)
    assert asked == [guides.AuxiliaryModel("small", "5k", 0)]
    samples, alone = (
        drawn(built, params, (0.0, 1.0, 2.5)),
        drawn(plain, params, (1.0,))[0],
    )
    assert_allclose(samples[0], drawn(plain, worse, (1.0,))[0], rtol=1e-4, atol=1e-5)
    assert_allclose(samples[1], alone, rtol=1e-4, atol=1e-5)
    assert np.abs(samples[2] - alone).max() > 1e-2


def test_classifier_guide_starts_from_the_unconditional_half():
    plain = tiny(model="unet.UNet", shape=(4, 4, 1))
    judge = plain._replace(model=HalfUNet(**NET), kind=classifiers.KIND, guide=guides.cfg())
    load, params = lambda other: (judge, weights(judge, 1)), weights(plain, 0)
    built = experiment.guided_by("classifier(workdir='c')", plain, load)
    assert (
        sampling.plan(built).guided and not sampling.plan(plain).guided
    )  # its scale 1 is Bayes' rule, not the model
    images, halves = (
        drawn(built, params, (0.0, 2.0)),
        drawn(plain, params, (0.0, 1.0)),
    )
    assert_allclose(images[0], halves[0], rtol=1e-4, atol=1e-5)
    assert np.abs(images[1] - images[0]).max() > 1e-3
    conditional = experiment.guided_by("classifier('c', conditional=True)", plain, load)
    assert_allclose(drawn(conditional, params, (0.0,))[0], halves[1], rtol=1e-4, atol=1e-5)


# guide: (scale at which it is the model itself or None, whether it guides without a condition,
# models that it refuses)
RULE = {
    "cfg()": (1.0, False, ("unconditional",)),
    "cfg(rescale=0.7)": (1.0, False, ("unconditional",)),
    "interval(cfg(), high=2.0)": (1.0, False, ("unconditional",)),
    "autoguidance(step=1)": (1.0, True, ()),
    "interval(autoguidance(step=1))": (1.0, True, ()),
    "classifier('c')": (None, False, ("unconditional", "captions")),
    "classifier('c', conditional=True)": (0.0, False, ("unconditional", "captions")),
    "classifier('c', against=1)": (None, False, ("unconditional", "captions")),
}


@pytest.mark.parametrize("spec", RULE)
def test_the_guides_own_neutral_scale_decides(spec):
    neutral, always, refused = RULE[spec]
    models = {
        "labels": tiny(),
        "unconditional": tiny(conditional=False),
        "captions": tiny(
            model="unet.UNet",
            shape=(4, 4, 1),
            conditional=False,
            text={"encoder": "bytes(width=8)"},
        ),
    }
    for name, model in models.items():
        model = experiment.guided_by(spec, model, lambda other, model=model: (model, None))
        for scale in (0.0, 1.0, 1.5):
            if scale == neutral:
                assert not denoiser.is_guided(model, scale)
            elif name in refused:
                for ask in (
                    denoiser.is_guided,
                    lambda model, scale: sampling.plan(model, guidance=scale),
                ):
                    with pytest.raises(
                        UserError, match=f"config.sampler.guidance={scale:g}: .*this model"
                    ) as caught:
                        ask(model, scale)
                    assert "\n" not in str(caught.value) and "--config.sampler.guidance=" in str(
                        caught.value
                    )
            else:
                assert (
                    denoiser.is_guided(model, scale) and sampling.plan(model, guidance=scale).guided
                )
                assert denoiser.is_guided(model, scale, told=False) == always


def test_guidance_that_cannot_be_is_refused_where_it_is_asked_for():
    with pytest.raises(UserError, match="--guides='cfg' at scale=2: this model is unconditional"):
        denoiser.is_guided(tiny(conditional=False), 2.0, key="--guides='cfg' at scale")
    with pytest.raises(
        UserError,
        match="this model is trained with config.label_dropout=0, so it does not know the null",
    ):
        denoiser.is_guided(tiny(label_dropout=0.0), 2.0)
    assert not denoiser.is_guided(tiny(label_dropout=0.0), 1.0)
    for spec, refused in {
        "classifier('c')": True,
        "interval(classifier('c'))": True,
        "classifier('c', conditional=True)": False,
        "classifier('c', against=1)": False,
        "autoguidance(step=1)": False,
    }.items():
        model = tiny(label_dropout=0.0)
        model = experiment.guided_by(spec, model, lambda other, model=model: (model, None))
        with (
            pytest.raises(UserError, match="with config.label_dropout=0")
            if refused
            else contextlib.nullcontext()
        ):
            denoiser.is_guided(model, 2.0)
    with pytest.raises(UserError, match="which config.label_dropout=0 never trains"):
        tiny(objective="meanflow.meanflow(guidance=2.0)", label_dropout=0.0)
    assert tiny(objective="meanflow.meanflow()", label_dropout=0.0).objective.guided is False
    with pytest.raises(UserError, match="unconditional"):
        denoiser.denoiser(tiny(conditional=False), None, scale=2.0)
    with pytest.raises(UserError, match=r"meanflow\(guidance=2.0\): this model is unconditional"):
        tiny(objective="meanflow.meanflow(guidance=2.0)", conditional=False)
    assert not tiny(objective="meanflow.meanflow()", conditional=False).objective.guided
    autoencoder = toy.get_config("vp")
    autoencoder = experiment.assemble(vae(autoencoder, "gaussian", hidden=(8,)), (2,))
    with pytest.raises(
        UserError, match="guidance=2: autoencoder.VAE is an autoencoder, which has nothing to guide"
    ):
        sampling.plan(autoencoder, guidance=2.0)


def test_no_command_decides_for_itself_whether_a_model_is_guided():
    """A comparison with a scale stands in denoiser alone, and in
    MeanFlow, whose argument has its own neutral 1.
    """
    own, deciding = re.compile(r"\.neutral\b|\b(guidance|scale)\"?\]? *[!=]= *[0-9]"), set()
    for file in [
        path
        for room in ("diffusion_jax", "experiments")
        for path in (commands.ROOT / room).rglob("*.py")
    ]:
        if own.search(file.read_text()):
            deciding.add(str(file.relative_to(commands.ROOT)))
    assert deciding == {
        "diffusion_jax/assembly/denoiser.py",
        "diffusion_jax/objectives/meanflow.py",
    }


def test_a_guided_denoiser_without_a_condition_has_the_null_condition():
    built = tiny()
    params, (x, _) = weights(built, 0), points()
    null, half = conditions.null_cond(built, 6), {"to": jnp.zeros(6)}
    guided = jax.jit(
        lambda cond: denoiser.denoiser(built, params, scale=3.0, clip="none")(x, 0.4, cond)
    )
    plain = denoiser.denoiser(built, params, clip="none")(x, 0.4, null)
    for cond in (null, None, half):
        chex.assert_trees_all_close(guided(cond), plain, rtol=1e-4, atol=1e-5)


def test_a_comparison_of_a_model_that_a_classifier_guides_scores_what_sample_draws(monkeypatch):
    """At scale 1, which is Bayes' rule and not the model itself."""
    plain, seeds = tiny(), range(4)
    monkeypatch.setattr(denoiser, "logits", lambda built, params: lambda x_t, t: x_t @ params)
    built = experiment.guided_by(
        "classifier('c')",
        plain,
        lambda other: (plain, jnp.array([[2.0, -1.0, 0.5], [0.3, 1.0, -2.0]])),
    )
    trained, rng = (
        workdir.Trained(built, weights(plain, 0), 1, "params", {}),
        np.random.default_rng(0),
    )
    source = data.sources.Arrays(rng.standard_normal((12, 2)).astype("float32"), np.arange(12) % 3)
    subject = comparison.of_model(
        trained, data.Dataset("points", source, source, (2,), 3, None), seeds, "points"
    )
    chosen, keys = sampling.plan(built, nfe=2), generate.seeds_to_keys(seeds)
    found = comparison.runner(subject, chosen.sampler, len(chosen.ts))(np.asarray(chosen.ts))[0]
    drawn = sampling.sample_with(built, trained.params, chosen)(
        keys, conditions.cond_for(built, np.arange(4) % 3)
    )
    assert_allclose(found, drawn, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "spec, told",
    [
        ("cgf()", "did you mean"),
        ("autoguidance()", "needs a worse model"),
        ("interval(low=2.0, high=1.0)", "is empty"),
        ("interval(0.2, 3.0)", "guide=0.2: it must be a component such as cfg"),
        ("autoguidance(ema='1k')", "other trained networks"),
        ("cfg(0.7, 0.1)", "cfg takes rescale"),
    ],
)
def test_a_guide_that_cannot_be_is_one_clear_line(spec, told):
    with pytest.raises(UserError, match=told) as caught:
        tiny(spec)
    assert "\n" not in str(caught.value)


def test_a_classifier_needs_a_label_and_its_classes():
    x, cond = points()
    logits = exact_logits(schedules.VP())
    with pytest.raises(UserError, match="needs a label as its condition"):
        guidance.class_log_prob(logits)(x, 0.4, None)
    with pytest.raises(UserError, match="knows 0 to 1"):
        guidance.class_log_prob(logits, against=2)(x, 0.4, cond)


def test_a_denoiser_is_no_classifier_and_other_processes_are_told():
    plain = tiny()
    built = experiment.guided_by("classifier('c')", plain, lambda other: (plain, None))
    with pytest.raises(UserError, match="is no classifier"):
        denoiser.denoiser(built, None, scale=2.0)
    flow = tiny(process="schedules.RectifiedFlow()")
    with pytest.raises(UserError, match="RectifiedFlow"):
        experiment.guided_by("autoguidance('c')", plain, lambda other: (flow, None))


NET = dict(num_classes=3, width=8, multipliers=(1, 2), blocks=1, attention=(2,), head_width=8)


@pytest.mark.parametrize("pool", ["attention", "mean"])
def test_the_classifier_network(pool):
    net = HalfUNet(**NET, pool=pool)
    x, c_noise = (
        jnp.asarray(np.random.default_rng(0).standard_normal((2, 4, 4, 1)), "float32"),
        jnp.array([0.1, 0.9]),
    )
    run = jax.jit(lambda params, x, c_noise: net.apply({"params": params}, x, c_noise))
    fresh = jax.jit(lambda: net.init(jax.random.key(0), x, c_noise)["params"])()
    assert (run(fresh, x, c_noise) == np.zeros((2, 3))).all()
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda leaf: leaf + 0.2 * rng.standard_normal(leaf.shape).astype("float32"), fresh
    )
    logits = run(params, x, c_noise)
    assert logits.shape == (2, 3) and logits.dtype == jnp.float32
    assert np.abs(run(params, x, c_noise + 0.3) - logits).max() > 1e-3  # it is told the noise level
    assert_allclose(
        run(params, x.at[1].set(0), c_noise)[0], logits[0], rtol=1e-4, atol=1e-5
    )  # an image is itself alone
    with pytest.raises(UserError, match="multiples of 2"):
        net.init(jax.random.key(0), x[:, :3], c_noise)


def test_train_a_classifier_and_sweep_with_it(tmp_path, capfd):
    """The two commands, tiny: both resume, and cells that are there are not made again."""

    def small():
        config = digits.get_config("vp")
        config.data.update(batch_size=16, data_dir=str(tmp_path / "data"))
        config.model.update(width=8, multipliers=(1,), attention=(), head_width=8)
        config.training.update(
            steps=2, log_every=1, eval_every=2, sample_every=0, checkpoint_every=1
        )
        config.sampler.update(nfe=2, batch_size=20)
        return config.lock()

    run, judge = tmp_path / "run", str(tmp_path / "classifier")
    assert train.train(small(), str(run))
    text = train_classifier.train_classifier(small(), judge, "mean")
    assert train_classifier.train_classifier(small(), judge, "mean") == text
    rows = files.load_json(f"{judge}/classifier.json")["rows"]
    assert [row["logsnr"] for row in rows] == list(range(-9, 12, 3))  # those that VP has
    assert all(abs(row["nats"] - math.log(10)) < 0.5 for row in rows)
    assert "eval_accuracy" in metrics.read_rows(f"{judge}/metrics.jsonl")[-1]

    asked = (["cfg()", f"classifier('{judge}')", "autoguidance(step=1)"], [1.0, 2.0], 20, "pixels")
    text = guidance_sweep.on_model(workdir.saved_config(run), run, *asked)
    assert "guidance sweep: 120/120" in capfd.readouterr().err
    assert guidance_sweep.on_model(workdir.saved_config(run), run, *asked) == text
    assert "guidance sweep" not in capfd.readouterr().err
    kept = files.load_json(run / "guidance_sweep.json")
    at_one = [
        row
        for row in kept["rows"]
        if row["scale"] == 1 and not row["guide"].startswith("classifier")
    ]
    assert at_one[0]["frechet"] == pytest.approx(
        at_one[1]["frechet"], rel=1e-3
    )  # scale 1 is the model itself
    assert len(kept["others"]["cfg()"]) == 0 and len(kept["others"]["autoguidance(step=1)"]) == 1
    assert (run / "guidance_sweep.png").exists() and (run / "guidance_sweep_strips.png").exists()


def test_scales_that_are_no_numbers_are_one_line():

    assert guidance_sweep.scales_of("2,0,1") == [0.0, 1.0, 2.0]
    with pytest.raises(UserError, match="write numbers with commas"):
        guidance_sweep.scales_of("1,b")


# ---- thresholding ----
def tenfold(process):
    """A denoiser far outside the data's range, with a learned variance to be kept."""

    def denoise(x_t, t, cond=None):
        nu = None if cond is None else jnp.full_like(x_t, 0.25)
        return gaussian.from_x0(process, x_t, 10 * x_t, t)._replace(nu=nu)

    return denoise


@every_process
@pytest.mark.parametrize("change", [guidance.clip_x0, guidance.dynamic_threshold])
def test_thresholding_keeps_what_x_t_is_made_of(process, change):
    x, t = points()[0], jnp.linspace(0.3, 0.9, 6)
    x0, eps, nu = change(tenfold(process), process)(x, t, "with variance")[:3]
    assert np.abs(x0).max() <= 1
    alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
    assert_allclose(alpha * x0 + sigma * eps, x, rtol=1e-4, atol=1e-5)
    assert_allclose(nu, 0.25)
    assert change(tenfold(process), process)(x, t).nu is None


def test_clip_by_hand():
    process = schedules.EDM()
    x = jnp.array([[0.05, -0.02], [0.3, -0.4]])
    assert_allclose(
        guidance.clip_x0(tenfold(process), process)(x, 0.5).x0,
        [[0.5, -0.2], [1.0, -1.0]],
        rtol=1e-6,
    )
    assert_allclose(
        guidance.clip_x0(tenfold(process), process, 0.0, 2.0)(x, 0.5).x0,
        [[0.5, 0.0], [2.0, 0.0]],
        rtol=1e-6,
    )


def test_dynamic_threshold_by_hand():
    """Eleven values |0|, |1|, ..., |10|: their 80th percentile is 8, so [-8, 8] is kept and divided
    by 8; an image within 1 is kept.
    """
    process = schedules.EDM()
    wide = jnp.arange(11.0) * jnp.array([1, -1] * 5 + [1]) / 10
    x = jnp.stack([wide, wide / 20])
    x0 = guidance.dynamic_threshold(tenfold(process), process, 80.0)(x, 0.5).x0
    expected = np.clip(10 * np.asarray(wide), -8, 8) / 8
    assert_allclose(x0[0], expected, rtol=1e-6)
    assert_allclose(x0[1], wide / 2, rtol=1e-6)
