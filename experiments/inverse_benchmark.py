r"""Compare methods for inverse problems: with the exact posterior of a mixture, or on images.

python -m experiments.inverse_benchmark --target=gmm8 --nfe=20,50,100
python -m experiments.inverse_benchmark --target='gmm(modes=20,dim=8)' \
    --methods='ddnm;pigdm;dps(scale=0.1)'
python -m experiments.inverse_benchmark --target='standard_normal(dim=1)' --std=0.5 --nfe=100,500
python -m experiments.inverse_benchmark --workdir=runs/a --num=64

With --target: bias of the posterior mean, ratio of variances and coverage of 90 % credible
intervals, over NFE. With --workdir: PSNR and a perceptual distance (LPIPS, or that of the
classifier's features) of images, PSNR and RMSE of other data, against trivial baselines. Writes
inverse_benchmark.json, .md and .png into --out; the same command again makes only missing rows.
"""

from absl import flags

from experiments import cli, values

if __name__ == "__main__":
    values.path_flag("workdir", None, "folder of a trained model")
    flags.DEFINE_string("target", None, "mixture, such as gmm8 or 'gmm(modes=20,dim=8)'")
    flags.DEFINE_string("process", "schedules.VP()", "process of --target")
    flags.DEFINE_string("sampler", "ancestral.ddim(eta=1.0)", "sampler of --target")
    flags.DEFINE_string("grid", "uniform_logsnr", "grid of the sampler of --target")
    flags.DEFINE_float(
        "std", 0.1, "standard deviation of the noise of --target", lower_bound=0, upper_bound=1e6
    )
    flags.DEFINE_string("methods", "", "methods, with semicolons (default all)")
    flags.DEFINE_string(
        "tasks", "", "tasks on samples, with semicolons; a mask after @ (default all)"
    )
    flags.DEFINE_string(
        "nfe",
        "",
        "network evaluations, with commas (default 20,50,100 with --target; on images one budget, "
        "config.sampler.nfe)",
    )
    flags.DEFINE_string(
        "labels",
        "",
        "condition of samples: own (all that is known), or classes in turn (default none)",
    )
    flags.DEFINE_enum(
        "perceptual",
        "",
        ["", "classifier", "lpips"],
        "perceptual distance on images (default classifier where there are labels, else lpips)",
    )
    values.integer_flag("num", 64, "number of measurements", 2, 1_000_000)
    values.integer_flag(
        "draws", 256, "number of posterior draws for each measurement of --target", 10, 100_000
    )
    out = "folder to write to (default WORKDIR, or runs/inverse_TARGET)"
    values.path_flag("out", "", out, stored=values.FOLDER)
    cli.launch(
        "diffusion_jax.studies.inverse.on_images:compare_on_images",
        config="workdir",
        instead={"target": "diffusion_jax.studies.inverse.on_targets:compare_with_posterior"},
        short=("guidance",),
    )
