"""Encode a data set by a trained autoencoder, once, for latent diffusion: FILE.npz, which training
reads as data.name=latents.

python -m experiments.encode --workdir=runs/fashion_ae --out=runs/fashion_latents.npz
python -m experiments.train --config=configs/fashion_latent.py --config.data.path=runs/fashion_latents.npz \
    --config.latent.autoencoder=runs/fashion_ae --workdir=runs/fashion_latent

The images are those the autoencoder was trained on, or those that --config.data.name and its kin
say. The file keeps of every image the mean and the log-variance of the latent, the statistics of
every channel, and the hash of the autoencoder, by which it is known again.
"""

from __future__ import annotations

from absl import flags

from diffusion_jax.assembly import train_latent
from experiments import cli, values


def main(config) -> None:
    FLAGS = flags.FLAGS
    train_latent.encode(
        config, FLAGS.workdir, FLAGS.out, half=FLAGS.half, batch_size=config.sampler.batch_size
    )


if __name__ == "__main__":
    values.path_flag("workdir", None, "the folder of a trained autoencoder", required=True)
    values.path_flag("out", None, "the file to write, .npz", required=True)
    flags.DEFINE_bool("half", False, "keep float16: half the size, for large sets")
    cli.launch(main, config="workdir", short=())
