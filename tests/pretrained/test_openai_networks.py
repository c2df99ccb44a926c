"""The U-Nets of OpenAI: equal to the authors' programs, imported, and refused where they differ."""

from __future__ import annotations

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.assembly import components, workdir
from diffusion_jax.assembly.build import build
from diffusion_jax.core import files
from diffusion_jax.core.errors import UserError
from diffusion_jax.denoisers import parameterization
from diffusion_jax.inverse import dense
from diffusion_jax.pretrained import layouts, networks, openai_networks, published, safetensors
from diffusion_jax.processes import gaussian
from diffusion_jax.studies.weights.import_weights import SOURCES, described, to_workdir
from tests.fixtures.seeded_weights import normal, weights
from tests.models.networks import shapes
from tests.pretrained.conversions import FIXTURES, converted

with np.load(FIXTURES / "openai_networks.npz") as saved:
    OUT = {key: saved[key] for key in saved if not key.endswith(("cases", "shapes"))}
    SHAPES = {key: json.loads(str(saved[key])) for key in saved if key.endswith("shapes")}
    CASES = json.loads(str(saved["cases"]))

STEPS = np.float32([0.0, 37.5, 999.0])
LABELS = np.array([0, 2, 1])


def flags(case: str) -> dict:
    """What a config.json must say of a case: the tensors tell the rest."""
    keys = ("image_size", "num_heads", "num_head_channels", "use_new_attention_order")
    enlarges = {"small_size": 4} if case.endswith("upsampler") else {}
    return (
        {"image_size": 8} | enlarges | {key: CASES[case][key] for key in keys if key in CASES[case]}
    )


def stored(case: str, folder, **more):
    """A file of a case, with its config.json."""
    drawn = weights(SHAPES[f"{case}/shapes"])
    safetensors.save(folder / "model.safetensors", drawn)
    files.save_json(folder / "config.json", flags(case) | more)
    return folder / "model.safetensors"


@pytest.mark.parametrize("case", CASES)
def test_outputs_equal_those_of_the_authors_program(case, tmp_path):
    module, params = converted(described(case.partition("/")[0], stored(case, tmp_path)))
    x = normal("x", (3, 2, 8, 8)).transpose(0, 2, 3, 1)
    cond = {"label": LABELS}
    if case.endswith("upsampler"):
        small = normal("low_res", (3, 2, 4, 4)).transpose(0, 2, 3, 1)
        cond["concat"] = dense.lowres((8, 8, 2), factor=2, enlarged="bilinear").of_measured(small)
    run = jax.jit(lambda p: module.apply({"params": p}, x, STEPS / 1000, cond))
    expected = OUT[f"{case}/out"].transpose(0, 2, 3, 1)
    assert np.abs(expected).max() > 1 / 4
    np.testing.assert_allclose(run(params), expected, atol=1e-4)


@pytest.mark.parametrize("mode", ["edm", "consistency_training"])
def test_preconditionings_denoise_as_their_program_does(mode):
    """D(x; sigma) of a network F = 0.3 x + 250 log(sigma) / 1000."""
    config = openai_networks.CONSISTENCY.defaults | {"training_mode": mode}
    settings = openai_networks.CONSISTENCY.settings(config)
    process = build(components.PROCESSES, settings["process"])
    target = build(components.PARAMETERIZATIONS, settings["parameterization"])
    build(components.OBJECTIVES, settings["objective"], process)
    denoise = parameterization.denoiser(
        lambda params, x, c, cond: 0.3 * x + c[:, None, None, None], {}, target, process
    )
    t = gaussian.time_of_logsnr(process, -2 * jnp.log(jnp.float32([0.002, 0.7, 40.0])))
    found = denoise(normal("x", (3, 2, 8, 8)).transpose(0, 2, 3, 1), t).x0
    expected = OUT[f"denoised/{mode}"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rescaled", [False, True])
def test_the_chain_shows_its_network_the_steps(rescaled):
    """Step j of 4000 is t = (j + 1) / 4000; the network embeds j, or 1000 j / 4000."""
    chain = {"diffusion_steps": 4000, "noise_schedule": "cosine", "rescale_timesteps": rescaled}
    channels = {"in_channels": 3, "out_channels": 6}
    settings = openai_networks.GUIDED.settings(openai_networks.GUIDED.defaults | chain | channels)
    process = build(components.PROCESSES, settings["process"])
    target = build(components.PARAMETERIZATIONS, settings["parameterization"])
    assert settings["objective"] == "learned_variance.hybrid(steps=4000)"
    assert settings["sampler.name"] == "ancestral.ddpm(variance='learned')"
    steps = np.array([0, 1, 1234, 3999])
    x, c_noise = target.encode(process, jnp.ones(4), jnp.float32((steps + 1) / 4000))
    np.testing.assert_array_equal(x, 1)
    np.testing.assert_allclose(1000 * c_noise, steps / 4 if rescaled else steps, atol=1e-3)
    angles = (np.linspace(0, 1, 4001) + 0.008) / 1.008 * np.pi / 2
    bars = np.cos(angles) ** 2
    betas = np.minimum(1 - bars[1:] / bars[:-1], 0.999)
    np.testing.assert_allclose(process.betas, betas, rtol=1e-9)


def test_a_file_becomes_a_workdir_that_knows_its_training(tmp_path):
    file = stored("guided_diffusion", tmp_path / "theirs", noise_schedule="cosine")
    root = to_workdir("guided_diffusion", file.parent, tmp_path / "run")
    config = workdir.saved_config(root)
    assert config.process == "discrete.ddpm('cosine', 1000)" and config.conditional
    assert (config.model.heads, config.model.learn_variance) == (2, True)
    params = layouts.flat(workdir.load(root, config).params)
    drawn = weights(SHAPES["guided_diffusion/shapes"])
    np.testing.assert_array_equal(params["condition/label/rows"][:-1], drawn["label_emb.weight"])
    imported = files.load_json(root / "provenance.json")["imported"]
    assert imported["class"] == "guided_diffusion.UNetModel"


def test_an_upsampler_becomes_a_model_of_super_resolution(tmp_path):
    root = to_workdir(
        "guided_diffusion", stored("guided_diffusion/upsampler", tmp_path), tmp_path / "run"
    )
    config = workdir.saved_config(root)
    model = workdir.load(root, config).experiment
    assert config.data.dense == "lowres(factor=2, enlarged='bilinear')"
    assert model.dense.measured == (4, 4, 2) and model.shape == (8, 8, 2)
    assert model.model.extra_channels == 2 and config.model.learn_variance


@pytest.mark.parametrize(
    "case, more, words",
    [
        ("guided_diffusion/upsampler", {"small_size": 3}, "image_size=8 and small_size=3"),
        ("guided_diffusion/upsampler", {"small_size": 8}, "must be a multiple of the second"),
        ("consistency_models", {"small_size": 4}, "small_size"),
        ("guided_diffusion/options", {"in_channels": 5, "small_size": 4}, "enlarge no images"),
    ],
)
def test_sizes_of_an_upsampler_that_do_not_fit(case, more, words, tmp_path):
    file = stored(case, tmp_path, **more)
    with pytest.raises(UserError, match=words):
        to_workdir(case.partition("/")[0], file, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_released_files_need_no_config(tmp_path):
    """The flags are those of the authors' pages, by the name of the file."""
    for source, name, process, heads in (
        ("guided_diffusion", "64x64_diffusion.pt", "discrete.ddpm('cosine', 1000)", (0, 64)),
        ("guided_diffusion", "128x128_diffusion.pt", "discrete.ddpm('linear', 1000)", (4, None)),
        (
            "improved_diffusion",
            "cifar10_uncond_50M_500K.pt",
            "discrete.ddpm('cosine', 4000)",
            (4, None),
        ),
        (
            "consistency_models",
            "cd_imagenet64_l2.pt",
            "schedules.EDM(sigma_min=0.002, sigma_max=80.0)",
            (0, 64),
        ),
    ):
        (kind,) = SOURCES[source]
        network = networks.network(kind)
        theirs = {"in_channels": 3, "out_channels": 3, "model_channels": 128, "num_classes": 0}
        theirs |= {"channel_mult": [1, 2], "num_res_blocks": 2, "attention_resolutions": [2]}
        theirs |= {"use_scale_shift_norm": True, "resblock_updown": True}
        config = theirs | network.released[name]
        options, shape = published.read_config(network, config)
        assert network.settings(network.defaults | config)["process"] == process
        assert (options["heads"], options["head_width"]) == heads
        assert shape[0] == config["image_size"]


@pytest.mark.parametrize(
    "name, width, multipliers, blocks, factors, millions",
    [
        ("64x64_diffusion.pt", 192, [1, 2, 3, 4], 3, [2, 4, 8], 296),
        ("512x512_diffusion.pt", 256, [0.5, 1, 1, 2, 2, 4, 4], 2, [16, 32, 64], 559),
    ],
)
def test_adm_has_the_parameters_of_the_paper(name, width, multipliers, blocks, factors, millions):
    """Dhariwal & Nichol 2021, appendix I; our vector of the null class is not among theirs."""
    theirs = {"in_channels": 3, "out_channels": 6, "model_channels": width, "num_classes": 1000}
    theirs |= {"channel_mult": multipliers, "num_res_blocks": blocks}
    theirs |= {"attention_resolutions": factors, "use_scale_shift_norm": True}
    network = openai_networks.GUIDED
    config = theirs | {"resblock_updown": True} | network.released[name]
    options, shape = published.read_config(network, config)
    params, _ = shapes(build(components.MODELS, network.model, **options), (1, *shape))
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) - 4 * width
    assert round(count / 1e6) == millions


def drop(tensors, name):
    return {key: value for key, value in tensors.items() if key != name}


@pytest.mark.parametrize(
    "change, more, words",
    [
        (lambda t: drop(t, "out.0.bias"), {}, "missing: out.0.bias"),
        (lambda t: t | {"ema.decay": np.zeros(1, np.float32)}, {}, "left over: ema.decay"),
        (
            lambda t: t | {"middle_block.1.qkv.weight": np.zeros((7,), np.float32)},
            {},
            r"middle_block.1.qkv.weight \[7\] for \[192, 64\]",
        ),
        (lambda t: drop(t, "time_embed.0.weight"), {}, "not those of a U-Net of OpenAI"),
        (lambda t: t | {"time_embed.0.weight": np.zeros(3, np.float32)}, {}, "of dimensions"),
        (lambda t: t | {"out.2.weight": np.float32(np.nan * t["out.2.weight"])}, {}, "not finite"),
        (lambda t: t | {"out.2.weight": np.float32(0)}, {}, "of dimensions"),
        (
            lambda t: t | {"input_blocks.4.0.op.weight": np.zeros(1, np.float32)},
            {},
            "5 input_blocks, 4 output_blocks",
        ),
        (lambda t: t, {"image_size": 10**9}, "image_size"),
        (lambda t: t, {"noise_schedule": "sigmoid"}, "noise_schedule"),
        (lambda t: t, {"image_size": 1}, "attention at 1 / 2 of it, so it must be at least 2"),
        (lambda t: t, {"channel_mult": [0.001, 1]}, "channel_mult=.0.001, 1. cannot be imported"),
        (lambda t: t | {"middle_block.1.qkv.weight": np.float32(0)}, {}, "do not describe"),
        (lambda t: t, {"num_heads": 5}, "heads=5 does not divide"),
        (lambda t: t, {"num_head_channels": 0}, "num_head_channels"),
        (lambda t: t, {"num_heads_upsample": 2}, "num_heads_upsample"),
        (lambda t: t, {"novel": 1}, "novel"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change, more, words, tmp_path):
    file = stored("guided_diffusion", tmp_path / "theirs", **more)
    safetensors.save(file, change(weights(SHAPES["guided_diffusion/shapes"])))
    with pytest.raises(UserError, match=words) as refused:
        to_workdir("guided_diffusion", file, tmp_path / "run")
    assert "\n" not in str(refused.value) and not (tmp_path / "run").exists()


def test_a_file_without_flags_says_what_to_write(tmp_path):
    file = stored("improved_diffusion", tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match="do not determine image_size.*into a config.json"):
        described("improved_diffusion", file)
