"""Latent diffusion in one command: train the autoencoder, encode, train on that, sample, evaluate;
or go on where it stopped.

python -m experiments.train_latent --config=configs/fashion_latent.py:vp --images=FOLDER_OF_IDX_FILES --workdir=runs/fashion

    WORKDIR/autoencoder/     a workdir, by the config of config.latent.recipe
    WORKDIR/latents.npz      its data set, encoded
    WORKDIR/model/           a workdir of the latents, which every other command takes

Every part is the command of its name (experiments.train, encode, sample, evaluate), and what is
done is not done again.
"""

from __future__ import annotations

import subprocess
import sys

from absl import flags

from diffusion_jax.assembly import train_latent
from experiments import cli, values


def main(config) -> None:
    FLAGS = flags.FLAGS
    model = train_latent.train_latent(config, FLAGS.workdir, FLAGS.images)
    if model is None:
        sys.exit(cli.UNFINISHED)
    for command in ("sample", "evaluate"):
        more = [f"--num={FLAGS.num}"] if command == "evaluate" else []
        status = subprocess.run(
            [sys.executable, "-m", f"experiments.{command}", f"--workdir={model}", *more]
        ).returncode
        if status:
            sys.exit(status)


if __name__ == "__main__":
    values.path_flag(
        "workdir", None, "where everything goes; the same command resumes", required=True
    )
    values.path_flag("images", "", "data.path of the images, for data sets that need one")
    values.integer_flag("num", 1000, "images in each set that is evaluated", 10, 1_000_000)
    cli.launch(main, config="file")
