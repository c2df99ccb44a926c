r"""Encode a data set by a trained autoencoder, once, for latent diffusion.

python -m experiments.encode --workdir=runs/fashion_ae --out=runs/fashion_latents.npz
python -m experiments.train --config=configs/fashion_latent.py \
    --config.data.path=runs/fashion_latents.npz --config.latent.autoencoder=runs/fashion_ae \
    --workdir=runs/fashion_latent

The file is a data set that training reads as data.name=latents. The images are those of the
autoencoder's training, or those that --config.data.name and the other data keys name. The file
holds the mean and the log-variance of each latent, statistics of each channel, and the hash of the
autoencoder, which training compares.
"""

from absl import flags

from experiments import cli, values

if __name__ == "__main__":
    values.path_flag("workdir", None, "folder of a trained autoencoder", required=True)
    values.path_flag("out", None, "file to write, ending in .npz", required=True)
    flags.DEFINE_bool("half", False, "store float16 instead of float32: half the size")
    flags.DEFINE_bool(
        "flips",
        False,
        "also store the latents of the mirrored training images, of which each epoch draws which "
        "are seen with --config.data.flip=True: twice the size",
    )
    cli.launch("diffusion_jax.studies.training:encode", config="workdir", short=())
