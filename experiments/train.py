"""Train a model, or go on where the same command stopped.

python -m experiments.train --config=configs/digits.py:vp --workdir=runs/a --config.optimizer.learning_rate=3e-4
"""

from __future__ import annotations

import sys

from absl import flags

from diffusion_jax.assembly import train
from experiments import cli, values

if __name__ == "__main__":
    values.path_flag(
        "workdir", None, "where everything goes; the same command resumes", required=True
    )
    cli.launch(
        lambda config: (
            train.train(config, flags.FLAGS.workdir, asked=cli.changed_keys())
            or sys.exit(cli.UNFINISHED)
        ),
        config="file",
    )
