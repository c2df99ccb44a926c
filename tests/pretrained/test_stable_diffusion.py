"""Stable Diffusion 1, 2 and XL: the same numbers as diffusers' pipelines on tiny models."""

from __future__ import annotations

import hashlib
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.assembly import components, conditions, denoiser, sampling
from diffusion_jax.assembly.build import build
from diffusion_jax.core.errors import UserError
from diffusion_jax.models import sd_unet, text
from diffusion_jax.pretrained import (
    clip_encoder,
    conditional_unet,
    layouts,
    networks,
    published,
    safetensors,
)
from diffusion_jax.samplers import base
from diffusion_jax.studies.weights import import_pipeline
from tests.pretrained.stable_diffusion import ABOUT, NAMES, folder_of, loaded, outputs, workdir_of

pytest.importorskip("tokenizers")


@pytest.mark.parametrize("name", NAMES)
def test_tokens_are_those_of_transformers(name):
    parts = clip_encoder.read(workdir_of(name) / "text")
    ids, _ = parts[-1].tokenizer.ids(ABOUT["prompts"], 16)
    np.testing.assert_array_equal(ids, outputs(name)["ids"])


@pytest.mark.parametrize("name", NAMES)
def test_text_is_encoded_as_in_diffusers(name):
    experiment = loaded(name).experiment
    expected, found = outputs(name), experiment.conditions.of_prompts(ABOUT["asked"])
    np.testing.assert_allclose(found["tokens"], expected["states"], atol=1e-5)
    if name == "sdxl":
        np.testing.assert_allclose(found["pooled"], expected["pooled"], atol=1e-5)
        assert found["sizes"].tolist() == [[16, 16, 0, 0, 16, 16]] * 2
    if name == "sd2":
        experiment = negative(experiment)
    null = experiment.conditions.null(2)
    np.testing.assert_allclose(null["tokens"], expected["empty"], atol=1e-5)


def negative(experiment):
    away = conditions.against(experiment.conditions, ABOUT["negative"])
    return experiment._replace(conditions=away)


@pytest.mark.parametrize(
    "name", ["sd1", *(pytest.param(name, marks=pytest.mark.long) for name in NAMES[1:])]
)
def test_network_ten_steps_of_ddim_and_the_image_are_those_of_diffusers(name):
    """With guidance, and in sd2 away from a negative prompt. Theirs ends with set_alpha_to_one."""
    trained, expected = loaded(name), outputs(name)
    experiment = negative(trained.experiment) if name == "sd2" else trained.experiment
    cond = experiment.conditions.of_prompts(ABOUT["asked"])
    chosen = sampling.method(experiment, experiment.sampling._replace(nfe=10))
    assert np.round(np.asarray(chosen.ts) * 1000 - 1).tolist() == list(range(901, 0, -100))

    @jax.jit
    def run(ensemble, cond, x, t, start):
        bound, own = denoiser.unpack(experiment, ensemble)
        out = denoiser.denoiser(bound, own, clip="none")(x, t, cond)
        guided = denoiser.denoiser(bound, own, scale=jnp.float32(4), clip=chosen.clip)
        keys = jax.random.split(jax.random.key(0), 2)
        found = base.sample(
            chosen.sampler, guided, experiment.process, keys, start, chosen.ts, cond
        ).x0
        return out, found, sampling.decoded(bound, found)

    x, t, start = expected["x"], jnp.float32((expected["t"] + 1) / 1000), expected["start"]
    out, found, image = run(denoiser.ensemble(experiment, trained.params), cond, x, t, start)
    if name == "sd2":  # v = alpha eps - sigma x0
        t = t[:, None, None, None]
        process = experiment.process
        velocity = process.alpha(t) * out.eps - process.sigma(t) * out.x0
        np.testing.assert_allclose(velocity, expected["out"], atol=1e-4)
    else:
        np.testing.assert_allclose(out.eps, expected["out"], atol=1e-4)
    scale = {"sdxl": 0.13025}.get(name, 0.18215)  # of the latents there; ours decoder undoes it
    size = np.abs(expected["latents"]).max()
    np.testing.assert_allclose(found, expected["latents"], atol=1e-4 * max(1, scale * size))
    np.testing.assert_allclose((image + 1) / 2, expected["image"], atol=1e-4)


@pytest.mark.parametrize(
    "name", ["sd1", *(pytest.param(name, marks=pytest.mark.long) for name in NAMES[1:])]
)
def test_the_published_network_has_its_tensors(name):
    """Names, shapes and number of the parameters of the real U-Net, of which no weights exist."""
    about = ABOUT[name]["published"]
    config, sizes = conditional_unet.split(about["config"])
    network = networks.network("UNet2DConditionModel")
    options, shape = published.read_config(network, config)
    module = build(components.MODELS, network.model, **options, text=text.GivenStates())
    cond = {
        "tokens": jax.ShapeDtypeStruct((1, 77, sizes.states), jnp.float32),
        "pooled": jax.ShapeDtypeStruct((1, sizes.pooled), jnp.float32),
        "sizes": jax.ShapeDtypeStruct((1, 6), jnp.float32),
    }
    x, c = jax.ShapeDtypeStruct((1, *shape), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.float32)
    params = jax.eval_shape(module.init, jax.random.key(0), x, c, cond)["params"]
    wanted = {path: leaf.shape for path, leaf in layouts.flat(params).items()}
    blank = {path: np.broadcast_to(np.int8(0), size) for path, size in wanted.items()}
    theirs = layouts.to_theirs(layouts.table(network, options, wanted), blank)
    lines = "\n".join(f"{key} {list(theirs[key].shape)}" for key in sorted(theirs))
    assert sum(a.size for a in theirs.values()) == about["parameters"]
    assert hashlib.sha256(lines.encode()).hexdigest() == about["sha256"]


# ---- folders that are incomplete or hostile
def edited(folder, name, **changes):
    config = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(config | changes))


VAE = "vae/diffusion_pytorch_model.safetensors"
SPOILED = {
    "no index": (lambda f: (f / "model_index.json").unlink(), "has no model_index.json"),
    "other pipeline": (
        lambda f: edited(f, "model_index.json", _class_name="FluxPipeline"),
        "_class_name=FluxPipeline; --from=stable_diffusion takes StableDiffusionPipeline or",
    ),
    "no scheduler": (lambda f: shutil.rmtree(f / "scheduler"), "no scheduler/scheduler_config"),
    "zero SNR": (
        lambda f: edited(f, "scheduler/scheduler_config.json", rescale_betas_zero_snr=True),
        "rescale_betas_zero_snr=True",
    ),
    "inpainting": (
        lambda f: edited(f, "unet/config.json", in_channels=9),
        "in_channels=9 and out_channels=4; a U-Net that receives a second image",
    ),
    "class labels": (
        lambda f: edited(f, "unet/config.json", num_class_embeds=1000),
        "unet/config.json has num_class_embeds=1000; only None can be imported",
    ),
    "hostile sizes": (
        lambda f: edited(f, "unet/config.json", block_out_channels=[8, "16"]),
        "unet/config.json is damaged: block_out_channels",
    ),
    "no weights": (
        lambda f: (f / "unet/diffusion_pytorch_model.safetensors").unlink(),
        "unet' has no weights: none of diffusion_pytorch_model.safetensors, ",
    ),
    "other width": (
        lambda f: edited(f, "unet/config.json", cross_attention_dim=16),
        "make states of 12 numbers and a pooled vector of 0, and its U-Net receives 16 and 0",
    ),
    "cut weights": (
        lambda f: (f / "text_encoder/model.safetensors").write_bytes(b"\1\0\0\0\0\0\0\0{"),
        "not a safetensors file",
    ),
    "fewer layers": (
        lambda f: edited(f, "text_encoder/config.json", num_hidden_layers=1),
        r"text_encoder': the tensors are not those .* left over: encoder.layers.1",
    ),
    "T5": (
        lambda f: edited(f, "text_encoder/config.json", model_type="t5"),
        "model_type",
    ),
    "a tensor by two names": (
        lambda f: safetensors.save(
            f / "text_encoder/model.safetensors", dict.fromkeys(("a", "text_model.a"), np.ones(1))
        ),
        "text_encoder': .* 'a' is given twice",
    ),
    "a projection without axes": (
        lambda f: safetensors.save(
            f / "text_encoder/model.safetensors", {"text_projection.weight": np.ones(())}
        ),
        "text_encoder': the tensors are not those",
    ),
    "no tokenizer": (
        lambda f: (f / "tokenizer/vocab.json").unlink(),
        "has neither tokenizer.json nor vocab.json and merges.txt",
    ),
    "hostile vocabulary": (
        lambda f: (f / "tokenizer/vocab.json").write_text('{"a": -1}'),
        "vocab.json' is damaged",
    ),
    "hostile tokenizer": (
        lambda f: (f / "tokenizer/tokenizer.json").write_text('{"version": 1}'),
        "has no tokenizer that can be read",
    ),
    "another autoencoder": (
        lambda f: safetensors.save(f / VAE, {"zz": np.ones(1)} | safetensors.load_file(f / VAE)),
        "the tensors are not those .* left over: zz",
    ),
    "no autoencoder": (lambda f: shutil.rmtree(f / "vae"), "has no vae/config.json"),
}


@pytest.mark.parametrize("how", SPOILED)
def test_a_spoiled_folder_gives_one_line_and_no_workdir(how, tmp_path):
    folder = folder_of("sd1", tmp_path / "theirs")
    spoil, said = SPOILED[how]
    spoil(folder)
    with pytest.raises(UserError, match=said) as error:
        import_pipeline.stable_diffusion(folder, tmp_path / "run")
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_the_network_needs_captions_and_their_sizes():
    x = jnp.zeros((1, 4, 4, 4))
    tiny = {"width": 8, "multipliers": (1,), "depth": (0,), "heads": (1,), "norm": (4, 1e-5)}
    for options, said in (
        ({}, "set config.text.encoder"),
        ({"text": text.GivenStates()}, "the condition has none"),
        ({"text": text.GivenStates(), "sizes": 4}, "needs the sizes of images"),
        ({"text": text.GivenStates(), "depth": (1, 1)}, "one number for each level"),
    ):
        with pytest.raises(UserError, match=said):
            sd_unet.SDUNet(**tiny | options).init(jax.random.key(0), x, jnp.zeros(1), {})
