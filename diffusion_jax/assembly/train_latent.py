"""Training of latent diffusion: the autoencoder, its latents, and the diffusion model."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from diffusion_jax.assembly import autoencoders, components, config_files, latent, outputs, workdir
from diffusion_jax.assembly.train import train
from diffusion_jax.core import reading, staging
from diffusion_jax.core.errors import UserError
from diffusion_jax.data import latents


def encode(
    config: ConfigDict,
    path: str,
    out: str,
    *,
    half: bool = False,
    flips: bool = False,
    batch_size: int = 256,
) -> Path:
    """Encode a data set by a trained autoencoder, and print what is written.

    Args:
      config: the config of the autoencoder, with the data that are encoded.
      path: the workdir of the autoencoder.
      out: the file to write, .npz.
      half: whether latents are stored as float16.
      flips: whether those of the mirrored training images are stored as well.
      batch_size: images that are encoded at a time.

    Returns:
      The file.

    Raises:
      UserError: for a workdir of another kind of model, and for images of another size.
    """
    file = outputs.named("out", out, ".npz")[".npz"]
    trained = workdir.load(path, config)
    codec = autoencoders.codec(trained.experiment, trained.params)
    dataset = workdir.dataset(config, path)
    dtype = "float16" if half else "float32"
    how = {"batch_size": batch_size, "dtype": dtype, "flips": flips}
    file.parent.mkdir(parents=True, exist_ok=True)
    # arrays grow on disk, and then become one file: they may be larger than the memory
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=f".{file.stem}.") as folder:

        def new(name: str, shape: tuple[int, ...]) -> np.ndarray:
            return np.lib.format.open_memmap(Path(folder) / f"{name}.npy", "w+", dtype, shape)

        encoded, splits = latent.encode(codec, dataset, **how, new=new)
        latents.save(file, encoded, splits)
    shape, scale = splits["train_mean"].shape, ", ".join(f"{s:.3g}" for s in encoded.scale)
    count = f"{shape[0]:,} + {len(splits['test_mean']):,}"
    print(f"{file}: {count} latents {shape[1:]} of images {encoded.image_shape}, scale {scale}")
    return file


def train_latent(
    config: ConfigDict, path: str | Path, images: str = "", recipe: ConfigDict | None = None
) -> Path | None:
    """Train the autoencoder, encode the data and train the diffusion model, as far as missing.

    Args:
      config: the config of the diffusion model.
      path: the folder of everything.
      images: data.path of the images, where their data set needs one.
      recipe: the config of the autoencoder; None for the one that config.latent.recipe names.

    Returns:
      The workdir of the diffusion model; None if a signal stopped the training.

    Raises:
      UserError: for a config that is not of latents, and for those that cannot be trained.
    """
    root = Path(staging.local(path)).absolute()
    if "latent" not in config:
        raise UserError("train_latent takes a config of latents, such as configs/fashion_latent.py")
    if recipe is None and not config.latent.recipe:
        raise UserError(
            "config.latent.recipe is empty: name the config of the autoencoder, such as "
            "configs/fashion_autoencoder.py"
        )
    recipe = recipe or config_files.load_config(config.latent.recipe)
    recipe = recipe.copy_and_resolve_references()
    recipe.data.path = images or recipe.data.path
    # a mistake is otherwise found only after the autoencoder is trained
    components.check_components(config)
    if not train(recipe, str(root / "autoencoder")):
        return None
    config = config.copy_and_resolve_references()
    # of a workdir in a bucket the config names the URLs, which hold on every machine
    config.data.path = staging.shown(str(encoded(root, flips=config.data.flip)))
    config.latent.autoencoder = staging.shown(str(root / "autoencoder"))
    return root / "model" if train(config, str(root / "model")) else None


def encoded(root: Path, flips: bool = False) -> Path:
    """Return the file WORKDIR/latents.npz; it is encoded again if another autoencoder made it.

    Args:
      root: the workdir, which holds the trained autoencoder in autoencoder/.
      flips: whether it must hold the latents of the mirrored training images.
    """
    file, autoencoder = root / "latents.npz", root / "autoencoder"
    config = workdir.saved_config(autoencoder)

    def check(file: Path) -> Path:
        trained = workdir.load(autoencoder, config)
        codec = autoencoders.codec(trained.experiment, trained.params)
        train, _, about = latents.load(str(file))
        latent.latents(codec, about, str(autoencoder))
        if flips and not train.flipped:
            raise UserError(f"'{file}' lacks the latents of mirrored images (data.flip=True)")
        return file

    return reading.kept(file, check) or encode(config, str(autoencoder), str(file), flips=flips)
