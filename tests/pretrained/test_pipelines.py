"""A run of ours as a pipeline of diffusers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from diffusion_jax.assembly import components, denoiser, workdir
from diffusion_jax.assembly.build import build
from diffusion_jax.assembly.experiment import assemble
from diffusion_jax.assembly.workdir import Trained
from diffusion_jax.core import files
from diffusion_jax.core.errors import UserError
from diffusion_jax.models import embeddings
from diffusion_jax.pretrained import (
    chains,
    equivalent,
)
from diffusion_jax.processes import gaussian
from diffusion_jax.studies.weights.import_weights import to_workdir

LEVELS = [  # process, parameterization; (what is predicted, F in it) and how its steps are spread
    ("schedules.VP()", "eps()", ("eps", 1.0), "logsnr"),
    ("schedules.EDM()", "eps()", ("eps", 1.0), "logsnr"),
    ("schedules.VP()", "edm(sigma_data=1.0)", ("v", -1.0), "logsnr"),
    ("schedules.Cosine()", "velocity()", ("v", np.pi / 2), "logsnr"),
    ("schedules.VP()", "x0(noise_input='time')", ("x0", 1.0), "time"),
    ("schedules.RectifiedFlow()", "eps(noise_input='time')", ("eps", 1.0), "time"),
]


@pytest.mark.parametrize(
    "process, pair, predicted, condition", LEVELS, ids=[f"{p}-{q}" for p, q, *_ in LEVELS]
)
def test_a_chain_has_the_noise_that_its_network_is_given(process, pair, predicted, condition):
    """Conditioned on log-SNRs: step j has -8 (j - shift) / 1000, closed form; on times: it has the
    process's own at (j - shift) / 1000.
    """
    process, pair = build(components.PROCESSES, process), build(components.PARAMETERIZATIONS, pair)
    found = chains.chain(process, pair)
    assert (found.prediction, round(found.factor, 6)) == (
        predicted[0],
        round(predicted[1], 6),
    ) and len(found.betas) % 50 == 0
    assert np.all((found.betas > 0) & (found.betas < 1))
    log_alpha_bar, j = np.cumsum(np.log1p(-found.betas)), np.arange(len(found.betas))
    logsnr = log_alpha_bar - np.log(-np.expm1(log_alpha_bar))
    c_noise = (j - found.shift) / 1000
    if condition == "logsnr":
        wanted = -8 * c_noise
    else:
        with jax.enable_x64(True):
            wanted = np.asarray(
                gaussian.logsnr(process, jnp.asarray(np.minimum(c_noise, process.t_max)))
            )
    low, high = (
        float(gaussian.logsnr(process, jnp.float32(t))) for t in (process.t_max, process.t_min)
    )
    inside = wanted >= low if condition == "logsnr" else c_noise <= process.t_max + 1e-9
    np.testing.assert_allclose(logsnr[inside], wanted[inside], atol=1e-5)
    assert (~inside).sum() <= 5 and abs(logsnr[0] - high) < 0.02 and np.exp(logsnr[-1] / 2) < 0.03
    assert all(
        len(np.arange(len(j), 0, -len(j) / n)) == n for n in (10, 20, 50, 100, 1000)
    )  # as the schedulers divide it


@pytest.mark.parametrize(
    "process, pair, words",
    [
        ("schedules.VP()", "edm()", "unit variance for data of standard deviation 1"),
        ("schedules.EDM()", "eps(input_scale=False)", "unit variance"),
        ("schedules.RectifiedFlow()", "velocity()", "neither eps nor v nor x0"),
        (
            "schedules.VP()",
            "eps(noise_input='time', time_scale=0.01)",
            "100 to 10000 ascending integers",
        ),
    ],
)
def test_a_network_that_no_chain_serves_says_why(process, pair, words):
    with pytest.raises(UserError, match=words):
        chains.chain(
            build(components.PROCESSES, process), build(components.PARAMETERIZATIONS, pair)
        )


@pytest.mark.parametrize("name", ["sinusoidal", "adm"])
def test_a_shift_of_the_steps_is_a_change_of_the_first_kernel(name):
    j, shift, rng = np.arange(0, 2400, 7), 1139.43, np.random.default_rng(0)
    kernel = rng.standard_normal((16, 5)).astype(np.float32)
    turned = equivalent.with_steps({"condition/noise_1/kernel": kernel}, name, shift)[
        "condition/noise_1/kernel"
    ]
    features = embeddings.NOISE_FEATURES[name]
    ours = features(jnp.float32((j - shift) / 1000), 16) @ kernel
    np.testing.assert_allclose(features(jnp.float32(j / 1000), 16) @ turned, ours, atol=2e-3)
    assert np.abs(turned - kernel).max() > 0.5


def trained_as(**changes) -> Trained:
    """A run of three classes with random weights, in a network that diffusers has but for its
    classes.
    """
    config = base.base()
    options = {
        "multipliers": (1,),
        "blocks": 1,
        "attention": (),
        "width": 8,
        "norm": (2, 1e-6),
        "learn_variance": True,
    }
    config.model = base.network("unet.UNet", **options | changes.pop("model", {}))
    config.update({"parameterization": "edm(sigma_data=1.0)"} | changes)
    experiment = assemble(config, (4, 4, 1), 3)
    shapes, rng = (
        jax.eval_shape(lambda key: experiment.kind.init(experiment, key), jax.random.key(0)),
        np.random.default_rng(0),
    )
    return Trained(
        experiment,
        jax.tree.map(lambda leaf: np.float32(0.3 * rng.standard_normal(leaf.shape)), shapes),
        1,
        "params",
        {"class_names": ["cat", "dog", "fox"]},
    )


def test_a_run_of_another_process_is_a_pipeline_of_its_class(exported, tmp_path):
    """VP, conditioned on log-SNRs, with a sign, classes and a variance of our own: read back,
    it is the same denoiser.
    """
    trained = trained_as()
    folder = exported(trained, label="dog")
    index, config, scheduler = (
        files.load_json(folder / name)
        for name in ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json")
    )
    assert index["_class_name"] == "DDIMPipeline" and index["unet"] == ["diffusers", "UNet2DModel"]
    assert (
        index["scheduler"]
        == ["diffusers", scheduler["_class_name"]]
        == ["diffusers", "DDPMScheduler"]
    )
    assert (config["out_channels"], config["num_class_embeds"], config["attention_head_dim"]) == (
        1,
        None,
        None,
    )
    assert (config["resnet_time_scale_shift"], config["attn_norm_num_groups"]) == ("scale_shift", 2)
    steps = scheduler["num_train_timesteps"]
    assert (
        steps == len(scheduler["trained_betas"]) == 2400
        and scheduler["prediction_type"] == "v_prediction"
    )
    assert (
        scheduler["clip_sample"]
        and not scheduler["thresholding"]
        and scheduler["timestep_spacing"] == "trailing"
    )
    root = to_workdir("diffusers", folder, tmp_path / "again")
    again = workdir.load(root, workdir.saved_config(root))
    j, x = (
        np.array([0, 700, 1500, 2390]),
        jnp.asarray(np.random.default_rng(1).standard_normal((4, 4, 4, 1)), jnp.float32),
    )
    theirs = jax.jit(denoiser.denoiser(again.experiment, again.params, clip="none"))(
        x, jnp.float32((j + 1) / steps)
    )
    experiment, found = (
        trained.experiment,
        chains.chain(trained.experiment.process, trained.experiment.parameterization),
    )
    t = gaussian.time_of_logsnr(experiment.process, jnp.float32(-8 * (j - found.shift) / 1000))
    ours = jax.jit(denoiser.denoiser(experiment, trained.params, clip="none"))(
        x, t, experiment.conditions.of_labels([1] * 4)
    )
    np.testing.assert_allclose(theirs.x0, ours.x0, atol=5e-3)
    np.testing.assert_allclose(theirs.eps, ours.eps, atol=5e-3)
    assert np.abs(ours.x0).max() > 0.5 and theirs.nu is None and ours.nu is not None


def test_what_of_a_pipeline_is_chosen(exported, capsys):
    """A learned variance for DDPMPipeline, Imagen's thresholding, a network alone; and what is said
    of them.
    """
    trained = trained_as(sampler={"guidance": 3.0, "clip": "dynamic"})
    folder = exported(trained, label="any", variance=True)
    assert "guidance=3 is not exported" in (said := capsys.readouterr().err)
    assert "2400 steps: num_inference_steps that divide them are 10, 20, 25, 50, 100, ..." in said
    scheduler = files.load_json(folder / "scheduler" / "scheduler_config.json")
    assert (scheduler["variance_type"], scheduler["thresholding"]) == ("learned_range", True)
    assert files.load_json(folder / "model_index.json")["_class_name"] == "DDPMPipeline"
    assert files.load_json(folder / "unet" / "config.json")["out_channels"] == 2
    flat = exported(trained_as(parameterization="edm()"), label="any", network_only=True)
    assert files.load_json(flat / "config.json")["out_channels"] == 2


def test_what_no_pipeline_can_be_names_the_overrides_of_one_that_can(exported, tmp_path):
    wrong = trained_as(model={"stem": 2, "noise_embedding": "smooth"}, parameterization="edm()")
    with pytest.raises(UserError) as error:
        exported(wrong, label="0")
    message = str(error.value)
    assert (
        "\n" not in message
        and "config.model.noise_embedding=smooth; config.model.stem=2" in message
    )
    assert (
        "config.parameterization=edm() under schedules.VP() (its input does not have unit variance"
        in message
    )
    assert message.endswith(
        "--config.model.noise_embedding=sinusoidal --config.model.stem=1 "
        "--config.parameterization='eps()'"
    )
    with pytest.raises(UserError, match="or export the network alone with --network_only"):
        exported(trained_as(parameterization="score()"), label="0")
    labels = {
        "": "--label=0 to 2, or the model without a class with --label=any",
        "4": "--label=4: the pipelines",
        "0,1": "--label=0,1: the pipelines",
        "owl": "unknown --label 'owl'",
    }
    for label, words in labels.items():
        with pytest.raises(UserError, match=words):
            exported(trained_as(), label=label)
    with pytest.raises(UserError, match="--label=1: this model is unconditional"):
        exported(trained_as(conditional=False), label="1")
    with pytest.raises(UserError, match="trains a few-step model"):
        exported(trained_as(objective="consistency.training()"), label="1")
    assert not (tmp_path / "out").exists()
