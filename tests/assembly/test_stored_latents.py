"""The file of latents: mapped where it is large, with the latents of mirrored images beside."""

from __future__ import annotations

import pickle

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import data
from diffusion_jax.assembly import latent
from diffusion_jax.core.errors import UserError
from diffusion_jax.data import latents, pipeline
from diffusion_jax.data.sources import Arrays
from tests.assembly.test_latent import changed, codec


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    splits = (Arrays(rng.integers(0, 256, (n, 2, 2, 1), np.uint8)) for n in (300, 40))
    return data.Dataset("made_up", *splits, (2, 2, 1), 0, ())


@pytest.fixture(scope="module")
def file(images, tmp_path_factory):
    path = tmp_path_factory.mktemp("latents") / "latents.npz"
    latents.save(path, *latent.encode(codec(), images, batch_size=64))
    return path


def test_statistics_of_parts_are_those_of_the_whole(images, monkeypatch):
    """Var[mean] + E[std^2] over all of it, in parts of 7 images."""
    monkeypatch.setattr(latent, "CHUNK", 7)
    made, splits = latent.encode(codec(), images)
    mean, log_variance = (splits[f"train_{n}"].astype(float) for n in latents.MOMENTS)
    np.testing.assert_allclose(made.shift, mean.mean((0, 1, 2)), rtol=1e-10)
    variance = mean.var((0, 1, 2)) + np.exp(log_variance).mean((0, 1, 2))
    np.testing.assert_allclose(made.scale, np.sqrt(variance), rtol=1e-10)


def test_mirrored_latents_are_those_of_mirrored_images(images, tmp_path):
    """Each epoch draws which of the two an example is; a batch is a function of seed and step."""
    made, splits = latent.encode(codec(), images, flips=True)
    latents.save(tmp_path / "a.npz", made, splits)
    source = data.load("latents", path=str(tmp_path / "a.npz")).train
    pixels = data.arrays(images.train)["image"][:, :, ::-1][:, [0, 1], [0, 1]] / 127.5 - 1
    every = np.arange(300)
    found = latent.latents(codec(), made, "here").decode(
        codec().params, jnp.asarray(source.rows(every, every >= 0)["image"])
    )
    np.testing.assert_allclose(found[:, :, 0], pixels, atol=1e-4)
    batch = pipeline.batches(source, batch_size=300, flip=True)
    plain = pipeline.batches(source, batch_size=300)
    mirrored = [(batch(k)["image"] != plain(k)["image"]).any((1, 2, 3)) for k in (0, 1)]
    assert all(0.3 < own.mean() < 0.7 for own in mirrored) and (mirrored[0] != mirrored[1]).any()
    halves = pipeline.batches(source, batch_size=300, flip=True, process_index=1, process_count=2)
    np.testing.assert_array_equal(halves(1)["image"], batch(1)["image"][150:])
    for name, column in pickle.loads(pickle.dumps(batch(0))).items():
        np.testing.assert_array_equal(column, batch(0)[name])


def test_large_files_are_mapped_and_small_ones_read(file, tmp_path, monkeypatch):
    """Of a mapped file a process reads its rows alone; compressed arrays are read whole."""
    whole = data.load("latents", path=str(file))
    monkeypatch.setattr(latents, "MAPPED", 0)
    mapped = data.load("latents", path=str(file))
    assert isinstance(mapped.train.mean, np.memmap) and mapped.encoded == whole.encoded
    sent = pickle.dumps(mapped.train)
    assert len(sent) < 4000 < mapped.train.mean.nbytes + mapped.train.log_variance.nbytes
    with np.load(file) as archive:
        np.savez_compressed(tmp_path / "c.npz", **archive)
    others = [
        mapped.train,
        pickle.loads(sent),
        data.load("latents", path=str(tmp_path / "c.npz")).train,
    ]
    for other in others:
        for name, column in whole.train.rows(np.arange(300)).items():
            np.testing.assert_array_equal(other.rows(np.arange(300))[name], column)
    spoiled = np.full((300, 1, 1, 2), np.nan, "f")
    with pytest.raises(UserError, match="train_mean has values that are not finite"):
        data.load("latents", path=changed(file, tmp_path, train_mean=spoiled))
    with pytest.raises(UserError, match="cannot be read as a file of latents"):
        data.load("latents", path=changed(file, tmp_path, train_mean=spoiled[..., 0]))
    content = file.read_bytes()
    (tmp_path / "d.npz").write_bytes(content.replace(b"\x93NUMPY", b"\x93NUMBY"))
    with pytest.raises(UserError, match="cannot be read as a file of latents"):
        data.load("latents", path=str(tmp_path / "d.npz"))
