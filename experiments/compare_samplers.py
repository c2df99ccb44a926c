"""Which sampler is best for this model at this budget? Solvers x grids x NFE from the same seeds,
judged by truth and pictures.

python -m experiments.compare_samplers --workdir=runs/a --samplers='ancestral.ddim;multistep.dpmpp_2m@karras' --nfe=5,10,20,50
python -m experiments.compare_samplers --target=gmm8 --process='schedules.EDM()'       (an exact law: no training needed)
python -m experiments.compare_samplers --workdir=runs/a --nfe=1,2,4,50 --others=runs/cd,runs/meanflow    (other models beside)
python -m experiments.compare_samplers --list                                          (every sampler, grid, target, process)

Writes compare.html, which holds everything, and compare.png, compare_strips.png, compare.md and
compare.json. A sampler is a spec, with @grid where it wants another than the config's. Every
finished cell is kept in compare/, where the same command finds it again. All NFE of a sampler run
in one compiled program.

Trajectory error, of deterministic samplers: RMS per dimension between their x0 and the exact
solution's from the same noise. For a target that is a float64 adaptive solve, and samplers run in
float64 too; for a model, a fine solve of the network's own ODE, whose own error the page states.
"""

from __future__ import annotations

import re
from pathlib import Path

import jax
from absl import flags

from diffusion_jax import parsing, provenance
from diffusion_jax.assembly import components, workdir
from diffusion_jax.errors import UserError
from diffusion_jax.studies import comparison, sampler_comparison
from experiments import cli, values


def main(config) -> None:

    FLAGS = flags.FLAGS
    if FLAGS.list:
        print(sampler_comparison.listing())
        return
    entries = [
        part.strip() for part in FLAGS.samplers.split(";") if part.strip()
    ] or sampler_comparison.default_samplers()
    budgets = sorted(set(parsing.integers("nfe", FLAGS.nfe, 1, 10_000)))
    seeds = (
        parsing.parse_seeds(FLAGS.seeds)
        if FLAGS.seeds
        else list(range(FLAGS.num or (2000 if FLAGS.target else 200)))
    )
    noise = (
        FLAGS.noise
        or (config.sampler.get("noise") if "sampler" in config else None)
        or "independent"
    )
    options = {"noise": noise, "fresh": FLAGS.fresh}
    if FLAGS.target is not None and FLAGS.features:
        raise UserError(
            f"--features={FLAGS.features} is for models of images, and --target={FLAGS.target} draws points"
        )
    if FLAGS.target is not None:
        root = parsing.folder(
            "out",
            FLAGS.out or f"runs/compare_{re.sub('[^A-Za-z0-9]+', '_', FLAGS.target).strip('_')}",
        )
        with jax.enable_x64(True):
            chosen = comparison.cells(
                entries, budgets, comparison.build(components.PROCESSES, FLAGS.process), "auto"
            )
            subject = comparison.of_target(FLAGS.target, FLAGS.process, seeds)
            compared = comparison.compare(subject, chosen, root / "compare", **options)
            text = sampler_comparison.write(
                subject,
                compared,
                root / "compare",
                {"provenance": provenance.provenance(subject.identity, seeds[0])},
            )
            comparison.need_results([result.row for result in compared.results])
    else:
        trained, root = (
            workdir.load(FLAGS.workdir, config),
            parsing.folder("out", FLAGS.out or FLAGS.workdir),
        )
        record = {"provenance": provenance.provenance(config.to_dict(), config.seed)}
        record |= {"step": trained.step, "weights": trained.weights}
        name = f"{config.data.name} ({Path(FLAGS.workdir).name})"
        text = sampler_comparison.compare_model(
            trained,
            workdir.images(config, FLAGS.workdir),
            name,
            entries,
            budgets,
            seeds,
            root / "compare",
            root / "compare",
            record,
            parsing.paths("others", FLAGS.others),
            FLAGS.features,
            **options,
        )
    print(f"{text}\n{root / 'compare.html'} holds all of this, with pictures")


if __name__ == "__main__":
    values.path_flag("workdir", None, "the folder of a trained model")
    flags.DEFINE_string(
        "target",
        None,
        "instead of a model, an exact law: gmm8, 'gmm(modes=20, dim=16)', checkerboard, ...",
    )
    flags.DEFINE_string(
        "process", "schedules.VP()", "the process of --target (a model has its own)"
    )
    flags.DEFINE_string(
        "samplers", "", "specs separated by ';', each with @grid if it wants its own; '': a dozen"
    )
    flags.DEFINE_string(
        "others",
        "",
        "workdirs of other models of the same data, with commas, each by its own sampler",
    )
    flags.DEFINE_string(
        "features",
        "",
        "features of the images' Fréchet distance, as in experiments.evaluate (default pixels up to "
        "1,000 numbers an image, else classifier)",
    )
    flags.DEFINE_string(
        "nfe", sampler_comparison.BUDGETS, "network evaluations per sample, one column each"
    )
    values.integer_flag(
        "num",
        None,
        "samples in a cell; by default 200 images, 2000 points of a target",
        2,
        1_000_000,
    )
    flags.DEFINE_string("seeds", "", "instead of --num, the seeds themselves, such as 1000-1199")
    flags.DEFINE_enum(
        "noise",
        None,
        ["independent", "brownian"],
        "instead of the config's; brownian: one path for all budgets",
    )
    values.path_flag("out", "", "where to write; by default the workdir, or runs/compare_TARGET")
    flags.DEFINE_bool("fresh", False, "make every cell anew")
    flags.DEFINE_bool("list", False, "print every sampler, grid, target and process, and stop")
    cli.launch(main, config="workdir", without=("list", "target"), short=("guidance",))
