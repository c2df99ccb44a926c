"""Guides of a config: which networks they use, when a model is guided, and what is refused."""

from __future__ import annotations

import contextlib
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from configs import toy
from configs._autoencoders import vae
from diffusion_jax import data
from diffusion_jax.assembly import denoiser, sampling, workdir
from diffusion_jax.assembly.experiment import assemble, guided_by
from diffusion_jax.assembly.kinds import classifier as classifiers
from diffusion_jax.assembly.kinds import few_step
from diffusion_jax.core.errors import UserError
from diffusion_jax.denoisers import guides
from diffusion_jax.evaluation import generate
from diffusion_jax.models.classifier import HalfUNet
from diffusion_jax.studies import drawing, subjects
from tests import commands
from tests.denoisers.mixture_by_class import NET, points, tiny


def weights(experiment, seed):
    """Parameters of its shapes that are not its zeros."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda key: experiment.kind.init(experiment, key), jax.random.key(0))
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape), leaf.dtype), shapes
    )


def drawn(experiment, params, scales):
    """Samples of the three classes at these scales, by one program."""
    chosen, cond = sampling.method(experiment), experiment.conditions.of_labels([0, 1, 2])
    run = sampling.sample_fn(experiment, chosen.sampler, guided=True, clip="none")
    params, keys = denoiser.ensemble(experiment, params), jax.vmap(jax.random.key)(jnp.arange(3))
    samples = [run(params, keys, cond, chosen.ts, jnp.float32(scale)) for scale in scales]
    assert run._cache_size() == 1
    return np.asarray(samples)


def test_a_guide_of_the_config_with_a_traced_scale():
    experiment = tiny()
    params = weights(experiment, 0)
    plain = drawn(experiment, params, (0.0, 1.0, 3.0))
    assert np.abs(plain[1] - plain[0]).max() > 1e-2 and np.abs(plain[2] - plain[1]).max() > 1e-2
    assert (
        sampling.method(experiment, experiment.sampling._replace(guidance=2.0)).guided
        and not sampling.method(experiment).guided
    )
    everywhere = drawn(
        guided_by("interval(cfg(rescale=0.0), high=1e6)", experiment), params, (0.0, 3.0)
    )
    assert_allclose(everywhere, plain[::2], rtol=1e-4, atol=1e-5)
    nowhere = drawn(guided_by("interval(low=1e5, high=1e6)", experiment), params, (0.0, 3.0))
    assert_allclose(nowhere, [plain[1]] * 2, rtol=1e-4, atol=1e-5)


def test_autoguidance_by_another_network():
    """At scale 0 it is the other, at 1 the model itself."""
    plain, asked = tiny(), []
    params, worse = weights(plain, 0), weights(plain, 1)

    def load(other):
        asked.append(other)
        return plain, worse

    experiment = tiny("interval(autoguidance(workdir='small', ema='5k'))", load)
    assert asked == [guides.AuxiliaryModel("small", "5k", 0)]
    samples, alone = (
        drawn(experiment, params, (0.0, 1.0, 2.5)),
        drawn(plain, params, (1.0,))[0],
    )
    assert_allclose(samples[0], drawn(plain, worse, (1.0,))[0], rtol=1e-4, atol=1e-5)
    assert_allclose(samples[1], alone, rtol=1e-4, atol=1e-5)
    assert np.abs(samples[2] - alone).max() > 1e-2


def test_classifier_guide_starts_from_the_unconditional_half():
    plain = tiny(model="unet.UNet", shape=(4, 4, 1))
    judge = plain._replace(model=HalfUNet(**NET), kind=classifiers.KIND, guide=guides.cfg())
    load, params = lambda other: (judge, weights(judge, 1)), weights(plain, 0)
    experiment = guided_by("classifier(workdir='c')", plain, load)
    assert (
        sampling.method(experiment).guided and not sampling.method(plain).guided
    )  # its scale 1 is Bayes' rule, not the model
    images, halves = (
        drawn(experiment, params, (0.0, 2.0)),
        drawn(plain, params, (0.0, 1.0)),
    )
    assert_allclose(images[0], halves[0], rtol=1e-4, atol=1e-5)
    assert np.abs(images[1] - images[0]).max() > 1e-3
    conditional = guided_by("classifier('c', conditional=True)", plain, load)
    assert_allclose(drawn(conditional, params, (0.0,))[0], halves[1], rtol=1e-4, atol=1e-5)


# guide: (scale at which it is the model itself or None, whether it guides without a condition,
# models that it refuses)
RULE = {
    "cfg()": (1.0, False, ("unconditional",)),
    "cfg(rescale=0.7)": (1.0, False, ("unconditional",)),
    "apg(eta=0.1, norm_threshold=5.0)": (1.0, False, ("unconditional",)),
    "cfg_zero()": (None, False, ("unconditional",)),
    "interval(cfg_zero(zero_init=0.0))": (1.0, False, ("unconditional",)),
    "interval(cfg(), high=2.0)": (1.0, False, ("unconditional",)),
    "autoguidance(step=1)": (1.0, True, ()),
    "interval(autoguidance(step=1))": (1.0, True, ()),
    "slg(blocks=('block_0', 'block_2'))": (1.0, True, ()),
    "cfg_with(pag(), scale=2.0)": (None, True, ("unconditional",)),
    "interval(cfg_with(interval(autoguidance(step=1))))": (None, True, ("unconditional",)),
    "classifier('c')": (None, False, ("unconditional", "captions")),
    "classifier('c', conditional=True)": (0.0, False, ("unconditional", "captions")),
    "mean_shift('c')": (None, False, ("unconditional", "captions")),
    "interval(mean_shift('c', conditional=True))": (0.0, False, ("unconditional", "captions")),
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
        model = guided_by(spec, model, lambda other, model=model: (model, None))
        for scale in (0.0, 1.0, 1.5):
            if scale == neutral:
                assert not denoiser.is_guided(model, scale)
            elif name in refused:
                for ask in (
                    denoiser.is_guided,
                    lambda model, scale: sampling.method(
                        model, model.sampling._replace(guidance=scale)
                    ),
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
                    denoiser.is_guided(model, scale)
                    and sampling.method(model, model.sampling._replace(guidance=scale)).guided
                )
                assert denoiser.is_guided(model, scale, conditioned=False) == always


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
        model = guided_by(spec, model, lambda other, model=model: (model, None))
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
    autoencoder = assemble(vae(autoencoder, "gaussian", hidden=(8,)), (2,))
    with pytest.raises(
        UserError, match="guidance=2: autoencoder.VAE is an autoencoder, to which guidance does"
    ):
        sampling.method(autoencoder, autoencoder.sampling._replace(guidance=2.0))


def test_no_command_decides_for_itself_whether_a_model_is_guided():
    """A comparison with a scale stands in denoiser alone, and in
    MeanFlow, whose argument has its own neutral 1.
    """
    own, deciding = re.compile(r"\.neutral\b|\b(guidance|scale)\"?\]? *[!=]= *[0-9]"), set()
    for file in [
        path
        for folder in ("diffusion_jax", "experiments")
        for path in (commands.ROOT / folder).rglob("*.py")
    ]:
        if own.search(file.read_text()):
            deciding.add(str(file.relative_to(commands.ROOT)))
    assert deciding == {
        "diffusion_jax/assembly/denoiser.py",
        "diffusion_jax/objectives/meanflow.py",
    }


def test_a_guided_denoiser_without_a_condition_has_the_null_condition():
    experiment = tiny()
    params, (x, _) = weights(experiment, 0), points()
    null, half = experiment.conditions.null(6), {"to": jnp.zeros(6)}
    guided = jax.jit(
        lambda cond: denoiser.denoiser(experiment, params, scale=3.0, clip="none")(x, 0.4, cond)
    )
    plain = denoiser.denoiser(experiment, params, clip="none")(x, 0.4, null)
    for cond in (null, None, half):
        chex.assert_trees_all_close(guided(cond), plain, rtol=1e-4, atol=1e-5)


def test_the_first_steps_of_cfg_zero_do_not_move_where_images_are_clipped():
    """And the others are clipped; in an interval it holds within it alone."""
    (x, cond), times = points(), jnp.array([0.999, 0.985, 0.7, 0.7, 0.999, 0.3])
    x, held = 3 * x, {"cfg_zero(zero_init=0.2)": [0, 1, 4]}
    held |= {"interval(cfg_zero(zero_init=0.2), high=100.0)": [1]}
    for spec, still in held.items():
        model = tiny(spec, process="schedules.RectifiedFlow()")
        guided = denoiser.denoiser(model, weights(model, 0), scale=3.0)
        found = guided(x, times, cond)
        speed = np.abs(found.eps - found.x0).max(1)  # of rectified flow
        assert_allclose(speed[still], 0, atol=1e-5)
        rest = [i for i in range(6) if i not in still]
        assert speed[rest].min() > 0.01 and np.abs(found.x0)[rest].max() <= 1


def test_cfg_zero_whose_every_step_stands_still_is_refused():
    model = tiny("cfg_zero()")
    for nfe in (1, 50):
        settings = model.sampling._replace(guidance=2.0, nfe=nfe, grid="uniform")
        with contextlib.nullcontext() if nfe > 1 else pytest.raises(UserError, match="be noise"):
            sampling.method(model, settings)
    few = tiny("cfg_zero()", objective="meanflow.meanflow()")
    with pytest.raises(UserError, match="is a few-step model, whose first step"):
        denoiser.is_guided(few, 2.0)
    assert denoiser.is_guided(guided_by("cfg_zero(zero_init=0.0)", few), 2.0)


def test_another_network_of_other_classes_is_refused():
    model = tiny()
    for spec in ("autoguidance(workdir='w')", "classifier('w')", "mean_shift('w')"):
        for classes in (0, 2, 3):  # without classes a worse model is unconditional
            other = model._replace(num_classes=classes)
            with (
                pytest.raises(UserError, match="w has 2 classes, and this model 3")
                if classes == 2
                else contextlib.nullcontext()
            ):
                guided_by(spec, model, lambda _, other=other: (other, None))


def test_a_teacher_is_not_guided_by_what_its_prediction_does_not_hold():
    plain = tiny()
    for spec in ("mean_shift('c')", "interval(mean_shift('c', conditional=True))"):
        teacher = guided_by(spec, plain, lambda other: (plain, None))
        teacher = teacher._replace(sampling=plain.sampling._replace(guidance=2.0))
        with pytest.raises(UserError, match="guided by mean_shift, which shifts the mean"):
            few_step.teacher_scale(plain._replace(teacher=(teacher, None)))


def test_a_comparison_of_a_model_that_a_classifier_guides_scores_what_sample_draws(monkeypatch):
    """At scale 1, which is Bayes' rule and not the model itself."""
    plain, seeds = tiny(), range(4)
    monkeypatch.setattr(denoiser, "logits", lambda experiment, params: lambda x_t, t: x_t @ params)
    experiment = guided_by(
        "classifier('c')",
        plain,
        lambda other: (plain, jnp.array([[2.0, -1.0, 0.5], [0.3, 1.0, -2.0]])),
    )
    trained, rng = (
        workdir.Trained(experiment, weights(plain, 0), 1, "params", {}),
        np.random.default_rng(0),
    )
    source = data.sources.Arrays(rng.standard_normal((12, 2)).astype("float32"), np.arange(12) % 3)
    subject = subjects.of_model(
        trained, data.Dataset("points", source, source, (2,), 3, None), seeds, "points"
    )
    chosen, keys = (
        sampling.method(experiment, experiment.sampling._replace(nfe=2)),
        generate.seeds_to_keys(seeds),
    )
    found = drawing.runner(subject, chosen.sampler, len(chosen.ts))(np.asarray(chosen.ts))[0]
    drawn = sampling.sample_with(experiment, trained.params, chosen)(
        keys, experiment.conditions.of_labels(np.arange(4) % 3)
    )
    assert_allclose(found, drawn, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "spec, words",
    [
        ("cgf()", "did you mean"),
        ("autoguidance()", "needs a worse model"),
        ("interval(low=2.0, high=1.0)", "is empty"),
        ("interval(0.2, 3.0)", "guide=0.2: it must be a component such as cfg"),
        ("autoguidance(ema='1k')", "other trained networks"),
        ("apg(norm_threshold=0.0)", "it must be above 0"),
        ("slg(blocks=())", "need a block to perturb"),
        ("cfg_zero(zero_init=1.5)", "cfg_zero: zero_init=1.5: it must be at least 0"),
        ("cfg(0.7, 0.1)", "cfg takes rescale"),
        ("cfg_with(cfg())", "leads away from a worse model"),
    ],
)
def test_a_guide_that_cannot_be_is_one_clear_line(spec, words):
    with pytest.raises(UserError, match=words) as caught:
        tiny(spec)
    assert "\n" not in str(caught.value)
