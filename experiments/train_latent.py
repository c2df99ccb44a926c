"""Latent diffusion in one command: train the autoencoder, encode, train on that, sample, evaluate; or go on where it stopped.

python -m experiments.train_latent --config=configs/fashion_latent.py:vp --images=FOLDER_OF_IDX_FILES --workdir=runs/fashion

    WORKDIR/autoencoder/     a workdir, by the config of config.latent.recipe
    WORKDIR/latents.npz      its data set, encoded
    WORKDIR/model/           a workdir of the latents, which every other command takes

Every part is the command of its name (experiments.train, encode, sample, evaluate), and what is done is not done again.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from absl import flags

from experiments import cli


def train_latent(config, workdir: str | Path, images: str = "", recipe=None) -> Path | None:
    """Train all that is missing. Returns the model's workdir; None if a signal stopped the training.

    images: data.path of the images, where their data set needs one. recipe: the autoencoder's config itself, instead of its
      name.
    """
    from diffusion_jax import experiment
    from diffusion_jax.errors import UserError

    from experiments.train import train

    root = Path(workdir).absolute()
    if "latent" not in config:
        raise UserError("train_latent takes a config of latents, such as configs/fashion_latent.py")
    if recipe is None and not config.latent.recipe:
        raise UserError("config.latent.recipe is empty: name the autoencoder's config, such as configs/fashion_autoencoder.py")
    recipe = (recipe or cli.load_config(config.latent.recipe)).copy_and_resolve_references()
    recipe.data.path = images or recipe.data.path
    experiment.check_components(config)  # which is otherwise found only after the autoencoder is trained
    if not train(recipe, str(root / "autoencoder")):
        return None
    config = config.copy_and_resolve_references()
    config.data.path, config.latent.autoencoder = str(encoded(root)), str(root / "autoencoder")
    return root / "model" if train(config, str(root / "model")) else None


def encoded(root: Path) -> Path:
    """WORKDIR/latents.npz, made anew if it is not this autoencoder's."""
    from diffusion_jax import autoencoders, latent, reading
    from diffusion_jax import workdir as folder
    from diffusion_jax.data import latents

    from experiments.encode import encode

    path, config = root / "latents.npz", folder.saved_config(root / "autoencoder")

    def check(path: Path) -> Path:
        trained = folder.load(root / "autoencoder", config)
        codec = autoencoders.codec(trained.experiment, trained.params)
        latent.latents(codec, latents.load(str(path))[2], str(root / "autoencoder"))
        return path

    return reading.kept(path, check) or encode(config, str(root / "autoencoder"), str(path))


def main(config) -> None:
    FLAGS = flags.FLAGS
    model = train_latent(config, FLAGS.workdir, FLAGS.images)
    if model is None:
        sys.exit(cli.UNFINISHED)
    for command in ("sample", "evaluate"):
        more = [f"--num={FLAGS.num}"] if command == "evaluate" else []
        status = subprocess.run([sys.executable, "-m", f"experiments.{command}", f"--workdir={model}", *more]).returncode
        if status:
            sys.exit(status)


if __name__ == "__main__":
    cli.path_flag("workdir", None, "where everything goes; the same command resumes", required=True)
    cli.path_flag("images", "", "data.path of the images, for data sets that need one")
    cli.integer_flag("num", 1000, "images in each set that is evaluated", 10, 1_000_000)
    cli.launch(main, config="file")
