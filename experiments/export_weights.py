"""A trained network in the format of those that publish such: the way back of
experiments.import_weights.

python -m experiments.export_weights --workdir=WORKDIR --to=diffusers --path=FOLDER [--config.sampler.ema=50k]
python -m experiments.export_weights --workdir=WORKDIR --to=diffusers --path=FOLDER --label=3      (one class of a model of classes)

A U-Net becomes a pipeline of diffusers (model_index.json, unet/, scheduler/), from which
DDIMPipeline.from_pretrained(FOLDER) and DDPMPipeline.from_pretrained(FOLDER) draw; an autoencoder
or a DiT becomes config.json and a file of weights. The weights are those that sample would use.
docs/weights.md says which networks can be exported.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from diffusion_jax.errors import printable
from diffusion_jax.studies import export_weights
from diffusion_jax.studies.import_weights import SOURCES
from experiments import cli, values


def main(config) -> None:
    FLAGS = flags.FLAGS
    options = {name: getattr(FLAGS, name) for name in ("label", "variance", "network_only")}
    file = export_weights.export_weights(config, FLAGS.workdir, FLAGS.to, FLAGS.path, **options)
    found = sorted(
        printable(str(entry.relative_to(FLAGS.path))) for entry in Path(FLAGS.path).rglob("*.*")
    )
    print(f"{FLAGS.path}: {', '.join(found)}")
    if (Path(FLAGS.path) / "model_index.json").exists():
        print(
            f"diffusers.DDIMPipeline.from_pretrained('{FLAGS.path}') draws from it; the file of weights is {file}"
        )


if __name__ == "__main__":
    values.path_flag("workdir", None, "the folder of a trained model", required=True)
    flags.DEFINE_enum("to", None, list(SOURCES), "in whose format", required=True)
    values.path_flag("path", None, "the folder to write to", required=True)
    flags.DEFINE_string(
        "label",
        "",
        "of a model of classes: the class to export, by number or name, or any for the model without a class",
    )
    flags.DEFINE_bool(
        "variance",
        False,
        "keep a learned variance, which DDPMPipeline can use and DDIMPipeline cannot",
    )
    flags.DEFINE_bool(
        "network_only",
        False,
        "export a U-Net without pipeline and scheduler, told 1000 c_noise as its timestep",
    )
    cli.launch(main, config="workdir", short=())
