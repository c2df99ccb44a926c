"""Models of captions: their training, their prompts, their guidance and their teachers."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.base import base, network
from diffusion_jax import data
from diffusion_jax.assembly import conditions, sample_conditions, sampling
from diffusion_jax.assembly.experiment import assemble
from diffusion_jax.assembly.kinds import few_step
from diffusion_jax.assembly.settings import Experiment
from diffusion_jax.assembly.workdir import Trained
from diffusion_jax.core.errors import UserError
from diffusion_jax.data import captions
from diffusion_jax.data.sources import Arrays
from diffusion_jax.evaluation import generate
from diffusion_jax.studies import drawing, generation, subjects
from diffusion_jax.training import step
from tests.models.captioned import TINY, read


def config_of(name="digits_captions", encoder="bytes(width=8, heads=2, depth=1)", **model):
    config = base()
    config.data.name, config.conditional = name, False
    config.text.update(encoder=encoder, max_length=44)
    config.model = network("unet.UNet", **TINY | {"width": 4, "attention": ()} | model)
    return config


@pytest.fixture(scope="module")
def model():
    return assemble(config_of(), (8, 8, 1), 10)


def test_captions_are_dropped_whole_and_the_reader_learns(model):
    """At rate 1 the loss does not depend on the caption; at rate 0 it does, with gradients down to
    the bytes.
    """
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda key: model.kind.init(model, key), jax.random.key(0))
    params = jax.tree.map(
        lambda p: jnp.asarray(0.2 * random.standard_normal(p.shape), p.dtype), shapes
    )
    keys = jax.random.split(jax.random.key(3), 2)

    @jax.jit
    def losses_and_gradient(params, ids, rate):
        dropping = conditions.builder(0, model.encoder, rate, conditions.ArrayInputs((8, 8, 1)))
        loss = model.kind.loss(model._replace(conditions=dropping))
        now = step.Now(jnp.int32(0), {})

        def total(p):
            return loss(p, {"image": jnp.ones((2, 8, 8, 1)) * 0.3, "bytes": ids}, keys, now)[0]

        return total(params), jax.grad(lambda p: total(p).sum())(params)["text"]

    one, two = (
        jnp.asarray(model.encoder.encode(two)["bytes"]) for two in (["a 3", "a 4"], ["a 3", "a 5"])
    )
    (always, _), (never, gradient) = (losses_and_gradient(params, one, rate) for rate in (1.0, 0.0))
    np.testing.assert_array_equal(always, losses_and_gradient(params, two, 1.0)[0])
    other = losses_and_gradient(params, two, 0.0)[0]
    assert other[1] != never[1] and float(other[0]) == pytest.approx(float(never[0]), rel=1e-6)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(gradient["reader"]["layer_0_value"]))
    assert (
        np.abs(gradient["null_state"]).max() == 0
        and np.abs(gradient["reader"]["words"][ord("5") + 1]).max() == 0
    )


@pytest.mark.parametrize(
    "prompt, message",
    [
        ("", "--prompt is empty"),
        (" \n", "--prompt is empty"),
        ("x" * 10_000, "--prompt has 10000 tokens, of which this model reads 44"),
        ("a \udcff", "is not valid UTF-8"),
    ],
)
def test_bad_prompts_are_one_line(model, prompt, message):
    with pytest.raises(UserError, match=message) as error:
        model.conditions.of_prompts(["a bold seven", prompt])
    assert len(str(error.value)) < 200 and "\n" not in str(error.value)


def test_prompts_and_labels_meet_the_right_models(model):

    labeled = assemble(_labeled(), (8, 8, 1), 10)
    with pytest.raises(UserError, match="has no captions.* labels, 0 to 9: use --labels"):
        generation.requested_conditions(labeled, "", ["a 3"], 4)
    with pytest.raises(UserError, match="give one or more by --prompt"):
        generation.requested_conditions(model, "", [], 4)
    with pytest.raises(UserError, match="takes captions: give one by --prompt"):
        generation.requested_conditions(model, "3", [], 4)
    with pytest.raises(UserError, match="--labels and --prompt together"):
        generation.requested_conditions(model, "3", ["a 3"], 4)
    _, cond = generation.requested_conditions(model, "", ["a 3", "a 4"], 4)  # a row each
    assert [bytes(np.uint8(row[row > 0] - 1)).decode() for row in cond["bytes"]] == [
        "a 3",
        "a 3",
        "a 4",
        "a 4",
    ]


def _labeled():
    config = config_of(encoder="")
    config.conditional = True
    return config


class ByMean(nn.Module):
    """A network without parameters that knows the mean of a caption's bytes."""

    def __call__(self, x, c_noise, cond=None, train=False):
        return x * (0.3 + jnp.mean(cond["bytes"], axis=1) / 100)[:, None, None, None]


def guided_at(scale: float, **changes) -> Experiment:
    """A model of captions with config.sampler.guidance = scale, drawn without clipping."""
    config = config_of()
    config.update(changes)
    config.sampler.update(guidance=scale, clip="none", nfe=2)
    return assemble(config, (8, 8, 1), 10)._replace(model=ByMean())


def described(experiment: Experiment) -> data.Dataset:
    """Twelve images of noise in two classes, each with its caption."""
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1)).astype(np.uint8)
    every, (numbers,) = captions.numbered([(f"number {i}",) for i in range(12)])
    source = captions.CaptionedSource(
        Arrays(images, np.arange(12) % 2, numbers), experiment.encoder.encode(every)
    )
    return data.Dataset("folder", source, source, (8, 8, 1), 2, ("a", "b"), captions=every)


def test_a_guided_model_of_captions_is_compared_by_the_samples_of_its_captions():
    """What comparison, sweeps and evaluation draw: the captions of the test split in turn, guided
    as sample guides them.
    """
    experiment, keys = guided_at(3.0), generate.seeds_to_keys(range(3))
    dataset, trained = described(experiment), Trained(experiment, {}, 1, "params", {})
    labels, cond = sample_conditions.for_judging(experiment, dataset, 3)
    assert labels.tolist() == [0, 1, 0] and read(cond)[1] == "number 1"
    subject, chosen = (
        subjects.of_model(trained, dataset, range(3), "captions"),
        sampling.method(experiment),
    )
    found = drawing.runner(subject, chosen.sampler, len(chosen.ts))(np.asarray(chosen.ts))[0]
    prompts = experiment.conditions.of_prompts(["number 0", "number 1", "number 2"])
    drawn = sampling.sample_with(experiment, trained.params, chosen)(keys, prompts)
    np.testing.assert_allclose(found, drawn, rtol=1e-4, atol=1e-4)
    assert np.abs(found[0] - found[1]).max() > 1e-2
    with pytest.raises(
        UserError, match="this model takes captions, and the data set folder has no captions"
    ):
        sample_conditions.for_judging(experiment, dataset._replace(captions=()), 3)


def distilled_at(scale, student):
    """The student with this config.distill.guidance."""
    return student._replace(sources=student.sources._replace(teacher_guidance=scale))


def test_a_teacher_of_captions_is_guided_at_the_scale_of_the_distillation():
    """Its own scale where config.distill.guidance is None; every other scale is another loss, 0 and
    1 among them.
    """
    teacher = guided_at(3.0)
    keys = jax.random.split(jax.random.key(3), 2)
    batch = {
        "image": jnp.full((2, 8, 8, 1), 0.3),
        "bytes": jnp.asarray(teacher.encoder.encode(["a 3", "a bold 4"])["bytes"]),
    }

    def loss(scale):
        student = guided_at(
            1.0, objective="consistency.distillation(solver=ancestral.ddim())", label_dropout=0.0
        )
        student = distilled_at(scale, student)._replace(teacher=(teacher, {}))
        now = step.Now(jnp.int32(0), {"target": {}, "teacher": {}})
        return student.kind.loss(student)({}, batch, keys, now)[0]

    own, *losses = jax.jit(lambda: [loss(scale) for scale in (None, 0.0, 1.0, 3.0, 8.0)])()
    np.testing.assert_allclose(own, losses[2], rtol=1e-6)
    for i, one in enumerate(losses):
        for other in losses[:i]:
            assert np.all(np.abs(one - other) > 1e-4 * np.abs(one))


def test_a_teacher_of_an_unconditional_student_has_no_condition_to_guide_by():
    """Its own guidance then changes nothing; a scale that is set is refused, before training."""
    objective = "consistency.distillation()"
    student = assemble(_labeled(), (8, 8, 1), 0)._replace(teacher=(guided_at(3.0), None))
    assert few_step.teacher_scale(student) is None
    with pytest.raises(UserError, match="config.distill.guidance=3: the student is unconditional"):
        few_step.teacher_scale(distilled_at(3.0, student))
    captioned = guided_at(1.0, objective=objective)._replace(
        teacher=(assemble(_labeled(), (8, 8, 1), 0), None)
    )
    with pytest.raises(UserError, match="config.distill.guidance=2: this model is unconditional"):
        few_step.teacher_scale(distilled_at(2.0, captioned))


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"name": "ncsnpp.NCSNpp"},
            "ncsnpp.NCSNpp reads no captions; use unet.UNet, dit.DiT or mm",
        ),
        ({"encoder": "byte"}, "unknown text encoder 'byte'; did you mean 'text.bytes'"),
        ({"max_length": 0}, "config.text.max_length=0"),
        ({"encoder": "minilm", "max_length": 600}, "minilm reads 3 to 512"),
        ({"encoder": "bytes(width=9)"}, "multiple of heads=4"),
    ],
)
def test_configs_that_do_not_fit(change, message):
    config = config_of()
    if "name" in change:
        config.model = network(change["name"])
    config.text.update({key: value for key, value in change.items() if key != "name"})
    with pytest.raises(UserError, match=message):
        assemble(config, (8, 8, 1), 10)
