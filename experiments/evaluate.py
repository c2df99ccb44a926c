"""How good a trained model's images are: recognition and Frechet distance, with the spread over sampling seeds.

python -m experiments.evaluate --workdir=runs/a --num=1000 --repeats=5

Prints a table beside what real test images score, and writes evaluation.json into the workdir.
"""

from __future__ import annotations

import sys
from pathlib import Path

from absl import flags

from experiments import cli


def evaluate(trained, dataset, count: int, repeats: int, batch_size: int) -> dict:
    """Scores of `repeats` sets of `count` images from disjoint seeds: {'sets': [...], 'mean': {...}, 'std': {...}, 'real': {...}}."""
    import numpy as np

    from diffusion_jax import experiment
    from diffusion_jax.evaluation import generate, judge

    built = trained.experiment
    labels = np.arange(count) % built.num_classes if built.num_classes else np.zeros(0, int)
    judged = judge.against(dataset.train, labels if built.num_classes else None)
    run, sets = experiment.sample_with(built, trained.params, experiment.plan(built)), []
    for repeat in range(repeats):
        keys = generate.seeds_to_keys(range(repeat * count, (repeat + 1) * count))
        images = generate.generate(run, keys, experiment.cond_for(built, labels), batch_size=min(batch_size, count))
        sets.append(judged(images))
    over = lambda how: {name: float(how([scores[name] for scores in sets])) for name in sets[0]}  # noqa: E731
    return {"sets": sets, "mean": over(np.mean), "std": over(lambda x: np.std(x, ddof=1) if len(x) > 1 else 0.0),
            "real": judge.on_real(dataset.train, dataset.test)}  # fmt: skip


def report(result: dict) -> str:
    """The result as a table of two lines."""
    from diffusion_jax.provenance import markdown_table

    show = {"accuracy": lambda m, s: f"{100 * m:.2f} %" + (f" ± {100 * s:.2f}" if s else ""),
            "frechet": lambda m, s: f"{m:.3f}" + (f" ± {s:.3f}" if s else "")}  # fmt: skip
    model = {name: show[name](result["mean"][name], result["std"][name]) for name in result["mean"]}
    real = {name: show[name](result["real"][name], 0) for name in result["mean"] if name in result["real"]}
    columns = {"images": "images", "accuracy": "recognised", "frechet": "Frechet (pixels)"}
    return markdown_table([{"images": "samples"} | model, {"images": "real test images"} | real],
                          {k: v for k, v in columns.items() if k == "images" or k in model})  # fmt: skip


def main(config) -> None:
    from diffusion_jax import experiment, provenance
    from diffusion_jax import workdir as folder

    FLAGS = flags.FLAGS
    trained = folder.load(FLAGS.workdir, config)
    experiment.need_images(trained.experiment)
    nfe = experiment.evaluations(experiment.plan(trained.experiment))
    print(f"{FLAGS.workdir}: step {trained.step}, weights {trained.weights}, {config.sampler.name}, grid {config.sampler.grid}, "
          f"NFE {nfe}, guidance {config.sampler.guidance}; {FLAGS.repeats} x {FLAGS.num} images", file=sys.stderr)  # fmt: skip
    result = evaluate(trained, experiment.dataset(config), FLAGS.num, FLAGS.repeats, config.sampler.batch_size)
    provenance.save_json(Path(FLAGS.workdir) / "evaluation.json", result | {
        "num": FLAGS.num, "repeats": FLAGS.repeats, "sampler": config.sampler.to_dict(), "evaluations": nfe, "step": trained.step,
        "weights": trained.weights, "provenance": provenance.provenance(config.to_dict(), config.seed)})  # fmt: skip
    print(report(result))


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "the folder of a trained model", required=True)
    flags.DEFINE_integer("num", 1000, "images in each set", lower_bound=2)
    flags.DEFINE_integer("repeats", 3, "sets, from disjoint seeds", lower_bound=1)
    cli.launch(main, config="workdir")
