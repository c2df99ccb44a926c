"""Published weights as a workdir, which sample, evaluate, edit and the other commands take.

python -m experiments.import_weights --from=diffusers --path=FOLDER --out=WORKDIR
python -m experiments.import_weights --from=dit --path=DiT-XL-2-256x256.pt --out=WORKDIR --autoencoder=WORKDIR_OF_ONE

diffusers: a UNet2DModel in DDPM's layout or an AutoencoderKL, config.json and
diffusion_pytorch_model.safetensors or .bin; a scheduler_config.json beside it is heeded. dit:
Peebles & Xie's. A network of latents needs its autoencoder, imported before. Nothing in a file is
run. docs/weights.md says more.
"""

from __future__ import annotations

from absl import flags

from diffusion_jax.studies import import_weights
from experiments import cli, values


def main(_) -> None:
    FLAGS = flags.FLAGS
    root = import_weights.import_weights(
        FLAGS["from"].value, FLAGS.path, FLAGS.out, FLAGS.data, FLAGS.autoencoder
    )
    print(f"{root}: ready for experiments.sample, evaluate and edit")


if __name__ == "__main__":
    flags.DEFINE_enum(
        "from", None, list(import_weights.SOURCES), "who published them", required=True
    )
    values.path_flag("path", None, "the file of weights, or its folder", required=True)
    values.path_flag("out", None, "the workdir to make", required=True)
    values.path_flag(
        "autoencoder",
        "",
        "of a network of latents: the workdir of the autoencoder that was imported for it",
    )
    flags.DEFINE_string(
        "data",
        "folder",
        "the data set it was trained on, as config.data.name, for evaluate and edit",
    )
    cli.launch(main, config="none")
