"""The network that the shape of the data chooses."""

from __future__ import annotations

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import arrays, arrays_few_step, base
from diffusion_jax.assembly import by_shape, config_files
from diffusion_jax.assembly.build import build
from diffusion_jax.assembly.components import MODELS
from diffusion_jax.core.errors import UserError
from tests.data.test_sound import tone, write


@pytest.mark.parametrize(
    "shape, name, work",
    [
        ((3,), "mlp.MLP", None),
        ((64, 2), "unet.UNet", (64,)),
        ((8000, 1), "unet.UNet", (1000,)),
        ((12, 20, 3), "unet.UNet", (12, 20)),
        ((128, 96, 4), "unet.UNet", (32, 24)),
        ((7, 7, 1), "dit.DiT", None),
        ((8, 8, 8, 1), "unet.UNet", (8, 8, 8)),
        ((101, 1), "dit.DiT", None),
    ],
)
def test_a_network_that_fits_is_chosen_for_every_shape(shape, name, work):
    """It takes the shape and returns it; a stem leaves at most 1024 pixels to work on."""
    found = by_shape.network(shape)
    assert found.name == name
    options = found.to_dict()
    module = build(MODELS, options.pop("name"), num_classes=0, **options)
    x = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    c = jax.ShapeDtypeStruct((2,), jnp.float32)
    out, _ = jax.eval_shape(lambda *a: module.init_with_output(jax.random.key(0), *a), x, c)
    assert out.shape == x.shape
    if work:
        assert tuple(size // found.stem for size in shape[:-1]) == work and np.prod(work) <= 1024


def test_overrides_find_an_explicit_config(tmp_path):
    """Options of the chosen network, another network by name, and the settings of unit variance."""
    np.save(tmp_path / "a.npy", np.zeros((4, 8, 1), np.float32))
    path = ("data.path", str(tmp_path / "a.npy"))
    config = arrays.get_config("edm").lock()
    config_files.apply(config, [("model.width", "8"), path])
    assert (config.model.name, config.model.width, config.sampler.clip) == ("unet.UNet", 8, "none")
    assert config.objective == "denoising.edm(sigma_data=1.0)"
    config = arrays.get_config("ve").lock()
    config_files.apply(config, [path, ("model.name", "DiT"), ("data.normalization", "range")])
    assert (config.model.name, config.sampler.clip) == ("dit.DiT", "static")
    with pytest.raises(UserError, match=r"config.model.name=mlp.MLP: samples \(8, 1\) need unet"):
        config_files.apply(arrays.get_config().lock(), [path, ("model.name", "MLP")])


def test_few_step_models_keep_their_options_and_have_unit_variance(tmp_path):
    """In every component that takes the standard deviation of the data."""
    np.save(tmp_path / "a.npy", np.zeros((4, 8, 1), np.float32))
    path = ("data.path", str(tmp_path / "a.npy"))
    for name, wanted in {
        "sct": ("edm(sigma_data=1.0)", "consistency.continuous(sigma_data=1.0)"),
        "ct": ("consistency(sigma_data=1.0)", "consistency.training(s1=40)"),
        "meanflow": ("velocity(noise_input='time')", "meanflow.meanflow()"),
    }.items():
        config = arrays_few_step.get_config(name).lock()
        config_files.apply(config, [path])
        assert (config.parameterization, config.objective) == wanted
        assert config.sampler.grid == "few_step(sigma_data=1.0)"
        assert config.model.name == "unet.UNet" and config.model.noise_embedding == "smooth"
        assert config.model.second_time == (name == "meanflow")
    config = arrays_few_step.get_config("ct").lock()
    config_files.apply(config, [path, ("data.normalization", "range")])
    assert config.parameterization == "consistency()" and config.sampler.clip == "static"


def test_what_chooses_no_network_is_one_line(tmp_path):
    with pytest.raises(UserError, match="config.data.path is missing"):
        config_files.apply(arrays.get_config().lock(), [])
    with pytest.raises(UserError, match="does not exist; name an .npz file"):
        config_files.apply(arrays.get_config().lock(), [("data.path", str(tmp_path / "b.npz"))])
    with pytest.raises(UserError, match="2401.*crop or pad them to multiples of 8"):
        by_shape.network((2401, 1))


def test_every_variant_is_known():
    """Those of base, each with a network by the shape."""
    for name in base.VARIANTS:
        assert importlib.import_module("configs.arrays").get_config(name).model.name == "auto"


def test_tables_and_sounds_choose_a_network_as_arrays_do(tmp_path):
    """By the columns that are no label, and by the headers of the files."""
    (tmp_path / "a.csv").write_text("a,b,kind\n" + "".join(f"{i},{i % 3},x\n" for i in range(20)))
    path = ("data.path", str(tmp_path / "a.csv"))
    changes = [("model.width", "8"), path, ("data.name", "table"), ("data.label", "kind")]
    config = arrays.get_config().lock()
    config_files.apply(config, [*changes, ("data.categories", "b")])
    assert (config.model.name, config.model.width, config.data.label) == ("mlp.MLP", 8, "kind")
    assert by_shape._described(config.data)[0] == (4,)
    for index in range(4):
        write(tmp_path / "sounds" / f"{index}.wav", tone(500, 480))
    changes = [("data.name", "sound"), ("data.path", str(tmp_path / "sounds"))]
    config = arrays.get_config("edm").lock()
    config_files.apply(config, changes)
    assert by_shape._described(config.data) == ((480, 1), np.int16)
    assert config.model.name == "unet.UNet" and config.sampler.clip == "none"
    config = arrays.get_config("edm").lock()
    config_files.apply(config, [*changes, ("data.sound", "logmel(mels=8, window=64, hop=32)")])
    assert by_shape._described(config.data) == ((16, 8, 1), np.float32)
