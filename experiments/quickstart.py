"""From nothing to pictures in a few minutes: train on the embedded digits, sample, and compare four
samplers.

python -m experiments.quickstart            (or: make quickstart)
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import jax
from absl import flags

from diffusion_jax import files, provenance
from diffusion_jax.assembly import sampling, train, workdir
from diffusion_jax.studies import evaluation, quickstart, sampler_comparison
from experiments import cli, values


def main(config) -> None:

    began, root = time.monotonic(), Path(flags.FLAGS.workdir)
    if not train.train(config, str(root)):
        return
    print("\nSampling ...", file=sys.stderr)
    trained, dataset = workdir.load(root, config), workdir.dataset(config, root)
    quickstart.samples(trained, dataset, root / "samples.png")
    quickstart.denoising(trained, dataset, root / "denoising.png")
    result = evaluation.score_samples(trained, dataset, 500, 1, 500)
    record = {"provenance": provenance.provenance(config.to_dict(), config.seed)}
    record |= {"step": trained.step, "weights": trained.weights}
    sampler_comparison.compare_model(
        trained,
        dataset,
        config.data.name,
        quickstart.SAMPLERS,
        quickstart.BUDGETS,
        range(flags.FLAGS.num),
        root / "compare",
        root / "samplers",
        record,
    )
    files.save_json(root / "evaluation.json", result | record)
    nfe = sampling.evaluations(sampling.plan(trained.experiment))
    print(f"""
{evaluation.report(result)}

({nfe} evaluations of {config.sampler.name}, 500 images; {time.monotonic() - began:.0f} s in all on {jax.device_count()} {jax.default_backend()} device)

{root}/
    samples.png                    a grid of samples, one row per class
    denoising.png                  x_t and the model's x0-hat on the way from noise to data
    loss.png                       the loss, and the loss by noise level
    samplers.html                  four samplers at {", ".join(map(str, quickstart.BUDGETS))} evaluations: the best, curves, pictures, numbers
    samplers.png, samplers_strips.png
    metrics.jsonl, tensorboard/    every number of the run
    config.json, checkpoints/      what experiments.sample and a resumed run need

Try next:
    python -m experiments.sample --workdir={root} --labels=3,7 --num=20 --config.sampler.guidance=2
    python -m experiments.compare_samplers --workdir={root}
    python -m experiments.train --config=configs/digits.py:flow --workdir=runs/flow
""")


if __name__ == "__main__":
    values.path_flag("workdir", "runs/quickstart", "where everything goes; run again to resume")
    values.integer_flag("num", 200, "images of each sampler in the comparison", 20, 1_000_000)
    cli.launch(main, config="file", default="configs/digits.py:vp")
