"""Training of latent diffusion: the autoencoder, its latents, and the diffusion model."""

from __future__ import annotations

from pathlib import Path

from diffusion_jax import parsing, reading
from diffusion_jax.assembly import autoencoders, components, config_files, latent, workdir
from diffusion_jax.assembly import workdir as folder
from diffusion_jax.assembly.train import train
from diffusion_jax.data import latents
from diffusion_jax.errors import UserError


def encode(config, workdir: str, out: str, *, half: bool = False, batch_size: int = 256) -> Path:
    """Write the file; returns where. UserError for a workdir of something else, and for other
    images than it is for.
    """
    path = parsing.output("out", out, ".npz")[".npz"]
    trained = folder.load(workdir, config)
    codec = autoencoders.codec(trained.experiment, trained.params)
    dataset = folder.dataset(config, workdir)
    encoded, splits = latent.encode(
        codec, dataset, batch_size=batch_size, dtype="float16" if half else "float32"
    )
    latents.save(path, encoded, splits)
    shape, scale = splits["train_mean"].shape, ", ".join(f"{s:.3g}" for s in encoded.scale)
    count = f"{shape[0]:,} + {len(splits['test_mean']):,}"
    print(f"{path}: {count} latents {shape[1:]} of images {encoded.image_shape}, scale {scale}")
    return path


def train_latent(config, workdir: str | Path, images: str = "", recipe=None) -> Path | None:
    """Train all that is missing. Returns the model's workdir; None if a signal stopped the
    training.

    images: data.path of the images, where their data set needs one. recipe: the autoencoder's
      config itself, instead of its name.
    """
    root = Path(workdir).absolute()
    if "latent" not in config:
        raise UserError("train_latent takes a config of latents, such as configs/fashion_latent.py")
    if recipe is None and not config.latent.recipe:
        raise UserError(
            "config.latent.recipe is empty: name the autoencoder's config, such as configs/fashion_autoencoder.py"
        )
    recipe = (
        recipe or config_files.load_config(config.latent.recipe)
    ).copy_and_resolve_references()
    recipe.data.path = images or recipe.data.path
    components.check_components(
        config
    )  # which is otherwise found only after the autoencoder is trained
    if not train(recipe, str(root / "autoencoder")):
        return None
    config = config.copy_and_resolve_references()
    config.data.path, config.latent.autoencoder = str(encoded(root)), str(root / "autoencoder")
    return root / "model" if train(config, str(root / "model")) else None


def encoded(root: Path) -> Path:
    """WORKDIR/latents.npz, made anew if it is not this autoencoder's."""
    path, config = root / "latents.npz", workdir.saved_config(root / "autoencoder")

    def check(path: Path) -> Path:
        trained = workdir.load(root / "autoencoder", config)
        codec = autoencoders.codec(trained.experiment, trained.params)
        latent.latents(codec, latents.load(str(path))[2], str(root / "autoencoder"))
        return path

    return reading.kept(path, check) or encode(config, str(root / "autoencoder"), str(path))
