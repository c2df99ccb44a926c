"""Stable Diffusion 3: the same numbers as diffusers' pipeline on a tiny model."""

from __future__ import annotations

import atexit
import functools
import gzip
import json
import shutil
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.assembly import components, denoiser, sampling, workdir
from diffusion_jax.assembly.build import build
from diffusion_jax.core.errors import UserError
from diffusion_jax.models import positions, text
from diffusion_jax.pretrained import networks, published, safetensors, sd3_encoder
from diffusion_jax.samplers import base
from diffusion_jax.studies.weights import import_sd3
from tests.fixtures.seeded_weights import weights

pytest.importorskip("tokenizers")

FIXTURES = Path(__file__).parents[1] / "fixtures"
ABOUT = json.loads(gzip.decompress((FIXTURES / "sd3.json.gz").read_bytes()))
PLACES = "pos_embed.pos_embed"
TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"


@functools.cache
def outputs():
    """What diffusers made; images and latents are (B, H, W, C) here."""
    with np.load(FIXTURES / "sd3.npz") as saved:
        own = {key.removeprefix("sd3/"): saved[key] for key in saved}
    return {key: a.transpose(0, 2, 3, 1) if a.ndim == 4 else a for key, a in own.items()}


def folder_of(folder, t5=True):
    """The folder of the pipeline, with or without T5; the embedding of positions is theirs."""
    for place, content in ABOUT["sd3"]["files"].items():
        if t5 or "_3/" not in place:
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            (folder / place).write_text(content)
    for place, shapes in ABOUT["sd3"]["tensors"].items():
        if not t5 and "_3/" in place:
            continue
        part = f"sd3/{place.partition('/')[0]}"
        drawn = weights({f"{part}/{key}": shape for key, shape in shapes.items()})
        tensors = {key.removeprefix(f"{part}/"): value for key, value in drawn.items()}
        if PLACES in tensors:
            grid = positions.grid_places((6, 6)) * (4 / 6)
            tensors[PLACES] = np.asarray(positions.embed_places(grid, 16))[None]
        safetensors.save(folder / place, tensors)
    return folder


@functools.cache
def loaded():
    root = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    import_sd3.stable_diffusion_3(folder_of(root / "theirs"), root / "run")
    return workdir.load(root / "run")


def parts():
    return sd3_encoder.read(Path(loaded().experiment.record["text"]["folder"]))


def test_tokens_of_t5_are_those_of_transformers():
    np.testing.assert_array_equal(parts().t5.tokenizer.ids(ABOUT["prompts"], 32), outputs()["ids"])
    cut = parts().t5.tokenizer.ids(["a cat and a dog"], 4)[0]
    assert cut.tolist() == [*outputs()["ids"][0][:2], cut[2], 1]  # the end stays


def test_text_is_encoded_as_in_diffusers():
    """CLIP's states, filled up to the width of T5's, which follow; both pooled vectors."""
    conditions, expected = loaded().experiment.conditions, outputs()
    found, null = conditions.of_prompts(ABOUT["asked"]), conditions.null(2)
    assert found["tokens"].shape == (2, 16 + 256, 24)
    for own, states, pooled in ((found, "states", "pooled"), (null, "empty", "empty_pooled")):
        np.testing.assert_allclose(own["tokens"][:, ABOUT["rows"]], expected[states], atol=1e-4)
        np.testing.assert_allclose(own["pooled"], expected[pooled], atol=1e-5)


def test_network_six_steps_and_the_image_are_those_of_diffusers():
    trained, expected = loaded(), outputs()
    experiment = trained.experiment
    assert (experiment.sampling.nfe, experiment.sampling.guidance) == (28, 7.0)
    cond = experiment.conditions.of_prompts(ABOUT["asked"])
    chosen = sampling.method(experiment, experiment.sampling._replace(nfe=6))
    np.testing.assert_allclose(chosen.ts, expected["sigmas"], atol=5e-7)

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

    x, t, start = expected["x"], jnp.float32(expected["t"] / 1000), expected["start"]
    out, found, image = run(denoiser.ensemble(experiment, trained.params), cond, x, t, start)
    np.testing.assert_allclose(out.eps - out.x0, expected["out"], atol=1e-4)
    np.testing.assert_allclose(found, expected["latents"], atol=1e-4)
    np.testing.assert_allclose((image + 1) / 2, expected["image"], atol=1e-4)


def test_without_t5_zeros_are_in_the_place_of_its_states(tmp_path):
    root = import_sd3.stable_diffusion_3(folder_of(tmp_path / "theirs", t5=False), tmp_path / "run")
    encoder = sd3_encoder.sd3(16, width=24, pooled=13, folder=str(root / "text"))
    found, expected = encoder.encode(ABOUT["asked"]), outputs()["states"]
    assert found["tokens"].shape == (2, 272, 24) and not found["tokens"][:, 16:].any()
    np.testing.assert_allclose(found["tokens"][:, :16], expected[:, :16], atol=1e-4)
    assert not encoder.null()["tokens"][16:].any() and encoder.null()["tokens"][:16].any()


@pytest.mark.long
@pytest.mark.parametrize("name", ABOUT["published"])
def test_the_published_transformer_has_as_many_parameters(name):
    about = ABOUT["published"][name]
    network = networks.network("SD3Transformer2DModel")
    options, shape = published.read_config(network, about["config"])
    module = build(components.MODELS, network.model, **options, text=text.GivenStates())
    cond = {
        "tokens": jax.ShapeDtypeStruct((1, 333, 4096), jnp.float32),
        "pooled": jax.ShapeDtypeStruct((1, 2048), jnp.float32),
    }
    x, c = jax.ShapeDtypeStruct((1, *shape), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.float32)
    params = jax.eval_shape(module.init, jax.random.key(0), x, c, cond)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == about["parameters"]


# ---- folders that are incomplete or hostile
def edited(folder, name, **changes):
    config = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(config | changes))


def spoiled(folder, name, **tensors):
    safetensors.save(folder / name, safetensors.load_file(folder / name) | tensors)


CONFIG, T5 = "transformer/config.json", "text_encoder_3/model.safetensors"
SPOILED = {
    "other pipeline": (
        lambda f: edited(f, "model_index.json", _class_name="StableDiffusionPipeline"),
        "_class_name=StableDiffusionPipeline; --from=sd3 takes StableDiffusion3Pipeline",
    ),
    "no scheduler": (lambda f: shutil.rmtree(f / "scheduler"), "no scheduler/scheduler_config"),
    "dynamic shift": (
        lambda f: edited(f, "scheduler/scheduler_config.json", use_dynamic_shifting=True),
        "use_dynamic_shifting",
    ),
    "other network": (lambda f: edited(f, CONFIG, _class_name="Flux"), "_class_name=Flux; it must"),
    "hostile sizes": (lambda f: edited(f, CONFIG, num_layers=10**9), "config.json is damaged: num"),
    "unknown option": (
        lambda f: edited(f, CONFIG, parallel=True),
        "parallel=True; this key is unk",
    ),
    "other width": (lambda f: edited(f, CONFIG, caption_projection_dim=8), "only 16 can be impor"),
    "learned places": (
        lambda f: spoiled(f, TRANSFORMER, **{PLACES: np.ones((1, 36, 16), np.float32)}),
        "is not the fixed embedding of positions",
    ),
    "cut places": (
        lambda f: spoiled(f, TRANSFORMER, **{PLACES: np.ones((1, 35), np.float32)}),
        "pos_embed.pos_embed has the shape",
    ),
    "one tensor more": (
        lambda f: spoiled(f, TRANSFORMER, zz=np.ones(1, np.float32)),
        "left over: zz",
    ),
    "no weights": (lambda f: (f / TRANSFORMER).unlink(), "transformer' has no weights: none of"),
    "one CLIP": (lambda f: shutil.rmtree(f / "text_encoder_2"), "the 1 text encoders of CLIP make"),
    "other states": (lambda f: edited(f, CONFIG, joint_attention_dim=32), "T5 states of 24, and"),
    "other activation": (
        lambda f: edited(f, "text_encoder_3/config.json", feed_forward_proj="relu"),
        "feed_forward_proj",
    ),
    "hostile buckets": (
        lambda f: edited(f, "text_encoder_3/config.json", relative_attention_num_buckets=128),
        "too small for 128 buckets",
    ),
    "fewer layers": (
        lambda f: edited(f, "text_encoder_3/config.json", num_layers=1),
        r"text_encoder_3': the tensors are not those .* left over: encoder.block.1",
    ),
    "cut weights": (
        lambda f: (f / T5).write_bytes(b"\1\0\0\0\0\0\0\0{"),
        "not a safetensors file",
    ),
    "no tokenizer": (
        lambda f: shutil.rmtree(f / "tokenizer_3"),
        "tokenizer_3' has no tokenizer.js",
    ),
    "hostile tokenizer": (
        lambda f: (f / "tokenizer_3/tokenizer.json").write_text('{"version": 1}'),
        "has no tokenizer that can be read",
    ),
    "a tokenizer of CLIP": (
        lambda f: (f / "tokenizer_3/tokenizer.json").write_text(
            (f / "tokenizer_3/tokenizer.json").read_text().replace("</s>", "<e>")
        ),
        "is no tokenizer of T5",
    ),
}


@pytest.mark.parametrize("how", SPOILED)
def test_a_spoiled_folder_gives_one_line_and_no_workdir(how, tmp_path):
    folder = folder_of(tmp_path / "theirs")
    spoil, said = SPOILED[how]
    spoil(folder)
    with pytest.raises(UserError, match=said) as error:
        import_sd3.stable_diffusion_3(folder, tmp_path / "run")
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


# ---- weights in several files
def split(folder, **changes):
    """The weights of T5 in two files and their index."""
    tensors = safetensors.load_file(folder / T5)
    (folder / T5).unlink()
    where = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(tensors)}
    for file in set(where.values()):
        own = {name: tensor for name, tensor in tensors.items() if where[name] == file}
        safetensors.save(folder / "text_encoder_3" / file, own)
    index = folder / f"{T5}.index.json"
    index.write_text(json.dumps({"weight_map": where | changes}))
    return folder


def test_weights_in_several_files_are_one_network(tmp_path):
    found = sd3_encoder.read(split(folder_of(tmp_path))).t5.params
    wanted = parts().t5.params
    assert jax.tree.all(jax.tree.map(np.array_equal, found, wanted))


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"shared.weight": "../model.safetensors"}, "lists the file ../model.safetensors, which"),
        ({"shared.weight": "part-7.safetensors"}, "lists the file part-7.safetensors, which"),
        ({"more.weight": "part-0.safetensors"}, "have no tensor more.weight"),
        ({"shared.weight": 3}, "is damaged"),
    ],
)
def test_an_index_of_other_files_is_refused(changes, said, tmp_path):
    with pytest.raises(UserError, match=said):
        sd3_encoder.read(split(folder_of(tmp_path), **changes))
