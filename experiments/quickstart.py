"""From nothing to pictures in a few minutes: train on the embedded digits, sample, and compare four samplers.

python -m experiments.quickstart            (or: make quickstart)
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from absl import flags

from experiments import cli, compare_samplers, evaluate, train

SAMPLERS = ["ancestral.ddpm", "ancestral.ddim", "ode.heun@quadratic", "multistep.dpmpp_2m@uniform_logsnr"]
BUDGETS = [5, 10, 20, 50]


def main(config) -> None:
    import jax

    from diffusion_jax import experiment, provenance
    from diffusion_jax import workdir as folder

    began, root = time.monotonic(), Path(flags.FLAGS.workdir)
    if not train.train(config, str(root)):
        return
    print("\nSampling ...", file=sys.stderr)
    trained, dataset = folder.load(root, config), folder.dataset(config, root)
    samples(trained, dataset, root / "samples.png")
    denoising(trained, dataset, root / "denoising.png")
    result = evaluate.evaluate(trained, dataset, 500, 1, 500)
    record = {"provenance": provenance.provenance(config.to_dict(), config.seed)}
    record |= {"step": trained.step, "weights": trained.weights}
    compare_samplers.compare_model(trained, dataset, config.data.name, SAMPLERS, BUDGETS, range(flags.FLAGS.num),
                                   root / "compare", root / "samplers", record)  # fmt: skip
    provenance.save_json(root / "evaluation.json", result | record)
    nfe = experiment.evaluations(experiment.plan(trained.experiment))
    print(f"""
{evaluate.report(result)}

({nfe} evaluations of {config.sampler.name}, 500 images; {time.monotonic() - began:.0f} s in all on {jax.device_count()} {jax.default_backend()} device)

{root}/
    samples.png                    a grid of samples, one row per class
    denoising.png                  x_t and the model's x0-hat on the way from noise to data
    loss.png                       the loss, and the loss by noise level
    samplers.html                  four samplers at {', '.join(map(str, BUDGETS))} evaluations: the best, curves, pictures, numbers
    samplers.png, samplers_strips.png
    metrics.jsonl, tensorboard/    every number of the run
    config.json, checkpoints/      what experiments.sample and a resumed run need

Try next:
    python -m experiments.sample --workdir={root} --labels=3,7 --num=20 --config.sampler.guidance=2
    python -m experiments.compare_samplers --workdir={root}
    python -m experiments.train --config=configs/digits.py:flow --workdir=runs/flow
""")


def samples(trained, dataset, path: Path, columns: int = 10) -> None:
    """A grid, one row per class, from seeds 0, 1, ...; of a model without classes eight rows."""
    import numpy as np

    from diffusion_jax import experiment, plotting
    from diffusion_jax.evaluation import generate

    built = trained.experiment
    rows = trained.data["class_names"] if built.num_classes else []
    count = columns * (len(rows) or 8)
    run = experiment.sample_with(built, trained.params, experiment.plan(built))
    x = run(generate.seeds_to_keys(range(count)), _condition(built, dataset, np.arange(count) // columns))
    plotting.save(plotting.image_grid(np.asarray(x), columns, row_labels=rows), path)


def _condition(built, dataset, labels):
    """The condition of these classes; of a model without classes that of as many captions, or None."""
    from diffusion_jax import experiment

    return experiment.cond_for(built, labels) if built.num_classes else experiment.conditions(built, dataset, len(labels))[1]


def denoising(trained, dataset, path: Path, steps: int = 50, shown: int = 10) -> None:
    """x_t and x0-hat at `shown` of the sampler's times, for three images, with the run's own guidance."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from diffusion_jax import experiment, plotting
    from diffusion_jax.evaluation import generate
    from diffusion_jax.samplers import base

    built = trained.experiment
    plan = experiment.plan(built, nfe=steps)
    labels = np.array([2, 5, 8]) % max(built.num_classes, 1)

    @jax.jit
    def run(params, keys, cond):
        denoise = experiment.denoiser(built, params, scale=jnp.float32(plan.guidance) if plan.guided else None, clip=plan.clip)
        x = base.start(built.process, keys, (len(labels), *built.shape))
        watch = lambda x, t: (x, denoise(x, t, cond).x0)  # noqa: E731
        return base.sample(plan.sampler, denoise, built.process, keys, x, plan.ts, cond, observe=watch)[1]

    x_t, x0 = run(trained.params, generate.seeds_to_keys(range(len(labels))), _condition(built, dataset, labels))
    chosen = np.linspace(0, len(x_t) - 1, shown).round().astype(int)
    plotting.save(plotting.denoising_strip(np.asarray(x_t)[chosen], np.asarray(x0)[chosen], np.asarray(plan.ts)[1:][chosen]), path)


if __name__ == "__main__":
    cli.path_flag("workdir", "runs/quickstart", "where everything goes; run again to resume")
    cli.integer_flag("num", 200, "images of each sampler in the comparison", 20, 1_000_000)
    cli.launch(main, config="file", default="configs/digits.py:vp")
