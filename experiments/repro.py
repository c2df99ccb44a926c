"""Repeat a training step that was not finite, and show where in the network it began.

python -m experiments.repro --workdir=runs/a --step=153000

The command restores the checkpoint that the report names (nonfinite/step_N,
training/forensics.py), trains to the step, which is exact, and compares its numbers with the
report's, bit for bit. Then the network runs once more, layer by layer. The exit status is 1 if the
step is finite this time: then suspect the machine, or a change of the run's code or software.
"""

from experiments import cli, values

if __name__ == "__main__":
    values.path_flag("workdir", None, "folder of the run", required=True)
    values.integer_flag(
        "step",
        None,
        "training step that was not finite, as the run reported it",
        0,
        10**9,
        required=True,
    )
    cli.launch("diffusion_jax.studies.repro:repro", config="workdir", short=())
