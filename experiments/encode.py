"""Encode a data set by a trained autoencoder, once, for latent diffusion: FILE.npz, which training reads as data.name=latents.

python -m experiments.encode --workdir=runs/fashion_ae --out=runs/fashion_latents.npz
python -m experiments.train --config=configs/fashion_latent.py --config.data.path=runs/fashion_latents.npz \
    --config.latent.autoencoder=runs/fashion_ae --workdir=runs/fashion_latent

The images are those the autoencoder was trained on, or those that --config.data.name and its kin say. The file keeps of every
image the mean and the log-variance of the latent, the statistics of every channel, and the hash of the autoencoder, by which it
is known again.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from experiments import cli


def encode(config, workdir: str, out: str, *, half: bool = False, batch_size: int = 256) -> Path:
    """Write the file; returns where. UserError for a workdir of something else, and for other images than it is for."""
    from diffusion_jax import autoencoders, experiment, latent
    from diffusion_jax import workdir as folder
    from diffusion_jax.data import latents

    path = cli.output("out", out, ".npz")[".npz"]
    trained = folder.load(workdir, config)
    codec = autoencoders.codec(trained.experiment, trained.params)
    dataset = folder.dataset(config, workdir)
    encoded, splits = latent.encode(codec, dataset, batch_size=batch_size, dtype="float16" if half else "float32")
    latents.save(path, encoded, splits)
    shape, scale = splits["train_mean"].shape, ", ".join(f"{s:.3g}" for s in encoded.scale)
    count = f"{shape[0]:,} + {len(splits['test_mean']):,}"
    print(f"{path}: {count} latents {shape[1:]} of images {encoded.image_shape}, scale {scale}")
    return path


def main(config) -> None:
    FLAGS = flags.FLAGS
    encode(config, FLAGS.workdir, FLAGS.out, half=FLAGS.half, batch_size=config.sampler.batch_size)


if __name__ == "__main__":
    cli.path_flag("workdir", None, "the folder of a trained autoencoder", required=True)
    cli.path_flag("out", None, "the file to write, .npz", required=True)
    flags.DEFINE_bool("half", False, "keep float16: half the size, for large sets")
    cli.launch(main, config="workdir", short=())
