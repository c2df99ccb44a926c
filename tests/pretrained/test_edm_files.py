"""The .pkl files of EDM and EDM2: read as data, imported, and refused where they are hostile."""

from __future__ import annotations

import gzip
import io
import re
import struct

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.assembly import components, workdir
from diffusion_jax.assembly.build import build
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.files import load_json
from diffusion_jax.denoisers import parameterization
from diffusion_jax.pretrained import diffusers_networks, edm_files, layouts, torchfile
from diffusion_jax.processes import gaussian
from diffusion_jax.studies.weights.import_weights import to_workdir
from tests.fixtures.seeded_weights import normal, weights
from tests.pretrained.conversions import FIXTURES
from tests.pretrained.test_extractors import Global, Pickler, Storage, pickled


def original(name: str) -> bytes:
    """A file as the authors' program wrote it, without the text of its code."""
    return gzip.decompress((FIXTURES / f"{name}.pkl.gz").read_bytes())


@pytest.mark.parametrize("source, model", [("edm", "ncsnpp.NCSNpp"), ("edm2", "edm2.EDM2UNet")])
def test_a_file_becomes_a_workdir_with_all_its_weights(source, model, tmp_path):
    (tmp_path / "network.pkl").write_bytes(original(source))
    root = to_workdir(source, tmp_path / "network.pkl", tmp_path / "run")
    config = workdir.saved_config(root)
    assert config.model.name == model and config.process == "schedules.EDM()"
    assert config.parameterization == "edm(sigma_data=0.5)" and config.label_dropout == 0
    assert config.data.num_classes == 3 and config.conditional
    assert (config.sampler.name, config.sampler.clip) == ("ode.edm_heun", "none")
    params = layouts.flat(workdir.load(root, config).params)
    # their names are not among ours, so each array is found by its numbers
    theirs = edm_files.load(original(source)).tensors
    shapes = {_whole_name(source, name): tensor.shape for name, tensor in theirs.items()}
    drawn = weights(shapes)
    assert sum(a.size for a in params.values()) == sum(a.size for a in drawn.values())
    found = sorted(float(np.sum(np.abs(a, dtype=np.float64))) for a in params.values())
    np.testing.assert_allclose(
        found, sorted(float(np.sum(np.abs(a, dtype=np.float64))) for a in drawn.values()), rtol=1e-6
    )
    assert load_json(root / "provenance.json")["imported"]["file"] == "network.pkl"


def _whole_name(source: str, name: str) -> str:
    prefix = "unet." if source == "edm2" else "model."
    return name if name.startswith("logvar") else prefix + name


@pytest.mark.parametrize("precond", ["VPPrecond", "VEPrecond", "iDDPMPrecond", "EDMPrecond"])
def test_preconditionings_denoise_as_their_program_does(precond):
    """D(x; sigma) of a network F = 0.3 x + c_noise / 10, at the same noise level."""
    with np.load(FIXTURES / "edm_networks.npz") as saved:
        expected, sigma = saved[f"denoised/{precond}"], saved[f"sigma/{precond}"]
    about = edm_files.PRECONDITIONS[precond]
    settings = edm_files._SETTINGS[precond](about)
    process = build(components.PROCESSES, settings["process"])
    target = build(components.PARAMETERIZATIONS, settings["parameterization"])
    build(components.OBJECTIVES, settings["objective"], process)
    sign = -1 if precond == "VEPrecond" else 1  # of its last layer

    def network(params, x, c_noise, cond):
        out = sign * (0.3 * x + c_noise[:, None, None, None] / 10)
        return jnp.tile(out, 2) if precond == "iDDPMPrecond" else out

    denoise = parameterization.denoiser(network, {}, target, process)
    t = gaussian.time_of_logsnr(process, -2 * jnp.log(sigma))
    x = normal("x", (3, 2, 8, 8)).transpose(0, 2, 3, 1)
    x0 = denoise(process.alpha(t)[:, None, None, None] * x, t).x0
    # of size 100, where c_noise is a number of steps
    np.testing.assert_allclose(x0, expected.transpose(0, 2, 3, 1), rtol=2e-5, atol=1e-3)


def test_the_latents_of_edm2_are_normalized_as_its_file_says():
    found = edm_files.load(original("edm2"))
    assert found.latents == {
        "latents_mean": [1.0, 2.0],
        "latents_std": [4.0, 8.0],
        "scaling_factor": 0.5,
    }
    # theirs: (z - raw_mean) final_std / raw_std
    shift, scale = diffusers_networks.shift_and_scale(found.latents, 2)
    assert (shift, scale) == ((1.0, 2.0), (8.0, 16.0))
    assert edm_files.load(original("edm")).latents == {}


def test_the_other_publisher_is_named(tmp_path):
    (tmp_path / "network.pkl").write_bytes(original("edm2"))
    with pytest.raises(UserError, match="holds a EDM2; --from=edm takes .*use --from=edm2"):
        to_workdir("edm", tmp_path / "network.pkl", tmp_path / "run")


# ---- files of our own, in their format
def written(value) -> bytes:
    stream = io.BytesIO()
    Pickler(stream, 4).dump(value)
    return stream.getvalue()


KINDS = {np.float32: "FloatStorage", np.float16: "HalfStorage"}


def legacy_storage(array: np.ndarray) -> bytes:
    """What torch.save writes of a storage in the older format."""
    kind = Global("torch", KINDS[array.dtype.type], None)
    whole = Storage(("storage", kind, "0", "cpu", array.size, None))
    parts = (torchfile.MAGIC, 1001, {"little_endian": True}, whole, ["0"])
    return b"".join(map(pickled, parts)) + struct.pack("<q", array.size) + array.tobytes()


def thing(name: str, state, source: str = "") -> Global:
    """A persistent object with the text of its program."""
    about = {"type": "class", "version": 6, "module_src": source, "class_name": name}
    module = ("torch_utils.persistence", "_reconstruct_persistent_obj")
    return Global(*module, (about | {"state": state},))


def tensor(array: np.ndarray) -> Global:
    stored = Global("torch.storage", "_load_from_bytes", (legacy_storage(array),))
    strides = tuple(step // array.itemsize for step in array.strides)
    rebuilt = ("torch._utils", "_rebuild_tensor_v2")
    return Global(*rebuilt, (stored, 0, array.shape, strides, False, {}))


def module(parameters=(), modules=(), **state) -> dict:
    return {"_parameters": dict(parameters), "_buffers": {}, "_modules": dict(modules)} | state


ARGUMENTS = {
    "img_resolution": 4,
    "img_channels": 1,
    "label_dim": 2,
    "model_type": "DhariwalUNet",
    "model_channels": 64,
    "channel_mult": [1],
    "num_blocks": 1,
    "attn_resolutions": [],
}


def network(tensors, precond="EDMPrecond", source="", **arguments) -> Global:
    """A file of these tensors, of which only the names matter to the reader."""

    def tree(names):
        own = {name: tensor(array) for name, array in names.items() if "." not in name}
        heads = dict.fromkeys(name.partition(".")[0] for name in names if "." in name)
        return module(own, {head: thing("Part", tree(below(names, head))) for head in heads})

    def below(names, head):
        found = {n.partition(".")[::2]: array for n, array in names.items()}
        return {rest: array for (first, rest), array in found.items() if first == head and rest}

    whole = {f"model.{name}": array for name, array in tensors.items()}
    about = {"_init_args": (), "_init_kwargs": ARGUMENTS | arguments}
    return thing(precond, tree(whole) | about, source)


TENSORS = {
    "enc.4x4_conv.weight": np.zeros((64, 1, 3, 3), np.float32),
    "enc.4x4_conv.bias": np.zeros(64, np.float16),
}


def read(tensors=TENSORS, **options):
    return edm_files.load(written({"ema": network(tensors, **options)}))


def test_files_of_our_own_are_read_as_theirs():
    found = read(label_dropout=0.25, use_fp16=True)
    assert found.name == "DhariwalUNet" and found.tensors.keys() == TENSORS.keys()
    assert found.settings["label_dropout"] == 0.25
    assert found.config["in_channels"] == 1 and "use_fp16" not in found.config


def test_the_text_of_the_program_is_not_executed(tmp_path):
    mark = tmp_path / "mark"
    source = f"import pathlib; pathlib.Path({str(mark)!r}).write_text('executed')"
    assert read(source=source).tensors.keys() == TENSORS.keys()
    assert not mark.exists()


def test_what_is_missing_is_named_and_no_workdir_is_made(tmp_path):
    (tmp_path / "network.pkl").write_bytes(written({"ema": network(TENSORS)}))
    with pytest.raises(UserError, match="missing: .*map_layer0.weight") as refused:
        to_workdir("edm", tmp_path / "network.pkl", tmp_path / "run")
    assert "\n" not in str(refused.value) and not (tmp_path / "run").exists()


ENDLESS: dict = module()
ENDLESS["_modules"]["again"] = thing("Part", ENDLESS)


def odd(**parts) -> Global:
    """A tensor of six numbers, of which something is wrong."""
    found = {"offset": 0, "shape": (6,), "stride": (1,), "stored": None} | parts
    stored = found["stored"] or Global(
        "torch.storage", "_load_from_bytes", (legacy_storage(np.zeros(6, np.float32)),)
    )
    rebuilt = ("torch._utils", "_rebuild_tensor_v2")
    args = (stored, found["offset"], found["shape"], found["stride"], False, {})
    return Global(*rebuilt, args)


def holding(value) -> Global:
    state = module({"w": value}, _init_args=(), _init_kwargs=ARGUMENTS)
    return thing("EDMPrecond", state)


LARGE = tensor(np.zeros(10_000, np.float32))
SHARES = module({f"{i}.aux_conv.weight": LARGE for i in range(100)})
LONG_LIST = [[[1] * 50] * 50] * 50

HOSTILE = {
    "a call of the system": ({"ema": Global("os", "system", ("true",))}, "names os.system"),
    "a call that is not used": (
        {"ema": network(TENSORS), "more": Global("builtins", "eval", ("1",))},
        "names builtins.eval",
    ),
    "a name of ours": (
        {"ema": Global("diffusion_jax.core.files", "load_json", ("x",))},
        "which no network of EDM needs",
    ),
    "a function of torch": ({"ema": Global("torch", "load", ("x",))}, "names torch.load"),
    "no network": ({"model": 1}, "has no 'ema'"),
    "a number": ({"ema": 1}, "not one of EDM's networks"),
    "another preconditioning": (
        {"ema": network(TENSORS, "EDMPrecnd")},
        "did you mean 'EDMPrecond'",
    ),
    "a module that holds itself": (
        {"ema": thing("EDMPrecond", ENDLESS | {"_init_args": (), "_init_kwargs": ARGUMENTS})},
        "refers to itself",
    ),
    "a call as a module": ({"ema": holding(1)}, "not a tensor"),
    "a tensor of text": ({"ema": holding(odd(stored="text"))}, "does not consist of a storage"),
    "a view of more than there is": ({"ema": holding(odd(shape=(7,)))}, "outside its storage"),
    "an endless view": ({"ema": holding(odd(shape=(2**40,), stride=(0,)))}, "outside its storage"),
    "a negative offset": ({"ema": holding(odd(offset=-1))}, "not a number of elements"),
    "a storage that is cut off": (
        {"ema": holding(odd(stored=Global("torch.storage", "_load_from_bytes", (b"\x80\x02",))))},
        "cannot be read",
    ),
    "an argument that is a call": (
        {"ema": network(TENSORS, model_channels=Global("torch", "Size", ((1,),)))},
        "not a number",
    ),
    "an argument of lists of the same lists": (
        {"ema": network(TENSORS, channel_mult=LONG_LIST)},
        "an argument of a constructor",
    ),
    "tensors that share their numbers": (
        {"ema": thing("VEPrecond", SHARES | {"_init_args": (), "_init_kwargs": ARGUMENTS})},
        "unpack to more than twice its size",
    ),
    "sigma_data of zero": ({"ema": network(TENSORS, sigma_data=0)}, "sigma_data is 0"),
    "a large label dropout": ({"ema": network(TENSORS, label_dropout=2)}, "label_dropout"),
}


@pytest.mark.parametrize("attack", HOSTILE)
def test_hostile_files_are_refused_in_one_line(attack):
    value, words = HOSTILE[attack]
    with pytest.raises(UserError, match=re.escape(words)) as refused:
        edm_files.load(written(value))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("size", [0, 10, 1000, 20_000])
def test_damaged_files_are_refused_in_one_line(size):
    with pytest.raises(UserError) as refused:
        edm_files.load(original("edm")[:size])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(model_channels=0), "model_channels"),
        (dict(num_blocks=10**9), "num_blocks"),
        (dict(channel_mult=[2]), "the first multiplier is 1"),
        (dict(channel_mult_emb=2), "channel_mult_emb=2; only 4 can be imported"),
        (dict(novel=1), "novel"),
        (dict(model_type="OtherUNet"), "OtherUNet"),
    ],
)
def test_arguments_that_no_network_here_has_are_refused_by_name(options, words, tmp_path):
    (tmp_path / "network.pkl").write_bytes(written({"ema": network(TENSORS, **options)}))
    with pytest.raises(UserError, match=re.escape(words)) as refused:
        to_workdir("edm", tmp_path / "network.pkl", tmp_path / "run")
    assert "\n" not in str(refused.value) and not (tmp_path / "run").exists()
