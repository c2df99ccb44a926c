"""Latent diffusion: the file of latents and what is refused, fresh draws, the way from images to
images, end to end.
"""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits, digits_vae, fashion_autoencoder
from configs._autoencoders import latents as of_latents
from configs.base import network
from diffusion_jax import data
from diffusion_jax.assembly import (
    autoencoders,
    conditions,
    denoiser,
    latent,
    sampling,
    train,
    train_latent,
    workdir,
)
from diffusion_jax.assembly.experiment import assemble, need_pixels
from diffusion_jax.core import arrays
from diffusion_jax.core.errors import UserError
from diffusion_jax.data import latents, pipeline
from diffusion_jax.data.sources import Arrays
from diffusion_jax.pretrained import folders
from diffusion_jax.studies import evaluation
from diffusion_jax.studies.weights import publish

# ---- a made-up autoencoder: the latent is two of four pixels, stretched and moved
SIZE = np.array([3.0, 0.5])


def codec(shape=(2, 2, 1)):
    """mean = SIZE (x_00, x_11) + 1, with a standard deviation of 0.3 and 0.1; decode undoes it, in
    all pixels of a row.
    """

    def encode(params, x):
        mean = params["size"] * jnp.stack([x[:, 0, 0, 0], x[:, 1, 1, 0]], -1)[:, None, None] + 1
        return mean, jnp.broadcast_to(2 * jnp.log(jnp.array([0.3, 0.1])), mean.shape)

    def decode(params, z):
        return jnp.broadcast_to(((z - 1) / params["size"]).transpose(0, 3, 1, 2), (len(z), 2, 2, 1))

    return latent.Codec(encode, decode, {"size": jnp.asarray(SIZE, jnp.float32)}, shape)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    splits = (
        Arrays(rng.integers(0, 256, (n, 2, 2, 1), np.uint8), rng.integers(0, 3, n))
        for n in (300, 40)
    )
    return data.Dataset("made_up", *splits, (2, 2, 1), 3, ("a", "b", "c"))


@pytest.fixture(scope="module")
def file(images, tmp_path_factory):
    path = tmp_path_factory.mktemp("latents") / "latents.npz"
    latents.save(path, *latent.encode(codec(), images, batch_size=64))
    return path


def test_latents_have_mean_zero_and_variance_one_and_decode_to_the_images(file, images):
    """The law of z over the training split is in closed form: the mean of means, and Var[mean] +
    E[std^2].
    """
    loaded = data.load("latents", path=str(file))
    assert (loaded.image_shape, loaded.num_classes, loaded.class_names) == (
        (1, 1, 2),
        3,
        ("a", "b", "c"),
    )
    rows = loaded.train.rows(np.arange(300))
    np.testing.assert_allclose(rows["image"].mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(
        rows["image"].var((0, 1, 2)) + (rows["std"] ** 2).mean((0, 1, 2)), 1, rtol=1e-5
    )
    np.testing.assert_allclose(
        rows["std"][0, 0, 0], [0.3, 0.1] / np.float32(loaded.encoded.scale), rtol=1e-5
    )
    np.testing.assert_array_equal(rows["label"], data.arrays(images.train)["label"])
    found = latent.latents(codec(), loaded.encoded, "here").decode(
        codec().params, jnp.asarray(rows["image"])
    )
    pixels = data.arrays(images.train)["image"][:, [0, 1], [0, 1]] / 127.5 - 1
    np.testing.assert_allclose(found[:, :, 0], pixels, atol=1e-4)


def test_half_precision_halves_the_file(file, images, tmp_path):
    latents.save(tmp_path / "half.npz", *latent.encode(codec(), images, dtype="float16"))
    whole, half = (
        data.load("latents", path=str(path)).train.rows(np.arange(9))
        for path in (file, tmp_path / "half.npz")
    )
    np.testing.assert_allclose(half["image"], whole["image"], atol=2e-3)
    assert half["image"].dtype == np.float32


# ---- fresh draws
def test_every_step_sees_its_own_draw_which_depends_on_seed_step_and_example_alone(file):
    source = data.load("latents", path=str(file)).train
    batch = pipeline.batches(source, batch_size=8)(0)

    def drawn(seed, step, part=slice(None)):
        keys = arrays.example_keys(jax.random.fold_in(jax.random.key(seed), step), 8)[part]
        return np.asarray(
            conditions.example({name: value[part] for name, value in batch.items()}, keys)
        )

    assert (
        np.abs(drawn(0, 0) - drawn(0, 1)).min(axis=(1, 2, 3)).min() > 0
        and np.abs(drawn(0, 0) - drawn(1, 0)).min() > 0
    )
    np.testing.assert_array_equal(drawn(0, 0), drawn(0, 0))
    np.testing.assert_array_equal(drawn(0, 0)[4:], drawn(0, 0, slice(4, 8)))
    standard = np.stack([(drawn(0, k) - batch["image"]) / batch["std"] for k in range(100)])
    assert (
        abs(standard.mean()) < 4 / 40 and abs(standard.var() - 1) < 4 * np.sqrt(2) / 40
    )  # 1600 unit Gaussians
    noise = arrays.noise(
        arrays.fold_in(arrays.example_keys(jax.random.fold_in(jax.random.key(0), 0), 8), 0),
        batch["image"],
    )
    assert np.abs(standard[0] - noise).min() > 0  # not the noise that the objective adds


# ---- what is refused
def test_another_autoencoder_is_refused_by_its_hash(file):
    encoded = data.load("latents", path=str(file)).encoded
    other = codec()._replace(params={"size": jnp.asarray(SIZE, jnp.float32).at[1].add(1e-6)})
    with pytest.raises(
        UserError,
        match="runs/b is not the autoencoder that made the latents: its parameters' sha256 is",
    ):
        latent.latents(other, encoded, "runs/b")
    with pytest.raises(
        UserError,
        match=r"is for images \(4, 4, 1\), and the latents were made of images \(2, 2, 1\)",
    ):
        latent.latents(codec((4, 4, 1)), encoded, "runs/b")


def test_the_hash_tells_names_shapes_and_bits():
    tree = {"a": np.arange(4.0), "b": {"c": np.ones(2)}}
    same = {"b": {"c": jnp.ones(2)}, "a": np.arange(4.0)}
    assert latent.digest(tree) == latent.digest({"b": tree["b"], "a": tree["a"]})
    a, b = tree["a"], tree["b"]
    others = [
        {"a": a.reshape(2, 2), "b": b},
        {"x": a, "b": b},
        {"a": np.nextafter(a, 9), "b": b},
        same,
    ]
    assert (
        len({latent.digest(other) for other in [tree, *others]}) == 5
    )  # (same: float32, not float64)


def changed(file, tmp_path, **arrays_):
    with np.load(file) as archive:
        kept = dict(archive) | arrays_
    path = tmp_path / "changed.npz"
    np.savez(path, **{name: value for name, value in kept.items() if value is not None})
    return str(path)


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"scale": None}, "lacks the statistics scale, without which"),
        ({"scale": None, "shift": None}, "lacks the statistics shift and scale"),
        ({"scale": np.array([1.0, 0.0])}, "its statistics, shift"),
        ({"shift": np.array([1.0])}, "its statistics, shift"),
        ({"train_mean": None}, "is not a file of latents: it lacks train_mean"),
        (
            {f"test_{n}": np.zeros((0, 1, 1, 2)) for n in latents.MOMENTS} | {"test_label": None},
            "no latents",
        ),
        ({"train_label": None}, "lacks train_label, and its data have"),
        ({"about": np.array("no json")}, "does not state which autoencoder made it"),
    ],
)
def test_damaged_files_are_refused_with_one_line(file, tmp_path, change, complaint):
    with pytest.raises(UserError, match=complaint) as raised:
        data.load("latents", path=changed(file, tmp_path, **change))
    assert "\n" not in str(raised.value) and "experiments.encode" in str(raised.value)


def test_other_sizes_missing_files_and_mirrors_are_refused(file, images, tmp_path):
    with pytest.raises(
        UserError, match=r"data.image_size=7, but the latents of .* are \(1, 1, 2\)"
    ):
        data.load("latents", path=str(file), image_size=7)
    with pytest.raises(UserError, match="data.channels=4, but the latents"):
        data.load("latents", path=str(file), channels=4)
    with pytest.raises(
        UserError, match="does not exist; make it with python -m experiments.encode"
    ):
        data.load("latents", path=str(tmp_path / "none.npz"))
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(UserError, match="cannot be read as a file of latents"):
        data.load("latents", path=str(tmp_path / "text.npz"))
    with pytest.raises(UserError, match="data.name=latents needs data.path"):
        data.load("latents")
    with pytest.raises(UserError, match="a mirrored latent is not the latent of a mirrored image"):
        pipeline.batches(data.load("latents", path=str(file)).train, batch_size=8, flip=True)
    with pytest.raises(
        UserError,
        match=r"images of data.name=made_up are \(2, 2, 1\), the autoencoder is for \(4, 4, 1\)",
    ):
        latent.encode(codec((4, 4, 1)), images)


# ---- end to end
def short(config, pictures=4):
    """Four steps; pictures and the held-out loss every so many (0: none, for they compile)."""
    config.data.batch_size = 16
    config.training.update(
        steps=4, log_every=2, eval_every=pictures, sample_every=pictures, checkpoint_every=2
    )
    config.ema.halflives = (100,)
    config.optimizer.warmup = 1
    return config


@pytest.fixture(scope="module")
def chained(tmp_path_factory):
    """(workdir of the model, its root, configs): digits, an adversarial autoencoder to 4x4x4, a DiT
    on that, four steps.
    """
    recipe = short(fashion_autoencoder.get_config("adversarial"), pictures=0)
    recipe.data.name = "digits"
    recipe.objective = "autoencoding.reconstruction(perceptual=0.0, adversarial=0.5, start=2)"
    recipe.discriminator = "PatchGAN(width=4, layers=1)"
    recipe.model.update(width=4, stem=2, multipliers=(1,), norm=None)
    config = of_latents(short(digits.get_config("vp"), pictures=0))
    config.model = network("dit.DiT", patch=2, width=8, depth=1, heads=1)
    config.sampler.nfe = 2
    root = tmp_path_factory.mktemp("chained")
    return (
        train_latent.train_latent(config.lock(), root, recipe=recipe.lock()),
        root,
        config,
        recipe,
    )


def test_one_command_trains_the_autoencoder_encodes_and_trains_on_the_latents(chained):
    model, root, config, recipe = chained
    rows = [
        json.loads(line)
        for line in (root / "autoencoder" / "metrics.jsonl").read_text().splitlines()
    ]
    logged = next(row for row in rows if "loss" in row).keys()
    assert {"rate", "pixels", "generator", "discriminator", "adaptive_weight"} <= logged
    about = json.loads((model / "data.json").read_text())
    assert about["image_shape"] == [4, 4, 4] and about["encoded"]["image_shape"] == [8, 8, 1]
    made = (root / "latents.npz").stat().st_mtime_ns
    assert train_latent.train_latent(config, root, recipe=recipe) == model
    assert (root / "latents.npz").stat().st_mtime_ns == made  # nothing is done twice


def test_a_model_of_latents_draws_images_and_is_judged_by_them(chained):
    model, *_ = chained
    config = workdir.saved_config(str(model))
    trained = workdir.load(model, config)
    experiment = trained.experiment
    keys = jax.random.split(jax.random.key(0), 10)
    cond = experiment.conditions.of_labels(np.arange(10))
    assert experiment.shape == (4, 4, 4)
    assert sampling.sample_with(experiment, trained.params, sampling.method(experiment))(
        keys, cond
    ).shape == (
        10,
        8,
        8,
        1,
    )
    result = evaluation.score_samples(
        trained, workdir.images(config), 10, 1, features=["pixels"], metrics=["frechet"]
    )
    assert np.isfinite(result["mean"]["frechet"]) and np.isfinite(result["real"]["frechet"])
    with pytest.raises(UserError, match="inputs of this model are latents"):
        need_pixels(experiment)
    finished = sampling.to_images(experiment, 2)(np.zeros((2, 4, 4, 4), np.float32))
    assert finished.shape == (2, 8, 8, 1) and finished.dtype == np.uint8


def test_a_model_of_latents_refuses_another_autoencoder_and_none(chained, tmp_path):
    model, root, _, _ = chained
    config = workdir.saved_config(str(model)).unlock()
    config.latent.autoencoder = ""
    with pytest.raises(UserError, match="needs config.latent.autoencoder"):
        workdir.load(model, config)
    config.latent.autoencoder = str(root / "autoencoder")
    about = json.loads((model / "data.json").read_text())
    other = latents.Encoded(**about["encoded"] | {"autoencoder": "0" * 64})
    experiment = assemble(config, (4, 4, 4), 10)
    with pytest.raises(UserError, match="is not the autoencoder that made the latents"):
        workdir.with_autoencoder(experiment, other)


def test_a_model_of_latents_is_published_with_its_autoencoder(chained, tmp_path, monkeypatch):
    model, _, config, _ = chained
    monkeypatch.setattr(publish, "COLUMNS", 1)  # images in a row of the picture
    out = tmp_path / "published"
    publish.publish(workdir.saved_config(model), workdir=str(model), out=str(out))
    folders.check(out)
    assert {"weights.safetensors", "autoencoder/weights.safetensors", "autoencoder/config.json"} < (
        folders.manifest(out)["files"].keys()
    )
    moved = out.rename(tmp_path / "elsewhere")
    found = workdir.saved_config(moved)
    assert found.latent.autoencoder == str(moved / "autoencoder") and not found.data.path
    digest = workdir.about_data(moved)["encoded"]["autoencoder"]
    assert digest != workdir.about_data(model)["encoded"]["autoencoder"]  # of rounded weights
    with found.unlocked():
        found.data.path = "images"  # which are those of the autoencoder's data
    with pytest.raises(UserError, match="data.path=images is not used by data.name=digits"):
        workdir.images(found, moved)


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    config = short(digits_vae.get_config("gaussian"))
    config.model.update(hidden=(8,), latent=3)
    folder = tmp_path_factory.mktemp("vae") / "run"
    assert train.train(config.lock(), str(folder))
    return folder


def test_a_vae_trains_samples_and_is_measured_like_any_model(vae):
    for name in ("reconstructions", "interpolations", "samples"):
        assert (vae / name / "step_0000004.png").is_file()
    config = workdir.saved_config(str(vae))
    trained = workdir.load(vae, config)
    experiment = trained.experiment
    chosen = sampling.method(experiment)
    assert sampling.evaluations(chosen) == 1
    draw = sampling.sample_with(experiment, trained.params, chosen)
    keys = jax.random.split(jax.random.key(0), 4)
    conds = [
        experiment.conditions.of_labels(labels) for labels in (np.arange(4), np.arange(4)[::-1])
    ]
    x, again = draw(keys, conds[0]), draw(keys[::-1], conds[1])
    np.testing.assert_array_equal(x, again[::-1])  # an image is its key's and its label's
    assert x.shape == (4, 8, 8, 1) and np.abs(x).max() <= 1
    found = autoencoders.held_out(
        experiment, trained.params, workdir.images(config).test, count=50, samples=4, batch_size=25
    )
    assert found["elbo"] == pytest.approx(-found["rate"] - found["distortion"], rel=1e-5)
    assert (
        found["iw_bound"] > found["elbo"]
        and found["units"] == 3
        and 0 <= found["active_units"] <= 3
    )
    assert found["intervals"].keys() == {
        *("rate", "distortion", "elbo", "iw_bound", "psnr", "active_units")
    }
    assert min(found["intervals"][name] for name in ("rate", "distortion", "psnr")) > 0
    rows = [json.loads(line) for line in (vae / "metrics.jsonl").read_text().splitlines()]
    assert any({"eval_rate", "eval_distortion"} <= row.keys() for row in rows)
    with pytest.raises(UserError, match="is an autoencoder, which has no denoiser"):
        denoiser.denoiser(experiment, trained.params)


def test_an_autoencoder_and_a_diffusion_objective_do_not_go_together():
    config = digits_vae.get_config("gaussian")
    config.objective = "denoising.dsm()"
    with pytest.raises(UserError, match="does not go with config.model.name=autoencoder.VAE"):
        assemble(config, (8, 8, 1), 10)
    config = digits_vae.get_config("gaussian")
    config.objective = "autoencoding.elbo(likelihood=autoencoding.gausian())"
    with pytest.raises(UserError, match="autoencoding.gaussian"):
        assemble(config, (8, 8, 1), 10)
