"""Repeat a training step that was not finite, and show where in the network it began.

python -m experiments.repro --workdir=runs/a --step=153000

Restores the checkpoint that the report names (nonfinite/step_N, training/forensics.py), trains to
the step, which is exact, and compares its numbers with the report's, bit for bit. Then the network
runs once more, layer by layer. Exit status 1 if the step is finite this time: then suspect the
machine, or that the run's code or software have changed.
"""

from __future__ import annotations

import sys

from absl import flags

from diffusion_jax.studies import repro
from experiments import cli, values

if __name__ == "__main__":
    values.path_flag("workdir", None, "the folder of the run", required=True)
    values.integer_flag("step", None, "the step, as the run named it", 0, 10**9, required=True)
    cli.launch(
        lambda config: repro.repro(config, flags.FLAGS.workdir, flags.FLAGS.step) or sys.exit(1),
        config="workdir",
        short=(),
    )
