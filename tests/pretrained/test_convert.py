"""Published weights: diffusers' programs on the same weights, the ways there and back, and what is
refused.
"""

from __future__ import annotations

import functools
import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy as library

from configs import base
from diffusion_jax import files
from diffusion_jax.assembly import components, conditions, denoiser, experiment, sampling, workdir
from diffusion_jax.assembly.build import build
from diffusion_jax.assembly.kinds import autoencoder_model, kind
from diffusion_jax.assembly.workdir import Trained
from diffusion_jax.errors import UserError
from diffusion_jax.evaluation import generate
from diffusion_jax.models import embeddings
from diffusion_jax.pretrained import chains, convert, safetensors
from diffusion_jax.processes import gaussian
from diffusion_jax.studies.export_weights import export_weights
from diffusion_jax.studies.import_weights import fitted, import_weights, run_config

FIXTURES = Path(__file__).parents[1] / "fixtures"
NAMES = {"unet": "UNet2DModel", "unet_default": "UNet2DModel", "autoencoder_kl": "AutoencoderKL"}
each = pytest.mark.parametrize("name", NAMES)


@functools.cache
def fixture(name: str) -> tuple[dict, dict, dict]:
    """(config.json, weights, inputs and outputs)."""
    with np.load(FIXTURES / f"{name}.npz") as saved:
        arrays = {key: value for key, value in saved.items() if key != "config"}
        weights = {key: value for key, value in arrays.items() if "." in key}
        return (
            json.loads(str(saved["config"])),
            weights,
            {key: arrays[key] for key in arrays.keys() - weights.keys()},
        )


def nhwc(images: np.ndarray) -> np.ndarray:
    return images.transpose(0, 2, 3, 1)


def published(name: str):
    """The experiment that a fixture becomes, and its parameters; no file is written."""
    config, weights, _ = fixture(name)
    network = convert.published(NAMES[name])
    options, shape = convert.read_config(network, config)
    config = run_config(network, options, shape, options.pop("num_classes"), {}, "folder")
    built = experiment.assemble(config, shape)
    return built, fitted(network, built, weights)


def folder_of(name: str, folder: Path) -> Path:
    """A folder as diffusers writes it."""
    config, weights, _ = fixture(name)
    safetensors.save(folder / "diffusion_pytorch_model.safetensors", weights)
    files.save_json(folder / "config.json", config)
    return folder


# ---- the networks
@pytest.mark.parametrize("name", ["unet", "unet_default"])
def test_diffusers_unet_on_converted_weights(name):
    """As a denoiser of the run: integer step j is t = (j + 1) / 1000 and the network is told j."""
    built, params = published(name)
    f = fixture(name)[2]
    denoise = jax.jit(lambda x, t: denoiser.denoiser(built, params, clip="none")(x, t))
    found = denoise(nhwc(f["x"]), jnp.float32((f["t"] + 1) / 1000))
    half = np.split(nhwc(f["out"]), 2, axis=-1) if found.nu is not None else [nhwc(f["out"])]
    assert np.abs(f["out"]).max() > 1 and (found.nu is not None) == (name == "unet_default")
    for ours, theirs in zip([found.eps, found.nu], half):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_diffusers_autoencoder_on_converted_weights():
    built, params = published("autoencoder_kl")
    f = fixture("autoencoder_kl")[2]

    @jax.jit
    def run(x, z):
        networks = autoencoder_model.networks(built, params)
        return networks.encode(x), networks.decode(z, None)[0]

    moments, image = run(nhwc(f["x"]), nhwc(f["z"]))
    np.testing.assert_allclose(np.concatenate(moments, axis=-1), nhwc(f["moments"]), atol=1e-4)
    np.testing.assert_allclose(image, nhwc(f["image"]), atol=1e-4)


# ---- there and back
@each
def test_tables_lose_nothing(name):
    """Their tensors -> ours -> theirs: the same names and the same numbers; and their config
    likewise.
    """
    config, weights, _ = fixture(name)
    network = convert.published(NAMES[name])
    built, params = published(name)
    ours = convert.flat(params[network.under] if network.under else params)
    shapes = {path: leaf.shape for path, leaf in ours.items()}
    options = built.config.model.to_dict() | {"num_classes": 0}
    back = convert.to_theirs(convert.table(network, options, shapes), ours)
    assert back.keys() == weights.keys()
    for key, tensor in weights.items():
        np.testing.assert_array_equal(back[key], tensor)
    described = convert.write_config(network, options, built.shape, shapes)
    assert described == {key: config[key] for key in described}
    assert config.keys() - described.keys() <= set(convert.LOOSE)


def test_import_export_import_is_bit_exact_and_samples(tmp_path):
    """A folder of diffusers' becomes a workdir, whose export is read back the same, and which is
    sampled like any other.
    """
    their_scheduler = {
        "num_train_timesteps": 500,
        "beta_end": 0.03,
        "prediction_type": "v_prediction",
        "clip_sample": False,
    }
    folder_of("unet", tmp_path / "pipeline" / "unet")
    files.save_json(tmp_path / "pipeline" / "scheduler" / "scheduler_config.json", their_scheduler)
    first = import_weights("diffusers", tmp_path / "pipeline", tmp_path / "first")
    config = workdir.saved_config(first)
    assert config.parameterization.startswith("v(") and "time_scale=0.5" in config.parameterization
    exported = export_weights(config, first, "diffusers", tmp_path / "out")
    second = import_weights("diffusers", exported, tmp_path / "second")
    trained, again = (workdir.load(root, workdir.saved_config(root)) for root in (first, second))
    assert (
        workdir.saved_config(second) == config
    )  # the process and what the network predicts have come along
    jax.tree.map(np.testing.assert_array_equal, trained.params, again.params)
    built = trained.experiment
    betas = np.linspace(1e-4, 0.03, 500)  # theirs
    np.testing.assert_allclose(built.process.betas, betas, rtol=1e-12)
    sampler = sampling.sample_with(built, trained.params, sampling.plan(built, nfe=2))
    images = generate.generate(
        sampler, generate.seeds_to_keys([0, 1]), None, batch_size=2, finish=np.asarray
    )
    assert (
        images.shape == (2, 16, 16, 3)
        and np.isfinite(images).all()
        and np.abs(images[0] - images[1]).max() > 0.1
    )
    assert files.load_json(first / "provenance.json")["imported"]["class"] == "UNet2DModel"
    with pytest.raises(UserError, match="holds a model already"):
        import_weights("diffusers", exported, first)


# ---- a run as a pipeline of diffusers
LEVELS = [  # process, parameterization; (what is predicted, F in it) and how its steps are spread
    ("schedules.VP()", "eps()", ("eps", 1.0), "logsnr"),
    ("schedules.EDM()", "eps()", ("eps", 1.0), "logsnr"),
    ("schedules.VP()", "edm(sigma_data=1.0)", ("v", -1.0), "logsnr"),
    ("schedules.Cosine()", "velocity()", ("v", np.pi / 2), "logsnr"),
    ("schedules.VP()", "x0(noise_input='time')", ("x0", 1.0), "time"),
    ("schedules.RectifiedFlow()", "eps(noise_input='time')", ("eps", 1.0), "time"),
]


@pytest.mark.parametrize(
    "process, pair, predicted, told", LEVELS, ids=[f"{p}-{q}" for p, q, *_ in LEVELS]
)
def test_a_chain_has_the_noise_that_its_network_is_told(process, pair, predicted, told):
    """Told log-SNRs: step j has -8 (j - shift) / 1000, closed form; told times: it has the
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
    if told == "logsnr":
        wanted = -8 * c_noise
    else:
        with jax.enable_x64(True):
            wanted = np.asarray(
                gaussian.logsnr(process, jnp.asarray(np.minimum(c_noise, process.t_max)))
            )
    low, high = (
        float(gaussian.logsnr(process, jnp.float32(t))) for t in (process.t_max, process.t_min)
    )
    inside = wanted >= low if told == "logsnr" else c_noise <= process.t_max + 1e-9
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
    turned = convert.with_steps({"condition/noise_1/kernel": kernel}, name, shift)[
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
    built = experiment.assemble(config, (4, 4, 1), 3)
    shapes, rng = (
        jax.eval_shape(lambda key: kind.init_params(built, key), jax.random.key(0)),
        np.random.default_rng(0),
    )
    return Trained(
        built,
        jax.tree.map(lambda leaf: np.float32(0.3 * rng.standard_normal(leaf.shape)), shapes),
        1,
        "params",
        {"class_names": ["cat", "dog", "fox"]},
    )


@pytest.fixture
def exported(monkeypatch, tmp_path):
    """(run, options) -> the folder that it is exported to."""

    def export(trained: Trained, **options) -> Path:
        monkeypatch.setattr(workdir, "load", lambda *args: trained)
        files.save_json(tmp_path / "run" / "provenance.json", {})
        export_weights(
            trained.experiment.config, tmp_path / "run", "diffusers", tmp_path / "out", **options
        )
        monkeypatch.undo()
        return tmp_path / "out"

    return export


def test_a_run_under_another_process_is_a_pipeline_of_its_class(exported, tmp_path):
    """VP, told log-SNRs, with a sign, classes and a variance that theirs does not have: read back,
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
    root = import_weights("diffusers", folder, tmp_path / "again")
    again = workdir.load(root, workdir.saved_config(root))
    j, x = (
        np.array([0, 700, 1500, 2390]),
        jnp.asarray(np.random.default_rng(1).standard_normal((4, 4, 4, 1)), jnp.float32),
    )
    theirs = denoiser.denoiser(again.experiment, again.params, clip="none")(
        x, jnp.float32((j + 1) / steps)
    )
    built, found = (
        trained.experiment,
        chains.chain(trained.experiment.process, trained.experiment.parameterization),
    )
    t = gaussian.time_of_logsnr(built.process, jnp.float32(-8 * (j - found.shift) / 1000))
    ours = denoiser.denoiser(built, trained.params, clip="none")(
        x, t, conditions.cond_for(built, [1] * 4)
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
    told = str(error.value)
    assert "\n" not in told and "config.model.noise_embedding=smooth; config.model.stem=2" in told
    assert (
        "config.parameterization=edm() under schedules.VP() (its input does not have unit variance"
        in told
    )
    assert told.endswith(
        "--config.model.noise_embedding=sinusoidal --config.model.stem=1 --config.parameterization='eps()'"
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


def test_stacked_blocks_come_apart():
    stacked = {"blocks/qkv/kernel": np.arange(12).reshape(2, 2, 3), "last/bias": np.arange(2)}
    apart = convert.unstacked(stacked)
    assert list(apart) == ["block_0/qkv/kernel", "block_1/qkv/kernel", "last/bias"]
    np.testing.assert_array_equal(apart["block_1/qkv/kernel"], [[6, 7, 8], [9, 10, 11]])
    np.testing.assert_array_equal(apart["last/bias"], [0, 1])


def test_dit_there_and_back(tmp_path):
    """All of the config but the heads is read off the tensors; the places of the patches are
    checked, and written.
    """
    with np.load(FIXTURES / "dit.npz") as saved:
        weights = {key: saved[key] for key in saved if "." in key}
    safetensors.save(tmp_path / "theirs" / "model.safetensors", weights)
    with pytest.raises(UserError, match="do not tell 'input_size'; write it into a config.json"):
        import_weights("dit", tmp_path / "theirs", tmp_path / "run")
    (tmp_path / "theirs" / "config.json").write_text('{"num_heads": 3, "input_size": 8}')
    root = import_weights("dit", tmp_path / "theirs", tmp_path / "run")
    config = workdir.saved_config(root)
    assert (
        config.model.patch,
        config.model.width,
        config.model.depth,
        config.model.learn_variance,
    ) == (2, 24, 2, True)
    assert files.load_json(root / "data.json")["num_classes"] == 5
    file = export_weights(config, root, "dit", tmp_path / "ours")
    back = safetensors.load(file.read_bytes())
    assert back.pop("pos_embed").shape == (1, 16, 24) and back.keys() == weights.keys()
    for key, tensor in weights.items():
        np.testing.assert_array_equal(back[key], tensor)
    safetensors.save(
        tmp_path / "theirs" / "model.safetensors",
        weights | {"pos_embed": np.zeros((1, 16, 24), np.float32)},
    )
    with pytest.raises(UserError, match="pos_embed .* is not the fixed"):
        import_weights("dit", tmp_path / "theirs", tmp_path / "other")


def test_a_network_of_latents_makes_images_by_its_autoencoder(tmp_path):
    """It is trained on scaling_factor (z - shift_factor) of the autoencoder's z, whose export says
    so again.
    """
    config, _, f = fixture("autoencoder_kl")
    theirs = folder_of("autoencoder_kl", tmp_path / "kl")
    files.save_json(theirs / "config.json", config | {"scaling_factor": 0.25, "shift_factor": 0.5})
    codec = str(import_weights("diffusers", theirs, tmp_path / "codec"))
    theirs = folder_of("unet", tmp_path / "unet")
    with pytest.raises(
        UserError,
        match=r"latents \(8, 8, 3\) of images \(16, 16, 3\), and the network is for \(16, 16, 3\)",
    ):
        import_weights("diffusers", theirs, tmp_path / "run", autoencoder=codec)
    files.save_json(theirs / "config.json", fixture("unet")[0] | {"sample_size": 8})
    root = import_weights("diffusers", theirs, tmp_path / "run", autoencoder=codec)
    latents = workdir.load(root, workdir.saved_config(root)).experiment.latents
    image = jax.jit(latents.decode)(latents.params, 0.25 * (nhwc(f["z"]) - 0.5))
    np.testing.assert_allclose(image, np.clip(nhwc(f["image"]), -1, 1), atol=1e-4)
    export_weights(workdir.saved_config(codec), codec, "diffusers", tmp_path / "out")
    told = files.load_json(tmp_path / "out" / "config.json")
    assert (told["scaling_factor"], told["shift_factor"]) == (0.25, 0.5)
    assert not (tmp_path / "out" / "scheduler_config.json").exists()
    with pytest.raises(UserError, match="trained here"):
        record = files.load_json(Path(codec) / "provenance.json")
        files.save_json(
            Path(codec) / "provenance.json",
            {key: record[key] for key in record if key != "imported"},
        )
        import_weights("diffusers", theirs, tmp_path / "other", autoencoder=codec)


# ---- configs
CIFAR10 = {  # google/ddpm-cifar10-32
    "_class_name": "UNet2DModel",
    "_diffusers_version": "0.0.4",
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": [128, 256, 256, 256],
    "center_input_sample": False,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 32,
    "time_embedding_type": "positional",
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}


def test_the_public_ddpm_is_ours():
    """Its config gives DDPM's CIFAR-10 network, whose number of parameters the paper has as 35.7
    million.
    """
    network = convert.published("UNet2DModel")
    options, shape = convert.read_config(network, CIFAR10)
    built = experiment.assemble(
        run_config(network, options, shape, options.pop("num_classes"), {}, "cifar10"), shape
    )
    params = jax.eval_shape(lambda key: kind.init_params(built, key), jax.random.key(0))
    assert (
        shape == (32, 32, 3)
        and options["attention"] == (16,)
        and options["multipliers"] == (1, 2, 2, 2)
    )
    assert round(sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(params)) / 1e5) == 357


@pytest.mark.parametrize(
    "change, words",
    [
        ({"num_class_embeds": 10}, "num_class_embeds=10; only None"),
        ({"center_input_sample": True}, "center_input_sample=True; only False"),
        (
            {"block_out_channels": [128, 192, 256, 256]},
            r"block_out_channels=\[128, 192, 256, 256\]; only \[128, 128",
        ),
        ({"up_block_types": ["UpBlock2D"] * 4}, "up_block_types=.*; only"),
        ({"out_channels": 4}, "out_channels=4; only 3"),
        ({"freq_shift": 0}, "freq_shift=0; only 1"),
        ({"flip_sin_to_cos": True}, "freq_shift=1; only 0"),
        ({"resnet_time_scale_shift": "scale_shift"}, "attn_norm_num_groups=None; only 32"),
        ({"sample_size": None}, "sample_size=None; write the side"),
        ({"gate": 1}, "gate=1; this is not known"),
    ],
)
def test_a_network_that_ours_cannot_be_is_refused(change, words):
    with pytest.raises(UserError, match=words):
        convert.read_config(convert.published("UNet2DModel"), CIFAR10 | change)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"stem": 2}, "config.model.stem=2; train one with --config.model.stem=1$"),
        (
            {"updown": "resblock", "skip_scale": 0.7},
            "updown=resblock; config.model.skip_scale=0.7; .*updown=conv --config.model.skip",
        ),
        (
            {"num_classes": 10},
            "config.conditional=True .10 classes.; train one with --config.conditional=False",
        ),
        (
            {"head_width": 48},
            "head_width=48 .attention sees 32 channels too.; train one with --config.model.head_width=32",
        ),
        ({"norm": None}, r"norm=None .it means 8 or 16 groups.*model.norm='\(8, 1e-06\)'"),
    ],
)
def test_a_network_that_theirs_cannot_be_is_refused(change, words):
    options = (
        base.network("unet.UNet", norm=(8, 1e-6), width=32, multipliers=(1, 2)).to_dict()
        | {"num_classes": 0}
        | change
    )
    shapes = {"down_0_0/norm_1/scale": (32,), "down_1_0/norm_1/scale": (64,)}
    with pytest.raises(UserError, match=words):
        convert.write_config(convert.published("UNet2DModel"), options, (16, 16, 3), shapes)


@pytest.mark.parametrize(
    "scheduler, words",
    [
        ({"beta_schedule": "sqrt"}, "beta_schedule .*'sqrt'"),
        ({"prediction_type": "flow"}, "prediction_type .*'flow'"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
    ],
)
def test_a_scheduler_that_is_not_ours_is_refused(scheduler, words):
    with pytest.raises(UserError, match=words):
        convert.read_scheduler(scheduler)


# ---- tensors and files
def test_all_tensors_that_do_not_fit_are_named():
    network, weights = convert.published("UNet2DModel"), fixture("unet")[1]
    built, _ = published("unet")
    wrong = {
        key: value
        for key, value in weights.items()
        if key not in ("conv_in.bias", "conv_out.weight")
    }
    wrong |= {"conv_in.weight": np.zeros((8, 4, 3, 3)), "class_embedding.weight": np.zeros((2, 2))}
    with pytest.raises(UserError) as error:
        fitted(network, built, wrong)
    told = str(error.value)
    assert "\n" not in told and told.endswith(
        "missing: conv_in.bias, conv_out.weight; left over: class_embedding.weight; "
        "of another shape: conv_in.weight [8, 4, 3, 3] for [8, 3, 3, 3]"
    )


def test_the_older_names_of_attention_are_read():
    names = [
        "mid_block.attentions.0.query.weight",
        "mid_block.attentions.0.proj_attn.bias",
        "encoder.conv_in.bias",
    ]
    assert [convert.modern(name) for name in names] == [
        "mid_block.attentions.0.to_q.weight",
        "mid_block.attentions.0.to_out.0.bias",
        "encoder.conv_in.bias",
    ]


class Malicious:
    """A pickle of it, read by pickle itself, makes a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_runs_nothing_and_is_refused_by_name(tmp_path, zipped):
    trap = pickle.dumps({"conv_in.weight": Malicious(tmp_path / "executed")}, protocol=2)
    data = io.BytesIO()
    if zipped:
        with zipfile.ZipFile(data, "w") as archive:
            archive.writestr("archive/data.pkl", trap)
    files.save_json(tmp_path / "theirs" / "config.json", fixture("unet")[0])
    (tmp_path / "theirs" / "diffusion_pytorch_model.bin").write_bytes(data.getvalue() or trap)
    with pytest.raises(UserError, match="asks for (posix|nt).mkdir, which is no tensor"):
        import_weights("diffusers", tmp_path / "theirs", tmp_path / "run")
    assert not (tmp_path / "executed").exists() and not (tmp_path / "run").exists()
    pickle.loads(trap)  # the control: elsewhere it does run
    assert (tmp_path / "executed").exists()


def test_safetensors_of_the_library_are_read_and_ours_by_it(tmp_path):
    tensors = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b.c": np.float16([1.5]),
        "empty": np.zeros((0, 2), np.int64),
        "scalar": np.array(3, np.uint8),
    }
    safetensors.save(tmp_path / "ours", tensors)
    for found in (
        library.load((tmp_path / "ours").read_bytes()),
        safetensors.load(library.save(tensors)),
    ):
        assert found.keys() == tensors.keys()
        for key, value in tensors.items():
            assert found[key].dtype == value.dtype
            np.testing.assert_array_equal(found[key], value)


def header(entry: dict) -> bytes:
    text = json.dumps({"a": entry}).encode()
    return len(text).to_bytes(8, "little") + text + bytes(8)


@pytest.mark.parametrize(
    "data, words",
    [
        (b"", "a header of 0 bytes"),
        (b"\x80\x02" * 8, "not a safetensors file"),
        (
            header({"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}),
            "info.data_offsets mismatch|not fully covered|invalid",
        ),
        (header({"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}), "not a safetensors file"),
        (header({"dtype": "F32", "shape": [-2], "data_offsets": [8, 0]}), "not a safetensors file"),
        (header({"dtype": "X9", "shape": [2], "data_offsets": [0, 8]}), "unknown variant `X9`"),
    ],
)
def test_damaged_safetensors_are_refused(data, words):
    with pytest.raises(UserError, match=words):
        safetensors.load(data)


@pytest.mark.parametrize(
    "files, words",
    [
        ({}, "has no weights: neither diffusion_pytorch_model.safetensors"),
        ({"model.safetensors": ""}, "cannot read .*config.json"),
        (
            {"model.safetensors": "", "config.json": '{"_class_name": "VQModel"}'},
            "_class_name=VQModel; --from=diffusers takes",
        ),
    ],
)
def test_a_folder_without_a_network_is_refused(tmp_path, files, words):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=words):
        import_weights("diffusers", tmp_path, tmp_path / "run")
