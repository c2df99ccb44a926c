"""Published networks as ours and back: outputs, tensors and configs."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.assembly import denoiser, sampling, workdir
from diffusion_jax.assembly.kinds import autoencoder
from diffusion_jax.core import files
from diffusion_jax.core.errors import UserError
from diffusion_jax.evaluation import generate
from diffusion_jax.pretrained import (
    layouts,
    networks,
    published,
    safetensors,
)
from diffusion_jax.studies.weights.export_weights import write_weights
from diffusion_jax.studies.weights.import_weights import to_workdir
from tests.pretrained.conversions import FIXTURES, NAMES, assembled, fixture

each = pytest.mark.parametrize("name", NAMES)


def nhwc(images: np.ndarray) -> np.ndarray:
    return images.transpose(0, 2, 3, 1)


def folder_of(name: str, folder: Path) -> Path:
    """A folder as diffusers writes it."""
    config, weights, _ = fixture(name)
    safetensors.save(folder / "diffusion_pytorch_model.safetensors", weights)
    files.save_json(folder / "config.json", config)
    return folder


@pytest.mark.parametrize("name", ["unet", "unet_default"])
def test_diffusers_unet_on_converted_weights(name):
    """The network is a denoiser of the run: its input is j at the time t = (j + 1) / 1000."""
    experiment, params = assembled(name)
    f = fixture(name)[2]
    denoise = jax.jit(lambda x, t: denoiser.denoiser(experiment, params, clip="none")(x, t))
    found = denoise(nhwc(f["x"]), jnp.float32((f["t"] + 1) / 1000))
    half = np.split(nhwc(f["out"]), 2, axis=-1) if found.nu is not None else [nhwc(f["out"])]
    assert np.abs(f["out"]).max() > 1 and (found.nu is not None) == (name == "unet_default")
    for ours, theirs in zip([found.eps, found.nu], half):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_diffusers_autoencoder_on_converted_weights():
    experiment, params = assembled("autoencoder_kl")
    f = fixture("autoencoder_kl")[2]

    @jax.jit
    def run(x, z):
        networks = autoencoder.networks(experiment, params)
        return networks.encode(x), networks.decode(z, None)[0]

    moments, image = run(nhwc(f["x"]), nhwc(f["z"]))
    np.testing.assert_allclose(np.concatenate(moments, axis=-1), nhwc(f["moments"]), atol=1e-4)
    np.testing.assert_allclose(image, nhwc(f["image"]), atol=1e-4)


@each
def test_tables_lose_nothing(name):
    """Their tensors -> ours -> theirs: the same names and the same numbers; and their config
    likewise.
    """
    config, weights, _ = fixture(name)
    network = networks.network(NAMES[name])
    experiment, params = assembled(name)
    ours = layouts.flat(params[network.subtree] if network.subtree else params)
    shapes = {path: leaf.shape for path, leaf in ours.items()}
    options = experiment.options | {"num_classes": 0}
    back = layouts.to_theirs(layouts.table(network, options, shapes), ours)
    assert back.keys() == weights.keys()
    for key, tensor in weights.items():
        np.testing.assert_array_equal(back[key], tensor)
    described = published.write_config(network, options, experiment.shape, shapes)
    assert described == {key: config[key] for key in described}
    assert config.keys() - described.keys() <= set(published.LOOSE)


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
    first = to_workdir("diffusers", tmp_path / "pipeline", tmp_path / "first")
    config = workdir.saved_config(first)
    assert config.parameterization.startswith("v(") and "time_scale=0.5" in config.parameterization
    exported = write_weights(config, first, "diffusers", tmp_path / "out")
    second = to_workdir("diffusers", exported, tmp_path / "second")
    trained, again = (workdir.load(root, workdir.saved_config(root)) for root in (first, second))
    assert (
        workdir.saved_config(second) == config
    )  # the process and what the network predicts have come along
    jax.tree.map(np.testing.assert_array_equal, trained.params, again.params)
    experiment = trained.experiment
    betas = np.linspace(1e-4, 0.03, 500)  # theirs
    np.testing.assert_allclose(experiment.process.betas, betas, rtol=1e-12)
    sampler = sampling.sample_with(
        experiment, trained.params, sampling.method(experiment, experiment.sampling._replace(nfe=2))
    )
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
        to_workdir("diffusers", exported, first)


def test_stacked_blocks_come_apart():
    stacked = {"blocks/qkv/kernel": np.arange(12).reshape(2, 2, 3), "last/bias": np.arange(2)}
    apart = layouts.unstacked(stacked)
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
    with pytest.raises(
        UserError, match="do not determine 'input_size'; write it into a config.json"
    ):
        to_workdir("dit", tmp_path / "theirs", tmp_path / "run")
    (tmp_path / "theirs" / "config.json").write_text('{"num_heads": 3, "input_size": 8}')
    root = to_workdir("dit", tmp_path / "theirs", tmp_path / "run")
    config = workdir.saved_config(root)
    assert (
        config.model.patch,
        config.model.width,
        config.model.depth,
        config.model.learn_variance,
    ) == (2, 24, 2, True)
    assert files.load_json(root / "data.json")["num_classes"] == 5
    file = write_weights(config, root, "dit", tmp_path / "ours")
    back = safetensors.load(file.read_bytes())
    assert back.pop("pos_embed").shape == (1, 16, 24) and back.keys() == weights.keys()
    for key, tensor in weights.items():
        np.testing.assert_array_equal(back[key], tensor)
    safetensors.save(
        tmp_path / "theirs" / "model.safetensors",
        weights | {"pos_embed": np.zeros((1, 16, 24), np.float32)},
    )
    with pytest.raises(UserError, match="pos_embed .* is not the fixed"):
        to_workdir("dit", tmp_path / "theirs", tmp_path / "other")


def test_a_network_of_latents_makes_images_by_its_autoencoder(tmp_path):
    """It is trained on scaling_factor (z - shift_factor) of the autoencoder's z, whose export says
    so again.
    """
    config, _, f = fixture("autoencoder_kl")
    theirs = folder_of("autoencoder_kl", tmp_path / "kl")
    files.save_json(theirs / "config.json", config | {"scaling_factor": 0.25, "shift_factor": 0.5})
    codec = str(to_workdir("diffusers", theirs, tmp_path / "codec"))
    theirs = folder_of("unet", tmp_path / "unet")
    with pytest.raises(
        UserError,
        match=r"latents \(8, 8, 3\) of images \(16, 16, 3\), and the network is for \(16, 16, 3\)",
    ):
        to_workdir("diffusers", theirs, tmp_path / "run", autoencoder=codec)
    files.save_json(theirs / "config.json", fixture("unet")[0] | {"sample_size": 8})
    root = to_workdir("diffusers", theirs, tmp_path / "run", autoencoder=codec)
    latents = workdir.load(root, workdir.saved_config(root)).experiment.latents
    image = jax.jit(latents.decode)(latents.params, 0.25 * (nhwc(f["z"]) - 0.5))
    np.testing.assert_allclose(image, np.clip(nhwc(f["image"]), -1, 1), atol=1e-4)
    write_weights(workdir.saved_config(codec), codec, "diffusers", tmp_path / "out")
    written = files.load_json(tmp_path / "out" / "config.json")
    assert (written["scaling_factor"], written["shift_factor"]) == (0.25, 0.5)
    assert not (tmp_path / "out" / "scheduler_config.json").exists()
    with pytest.raises(UserError, match="trained here"):
        record = files.load_json(Path(codec) / "provenance.json")
        files.save_json(
            Path(codec) / "provenance.json",
            {key: record[key] for key in record if key != "imported"},
        )
        to_workdir("diffusers", theirs, tmp_path / "other", autoencoder=codec)
