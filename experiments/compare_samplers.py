"""Samplers side by side on one trained model, from the same seeds: pictures, recognition, Frechet distance and seconds.

python -m experiments.compare_samplers --workdir=runs/a --samplers='ancestral.ddim;ode.edm_heun@karras' --nfe=5,10,20,50

Writes compare.png, compare.md and compare.json into the workdir. A sampler is a spec, with @grid where it wants another grid than the
config's; all NFE of a sampler run in one compiled program.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from absl import flags

from experiments import cli

SAMPLERS = "ancestral.ddpm;ancestral.ddim;sde.euler_maruyama;ode.heun@quadratic"


def compare(trained, dataset, samplers: str, budgets: list[int], count: int) -> tuple[list[dict], dict]:
    """One row and one batch of images per (sampler, NFE): the same `count` seeds and labels everywhere.

    rows: sampler, grid, nfe (asked), evaluations (made), seconds_per_image (compilation excluded), frechet, and accuracy where the model has
    classes. A sampler whose images are not finite gets a row that says so.
    """
    import jax.numpy as jnp
    import numpy as np

    from diffusion_jax import experiment
    from diffusion_jax.errors import UserError
    from diffusion_jax.evaluation import generate, judge

    built, config = trained.experiment, trained.experiment.config
    labels = np.arange(count) % built.num_classes if built.num_classes else np.zeros(0, int)
    cond, keys = experiment.cond_for(built, labels), generate.seeds_to_keys(range(count))
    judged = judge.against(dataset.train, labels if built.num_classes else None)
    rows, pictures = [], {}
    for entry in filter(None, (part.strip() for part in samplers.split(";"))):
        name, _, grid = entry.partition("@")
        grid = grid or config.sampler.grid
        plans = [experiment.plan(built, name=name, grid=grid, nfe=nfe) for nfe in budgets]
        run = experiment.sample_fn(built, plans[0].sampler, guided=config.sampler.guidance != 1.0, clip=config.sampler.clip)
        longest, scale = max(len(plan.ts) for plan in plans), jnp.float32(config.sampler.guidance)
        run(trained.params, keys, cond, experiment.pad(plans[0].ts[:1], longest), scale).block_until_ready()  # compiles, makes no move
        for nfe, plan in zip(budgets, plans):
            began = time.monotonic()
            x = run(trained.params, keys, cond, experiment.pad(plan.ts, longest), scale).block_until_ready()
            seconds = (time.monotonic() - began) / count
            row = {"sampler": entry, "grid": grid, "nfe": nfe, "evaluations": experiment.evaluations(plan), "seconds_per_image": seconds}
            try:
                pictures[entry, nfe] = generate.to_uint8(np.asarray(x))
                row |= judged(pictures[entry, nfe])
            except UserError as error:
                row["note"] = str(error)
            print("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{v}" for k, v in row.items()), file=sys.stderr)
            rows.append(row)
    return rows, pictures


def write(rows: list[dict], pictures: dict, stem: Path, title: str, extra: dict) -> None:
    """stem.png, stem.md and stem.json."""
    from diffusion_jax import plotting, provenance

    plotting.sampler_comparison(pictures, rows, stem.with_suffix(".png"), title=title)
    columns = {"sampler": "sampler", "grid": "grid", "evaluations": "NFE", "recognised": "recognised", "frechet": "Frechet (pixels)",
               "seconds_per_image": "seconds per image"}  # fmt: skip
    shown = [row | ({"recognised": f"{100 * row['accuracy']:.1f} %"} if "accuracy" in row else {}) for row in rows]
    with provenance.atomic_path(stem.with_suffix(".md")) as path:
        path.write_text(f"# {title}\n\n{provenance.markdown_table(shown, columns)}\n", encoding="utf-8")
    provenance.save_json(stem.with_suffix(".json"), {"rows": rows, **extra})


def main(config) -> None:
    from diffusion_jax import experiment, provenance
    from diffusion_jax import workdir as folder

    FLAGS = flags.FLAGS
    trained = folder.load(FLAGS.workdir, config)
    experiment.need_images(trained.experiment)
    rows, pictures = compare(trained, experiment.dataset(config), FLAGS.samplers, cli.integers("nfe", FLAGS.nfe), FLAGS.num)
    stem = Path(FLAGS.workdir) / "compare"
    write(rows, pictures, stem, f"Samplers on {config.data.name} ({Path(FLAGS.workdir).name}): {FLAGS.num} images per cell",
          {"provenance": provenance.provenance(config.to_dict(), config.seed), "step": trained.step, "weights": trained.weights})  # fmt: skip
    print(stem.with_suffix(".md").read_text())


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "the folder of a trained model", required=True)
    flags.DEFINE_string("samplers", SAMPLERS, "specs separated by ';', each with @grid if it wants its own")
    flags.DEFINE_string("nfe", "5,10,20,50", "network evaluations per image, one column each")
    flags.DEFINE_integer("num", 200, "images per cell", lower_bound=1)
    cli.launch(main, config="workdir")
