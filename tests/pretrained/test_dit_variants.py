"""SiT, LightningDiT and the DiT of diffusers: equal to the authors' programs, and imported."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from diffusion_jax.assembly import components, workdir
from diffusion_jax.assembly.build import build
from diffusion_jax.core import files
from diffusion_jax.core.errors import UserError
from diffusion_jax.denoisers import parameterization
from diffusion_jax.pretrained import dit_network, dit_variants, safetensors, torchfile
from diffusion_jax.studies.weights.export_weights import write_weights
from diffusion_jax.studies.weights.import_weights import described, to_workdir
from tests.fixtures.seeded_weights import normal, weights
from tests.pretrained.conversions import FIXTURES, converted
from tests.pretrained.test_extractors import Global
from tests.pretrained.torch_files import written

with np.load(FIXTURES / "transformers.npz") as saved:
    FOUND = {
        key: saved[key] if key.endswith("out") else json.loads(str(saved[key])) for key in saved
    }
CASES = [key.removesuffix("/out") for key in FOUND if key.endswith("/out")]
LABELS = np.array([0, 2, 3])
FIXED = ("pos_embed", "freqs_cos", "freqs_sin")


def shared(name: str) -> str:
    """The name by which the script draws a tensor."""
    rest = name.partition(".norm1.emb.")[2]
    return f"transformer_blocks.0.norm1.emb.{rest}" if rest else name


def tensors(case: str) -> dict[str, np.ndarray]:
    """The file of a case; the fixed tensors are left out, and so is the size of the images."""
    learned = {k: s for k, s in FOUND[f"{case}/shapes"].items() if not k.endswith(FIXED)}
    drawn = weights({shared(name): shape for name, shape in learned.items()})
    return {name: drawn[shared(name)] for name in learned}


def stored(case: str, folder, change=dict, **more):
    """A file of a case, with the config.json that it needs."""
    config = {"num_heads": 3, "input_size": 4}
    name = "model.safetensors"
    if case == "diffusers":
        config = {"_class_name": "DiTTransformer2DModel"} | FOUND["diffusers/config"]
        name = "diffusion_pytorch_model.safetensors"
    elif case == "lightningdit":
        config["use_rope"] = True  # its angles are fixed tensors
    safetensors.save(folder / name, change(tensors(case)))
    files.save_json(folder / "config.json", config | more)
    return folder / name


@pytest.mark.parametrize("case", CASES)
def test_outputs_equal_those_of_the_authors_program(case, tmp_path):
    source = case.partition("/")[0]
    module, params = converted(described(source, stored(case, tmp_path)))
    times = np.float32([0, 37, 999]) / 1000 if source == "diffusers" else np.float32([0, 0.3, 1])
    x = normal("x", (3, 2, 4, 4)).transpose(0, 2, 3, 1)
    found = jax.jit(lambda p: module.apply({"params": p}, x, times, {"label": LABELS}))(params)
    expected = FOUND[f"{case}/out"].transpose(0, 2, 3, 1)
    assert np.abs(expected).max() > 1 / 4
    sign = 1 if source == "diffusers" else -1  # its velocity goes to the data
    np.testing.assert_allclose(sign * found, expected, atol=1e-4)


def test_the_time_of_a_flow_is_one_at_the_data_there():
    """x_t = s x + (1 - s) eps, at which the network is given s and predicts x - eps."""
    settings = dit_variants.SIT.settings({})
    process = build(components.PROCESSES, settings["process"])
    target = build(components.PARAMETERIZATIONS, settings["parameterization"])
    build(components.OBJECTIVES, settings["objective"], process)
    x, eps, s = normal("x", (3, 2)), normal("eps", (3, 2)), np.float32([0.1, 0.5, 0.9])
    x_t = s[:, None] * x + (1 - s[:, None]) * eps

    def network(params, x_in, c_noise, cond):
        np.testing.assert_allclose(c_noise, s, rtol=1e-6)
        np.testing.assert_array_equal(x_in, x_t)
        return eps - x

    found = parameterization.denoiser(network, {}, target, process)(x_t, 1 - s)
    np.testing.assert_allclose(found.x0, x, atol=1e-5)


def test_the_averages_of_a_training_checkpoint_become_a_workdir(tmp_path):
    """Its flags are skipped, and its optimizer is not used."""
    own = tensors("sit")
    flags = Global("argparse", "Namespace", ())
    optimizer = {"state": {0: {"exp_avg": np.zeros(3, np.float32)}}, "param_groups": [{"lr": 1e-4}]}
    zeros = {name: np.zeros_like(tensor) for name, tensor in own.items()}
    content = {"model": zeros, "ema": own, "opt": optimizer, "args": flags}
    (tmp_path / "0400000.pt").write_bytes(written(content))
    files.save_json(tmp_path / "config.json", {"num_heads": 3, "input_size": 4})
    root = to_workdir("sit", tmp_path / "0400000.pt", tmp_path / "run")
    trained = workdir.load(root, workdir.saved_config(root))
    kernel = own["final_layer.linear.weight"].reshape(4, 2, 2, 24)[:, 0].reshape(8, 24)
    np.testing.assert_array_equal(trained.params["last"]["kernel"], -kernel.T)
    assert trained.experiment.process == build(components.PROCESSES, "schedules.RectifiedFlow()")
    with pytest.raises(UserError, match="names argparse.ArgumentParser, which is not a tensor"):
        torchfile.load(written(content | {"args": Global("argparse", "ArgumentParser", ())}))


def halved(tensors):
    """Without the outputs of the variance, which nobody uses."""
    wide = {
        name: t.reshape(4, 2, 2, *t.shape[1:])[:, 0]
        for name, t in tensors.items()
        if name in dit_variants.LAST
    }
    return tensors | {name: t.reshape(8, *t.shape[2:]) for name, t in wide.items()}


def test_sit_goes_back_to_the_same_bits(tmp_path):
    """Export is the inverse of import, whose result is not changed by both."""
    theirs = stored("sit", tmp_path, halved)
    first = to_workdir("sit", theirs, tmp_path / "first")
    config = workdir.saved_config(first)
    file = write_weights(config, first, "sit", tmp_path / "out")
    back, own = safetensors.load_file(file), safetensors.load_file(theirs)
    assert back.pop("pos_embed").shape == (1, 4, 24) and back.keys() == own.keys()
    assert all(back[name].tobytes() == own[name].tobytes() for name in own)
    second = to_workdir("sit", file, tmp_path / "second")
    trained, again = (workdir.load(root, workdir.saved_config(root)) for root in (first, second))
    jax.tree.map(np.testing.assert_array_equal, trained.params, again.params)


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("parameterization", "eps()", r"--config.parameterization='velocity\(.*time_scale=-1.0"),
        ("process", "schedules.Cosine()", r"--config.process='schedules.RectifiedFlow\(\)'"),
    ],
)
def test_sit_is_a_linear_flow(key, value, words, tmp_path):
    root = to_workdir("sit", stored("sit", tmp_path), tmp_path / "run")
    saved = files.load_json(root / "config.json")
    files.save_json(root / "config.json", saved | {key: value})
    with pytest.raises(UserError, match=words):
        write_weights(workdir.saved_config(root), root, "sit", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def drop(tensors, name):
    return {key: value for key, value in tensors.items() if key != name}


def with_(tensors, name, value):
    return tensors | {name: np.asarray(value, np.float32)}


LAST = "final_layer.linear.weight"
OLD = "transformer_blocks.0.attn1.key.weight"  # as to_k was named before 2023
OTHER = "transformer_blocks.1.norm1.emb.class_embedder.embedding_table.weight"


@pytest.mark.parametrize(
    "case, change, more, words",
    [
        ("sit", lambda t: drop(t, "blocks.1.attn.qkv.bias"), {}, "missing: blocks.1.attn.qkv.bias"),
        ("sit", lambda t: drop(t, "blocks.0.mlp.fc1.weight"), {}, "not those of a DiT"),
        ("sit", dict, {"path_type": "VP"}, "path_type"),
        ("sit", dict, {"prediction": "noise"}, "prediction"),
        ("lightningdit", dict, {"wo_shift": True}, "wo_shift=True; only False"),
        ("lightningdit", lambda t: drop(t, "blocks.1.mlp.w12.bias"), {}, "missing: .*mlp.w1.bias"),
        (
            "lightningdit",
            lambda t: with_(t, "blocks.1.norm1.weight", [1]),
            {},
            r"norm1.weight \[1\]",
        ),
        (
            "lightningdit",
            lambda t: with_(t, "feat_rope.freqs_cos", np.zeros((4, 8))),
            {},
            "freqs_cos .* is not the fixed",
        ),
        ("diffusers", lambda t: drop(t, "proj_out_1.bias"), {}, "missing: proj_out_1.bias"),
        ("diffusers", lambda t: with_(t, OTHER, np.zeros((4, 24))), {}, "not that of the first"),
        ("diffusers", lambda t: drop(t, "transformer_blocks.0.attn1.to_k.bias"), {}, "to_q.bias"),
        ("diffusers", dict, {"norm_type": "ada_norm"}, "norm_type=ada_norm; only"),
        ("diffusers", dict, {"num_layers": 0}, "num_layers"),
        ("diffusers", lambda t: with_(t, OLD, [0]), {}, "attn1.to_k.weight' is given twice"),
        ("diffusers", dict, {"num_layers": 65_536}, "num_layers"),
        ("sit", dict, {"depth": 65_536}, "depth"),
        ("sit", dict, {"config": []}, r"unknown config of config.json '\[\]'"),
        (
            "sit",
            lambda t: t | {LAST: t[LAST] > 0},
            {},
            "model.safetensors': its .* boolean negative",
        ),
        ("lightningdit", lambda t: with_(t, "blocks.0.mlp.w12.bias", 1), {}, "do not describe"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(case, change, more, words, tmp_path):
    file = stored(case, tmp_path / "theirs", change, **more)
    with pytest.raises(UserError, match=words) as refused:
        to_workdir(case, file, tmp_path / "run")
    assert "\n" not in str(refused.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize("width", [8, 20, 28, 44, 1024])
def test_the_hidden_units_of_a_file_are_those_of_its_network(width):
    """int(width mlp_ratio) and, with a gate, int(2 hidden / 3), also where these are odd."""
    for hidden in (1, 15, 61, 4 * width, 4 * width - 1):
        assert int(width * dit_network.ratio_of(hidden, width)) == hidden
        units = int(2 / 3 * hidden) or 1
        tensors = {
            "x_embedder.proj.weight": np.zeros((width, 4, 2, 2)),
            "blocks.0.mlp.w12.weight": np.zeros((2 * units, width)),
            "final_layer.linear.weight": np.zeros((32, width)),
            "y_embedder.embedding_table.weight": np.zeros((4, width)),
        }
        found = dit_variants.LIGHTNING.described(tensors)
        assert 2 * int(width * found["mlp_ratio"]) // 3 == units
