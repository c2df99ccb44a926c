"""Evaluate the samples of one run with power-function EMAs of many lengths.

python -m experiments.ema_sweep --workdir=runs/a --lengths=0.02,0.05,0.1,0.15,0.2 --num=1000

The run must have kept snapshots (--config.ema.powers='(0.05,0.1)'); every length is made from them
(Karras et al. 2024, EDM2, section 3.2). All lengths use the same seeds. Prints a table and writes
ema_sweep.md, .png and .json into the workdir. Lengths that its folder ema_sweep/ has are not made
again; --config.sampler.ema='post_hoc(LENGTH)' uses the best one in any other command.
"""

from absl import flags

from experiments import cli, values

if __name__ == "__main__":
    values.path_flag("workdir", None, "folder of a trained model", required=True)
    flags.DEFINE_string(
        "lengths",
        "0.02,0.05,0.1,0.15,0.2",
        "standard deviations of the averages, as shares of the run, with commas",
    )
    values.judge_flags(1000, "number of images in each set", standard="accuracy,frechet")
    values.integer_flag("repeats", 1, "number of sets, from disjoint seeds", 1, 1000)
    cli.launch("diffusion_jax.studies.sweep.ema_sweep:ema_sweep", config="workdir")
