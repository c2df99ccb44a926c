"""Train a noise-conditional classifier, for classifier guidance; or go on where the same command
stopped.

python -m experiments.train_classifier --config=configs/digits.py:vp --workdir=runs/digits_classifier
python -m experiments.sample --workdir=runs/digits --config.sampler.guide='classifier(workdir="runs/digits_classifier")'

The config is that of a diffusion model: its data, process, law of times, optimizer and EMAs, and
the options of its U-Net, of which the classifier is the way down (models/classifier.py). Ends with
the accuracy on the held-out images by noise level, which classifier.md and classifier.json keep in
the workdir.
"""

from __future__ import annotations

import sys

from absl import flags

from diffusion_jax.assembly import train_classifier
from experiments import cli, values


def main(config) -> None:
    text = train_classifier.train_classifier(config, flags.FLAGS.workdir, flags.FLAGS.pool)
    if text is None:
        sys.exit(cli.UNFINISHED)
    print(text)


if __name__ == "__main__":
    values.path_flag(
        "workdir", None, "where everything goes; the same command resumes", required=True
    )
    flags.DEFINE_enum(
        "pool", "attention", ["attention", "mean"], "what becomes of the last feature map"
    )
    cli.launch(main, config="file", short=("steps",))
