r"""Train latent diffusion in one command: autoencoder, encoding, diffusion model, evaluation.

python -m experiments.train_latent --config=configs/fashion_latent.py:vp \
    --images=FOLDER_OF_IDX_FILES --workdir=runs/fashion

    WORKDIR/autoencoder/     a workdir, by the config of config.latent.recipe
    WORKDIR/latents.npz      its data set, encoded
    WORKDIR/model/           a workdir of the latents, which every other command takes

Each part is the command of its name (experiments.train, encode, sample, evaluate). Running the same
command again resumes the part that was interrupted; finished parts are not repeated.
"""

from experiments import cli, values

if __name__ == "__main__":
    values.path_flag(
        "workdir",
        None,
        "folder of all parts; running the same command again resumes training",
        required=True,
    )
    values.path_flag(
        "images", "", "folder of the images (config.data.path), for data sets that need one"
    )
    values.integer_flag("num", 1000, "number of images in each evaluated set", 10, 1_000_000)
    cli.launch("diffusion_jax.studies.training:train_latent", config="file")
