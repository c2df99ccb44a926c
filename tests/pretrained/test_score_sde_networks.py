"""NCSN++ and DDPM++ of score_sde: equal to the authors' programs, from files of torch and flax."""

from __future__ import annotations

import json
import re

import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
from flax import serialization, traverse_util

from diffusion_jax.assembly import components, workdir
from diffusion_jax.assembly.build import build
from diffusion_jax.core import files
from diffusion_jax.core.errors import UserError
from diffusion_jax.denoisers import parameterization
from diffusion_jax.pretrained import flaxfile, networks, published
from diffusion_jax.studies.weights.import_weights import described, to_workdir
from tests.fixtures.seeded_weights import normal, weights
from tests.pretrained.conversions import FIXTURES, converted
from tests.pretrained.torch_files import written

with np.load(FIXTURES / "score_sde_networks.npz") as saved:
    FOUND = {
        key: saved[key] if saved[key].dtype.kind == "f" else json.loads(str(saved[key]))
        for key in saved
    }
CASES = ("ve", "vp", "subvp", "table", "skip")
TIMES = np.float32([0.01, 0.5, 0.9])
RANDOM = re.compile(r"all_modules\.0\.W")  # frequencies, which are not averaged


def state(case: str, **more) -> dict:
    """A checkpoint as the torch program writes it, whose weights are zeros but for the averages."""
    drawn = weights(FOUND[f"{case}/shapes"])
    model = {
        f"module.{k}": a if RANDOM.fullmatch(k) else np.zeros_like(a) for k, a in drawn.items()
    }
    shadows = [a for name, a in drawn.items() if not RANDOM.fullmatch(name)]
    optimizer = {"state": {0: {"step": 3, "exp_avg": np.zeros(2, np.float32)}}, "param_groups": []}
    model["module.sigmas"] = np.ones(5, np.float32)
    ema = {"decay": 0.999, "num_updates": 3, "shadow_params": shadows}
    return {"optimizer": optimizer, "model": model, "ema": ema, "step": 3} | more


def stored(case: str, folder, content: bytes | None = None, **more):
    folder.mkdir(exist_ok=True)
    (folder / "checkpoint_8.pth").write_bytes(content or written(state(case)))
    files.save_json(folder / "config.json", FOUND[f"{case}/config"] | more)
    return folder / "checkpoint_8.pth"


@pytest.mark.parametrize("case", CASES)
def test_scores_equal_those_of_the_authors_program(case, tmp_path):
    """score = -eps / sigma at the times of their SDE; images of VE are in [0, 1] there."""
    found = described("score_sde", stored(case, tmp_path))
    module, params = converted(found)
    process = build(components.PROCESSES, found.settings["process"])
    target = build(components.PARAMETERIZATIONS, found.settings["parameterization"])
    build(components.OBJECTIVES, found.settings["objective"], process)
    ve = FOUND[f"{case}/config"].get("sde", "vesde") == "vesde"
    theirs = normal("x", (3, 2, 8, 8)).transpose(0, 2, 3, 1)
    x, times = (2 * theirs - 1 if ve else theirs), TIMES
    if case == "table":  # of 1000 steps, of which they take number 999 t, rounded down
        times = np.float32((np.int32(999 * TIMES) + 1) / 1000)

    def apply(params, x, c_noise, cond):
        # (theirs embeds 999 t, which is not rounded)
        c_noise = 999 * TIMES if case == "table" else c_noise
        return module.apply({"params": params}, x, c_noise)

    denoise = parameterization.denoiser(apply, params, target, process)
    eps = jax.jit(denoise)(x, times).eps
    sigma = (process.sigma(jnp.asarray(times)) / (2 if ve else 1))[:, None, None, None]
    expected = FOUND[f"{case}/score"].transpose(0, 2, 3, 1)
    assert np.abs(sigma * expected).max() > 1 / 4
    np.testing.assert_allclose(eps, -sigma * expected, atol=1e-4)


def flax_state(**more) -> bytes:
    drawn = weights(FOUND["ve/flax"])
    params = traverse_util.unflatten_dict(drawn, sep=".")
    zeros = jax.tree.map(np.zeros_like, params)
    whole = {"step": np.int32(8), "optimizer": {"target": zeros, "state": {"step": 1}}, "lr": 2e-4}
    whole |= {"model_state": {}, "ema_rate": 0.999, "params_ema": params} | more
    return serialization.msgpack_serialize(whole | {"rng": np.zeros(2, np.uint32)})


def test_a_file_of_flax_equals_the_authors_program(tmp_path):
    module, params = converted(described("score_sde", stored("ve", tmp_path, flax_state())))
    sigma = np.float32([0.02, 0.5, 9.0])
    x = 2 * normal("x", (3, 2, 8, 8)).transpose(0, 2, 3, 1) - 1
    found = jax.jit(lambda p: module.apply({"params": p}, x, jnp.log(sigma)))(params)
    expected = sigma[:, None, None, None] * FOUND["ve/flax/out"]
    assert np.abs(expected).max() > 1 / 4
    np.testing.assert_allclose(-found, expected, atol=1e-4)


def test_a_checkpoint_becomes_a_workdir(tmp_path):
    root = to_workdir("score_sde", stored("vp", tmp_path / "theirs"), tmp_path / "run")
    config = workdir.saved_config(root)
    assert config.process == "schedules.VP(beta_min=0.1, beta_max=20.0)"
    own = weights(FOUND["vp/shapes"])["all_modules.2.weight"]
    kernel = workdir.load(root, config).params["first"]["kernel"]
    np.testing.assert_array_equal(kernel, own.transpose(2, 3, 1, 0))


def test_the_configs_of_the_authors_are_known_by_name(tmp_path):
    network = networks.network("NCSNpp")
    for name in network.released:
        published.read_config(network, network.released[name])
        network.settings(network.defaults | network.released[name])
    file = tmp_path / "ve" / "bedroom_ncsnpp_continuous" / "checkpoint_127.pth"
    by_folder = published.known_config(network, {}, file)
    by_key = published.known_config(network, {"config": "ve/bedroom_ncsnpp_continuous"}, tmp_path)
    assert by_folder["sigma_max"] == by_key["sigma_max"] == 378
    assert published.known_config(network, {}, tmp_path / "a.pth") == {}
    with pytest.raises(UserError, match="did you mean 've/church_ncsnpp_continuous'"):
        published.known_config(network, {"config": "ve/church_ncsnp_continuous"}, tmp_path)


def without(path: str) -> bytes:
    content = state("ve")
    first, name = path.split("/")
    del content[first][name]
    return written(content)


def array(shape, name, numbers, code=1) -> bytes:
    content = msgpack.packb((shape, name, numbers), use_bin_type=True)
    return msgpack.packb({"params_ema": {"a": msgpack.ExtType(code, content)}})


DEEP = b"\x81\xa1a" * 3000 + b"\xc0"
WIDE = msgpack.packb({"a": [[[0] * 90_000] * 5] * 5})
ATTACKS = {
    "an extension of another code": (array((1,), "float32", b"1234", 2), "extension of the code 2"),
    "an array of objects": (array((1,), "object", b"12345678"), "not that of numbers"),
    "a shape that is larger than its bytes": (array((2**40,), "float32", b"1234"), "with 4 bytes"),
    "a negative shape": (array((-1, -1), "float32", b"1234"), "not that of numbers"),
    "a shape of floats": (array((1.0,), "float32", b"1234"), "not that of numbers"),
    "truth values of other bytes": (array((1,), "bool", b"\x02"), "other bytes than 0 and 1"),
    "an array that is no array": (
        msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb([1]))}),
        "without shape, type and numbers",
    ),
    "more values than any file": (WIDE, "more than 1000000 values"),
    "maps three thousand deep": (DEEP, "cannot be|can be read"),
    "a key twice": (b"\x82\xa1a\x01\xa1a\x02", "given twice"),
    "a number as a key": (b"\x81\x01\x01", "can be read"),
    "a file that is cut off": (flax_state()[:5000], "can be read"),
    "more after the end": (flax_state() + b"\x01", "can be read"),
    "nothing after the first byte": (b"\x85", "can be read"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_hostile_files_of_flax_are_refused_in_one_line(attack):
    data, words = ATTACKS[attack]
    assert flaxfile.is_flax(data)
    with pytest.raises(UserError, match=words) as refused:
        flaxfile.load(data)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "content, more, words",
    [
        (without("model/module.all_modules.1.bias"), {}, "averages of .* weights"),
        (flax_state(params_ema={"Dense_0": {"kernel": np.zeros((2, 2))}}), {}, "missing: "),
        (None, {"nf": 16}, "of another shape"),
        (None, {"sde": "edm"}, "sde"),
        (None, {"continuous": False}, "continuous=True"),
        (None, {"sigma_max": 0.001}, "not below"),
        (None, {"fir": False}, "fir=False"),
        (None, {"novel": 1}, "novel"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(content, more, words, tmp_path):
    file = stored("ve", tmp_path / "theirs", content, **more)
    with pytest.raises(UserError, match=words) as refused:
        to_workdir("score_sde", file, tmp_path / "run")
    assert "\n" not in str(refused.value) and not (tmp_path / "run").exists()
