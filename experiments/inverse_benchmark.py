"""How good the methods of inverse.py are: against the exact posterior on a mixture, and against
trivial baselines on images.

python -m experiments.inverse_benchmark --target=gmm8 --nfe=20,50,100
python -m experiments.inverse_benchmark --target='gmm(modes=20,dim=8)' --methods='ddnm;pigdm;dps(scale=0.1)'
python -m experiments.inverse_benchmark --target='standard_normal(dim=1)' --std=0.5 --nfe=100,500     # a noisy measurement
python -m experiments.inverse_benchmark --workdir=runs/a --num=64

On a target: bias of the posterior mean, ratio of variances and coverage of 90 % credible intervals,
over NFE. On images: PSNR and a perceptual distance, LPIPS or that of the evaluation classifier's
features, with standard errors. Writes inverse_benchmark.json, .md and .png into --out; rows that
are there are not made again.
"""

from __future__ import annotations

from absl import flags

from diffusion_jax import files
from diffusion_jax.studies import inverse_benchmark
from experiments import cli, values


# ---- the command
def main(config) -> None:
    FLAGS = flags.FLAGS
    text, stem = (
        inverse_benchmark.target_command
        if FLAGS.target is not None
        else inverse_benchmark.image_command
    )(FLAGS, config)

    files.save_text(stem.with_suffix(".md"), text)
    print(f"{text}\n{stem}.json, .md, .png")


if __name__ == "__main__":
    values.path_flag("workdir", None, "the folder of a trained model")
    flags.DEFINE_string(
        "target", None, "instead of a model, a mixture: gmm8, 'gmm(modes=20,dim=8)'"
    )
    flags.DEFINE_string(
        "process", "schedules.VP()", "the process of --target (a model has its own)"
    )
    flags.DEFINE_string(
        "sampler", "ancestral.ddim(eta=1.0)", "the sampler of --target (a model's is its config's)"
    )
    flags.DEFINE_string("grid", "uniform_logsnr", "its grid")
    flags.DEFINE_float(
        "std", 0.1, "of the noise in the measurement of --target", lower_bound=0, upper_bound=1e6
    )
    flags.DEFINE_string("methods", "", "with semicolons; by default all")
    flags.DEFINE_string(
        "tasks", inverse_benchmark.IMAGE_TASKS, "on images, with semicolons; a mask after @"
    )
    flags.DEFINE_string(
        "nfe", "", "budgets; by default 20,50,100 on a target and the config's on images"
    )
    flags.DEFINE_string(
        "labels", "", "on images: '' nothing is told, own (class or caption), or classes in turn"
    )
    flags.DEFINE_enum(
        "perceptual",
        "",
        ["", "classifier", "lpips"],
        "on images; '': classifier where there are labels",
    )
    values.integer_flag("num", 64, "measurements", 2, 1_000_000)
    values.integer_flag(
        "draws", 256, "of the posterior for each measurement of --target", 10, 100_000
    )
    values.path_flag("out", "", "the folder; by default WORKDIR, or runs/inverse_TARGET")
    cli.launch(main, config="workdir", without=("target",), short=("guidance",))
