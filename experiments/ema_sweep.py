"""How long the weights should have been averaged: samples of one training run under power EMAs of many lengths.

python -m experiments.ema_sweep --workdir=runs/a --lengths=0.02,0.05,0.1,0.15,0.2 --num=1000

The run must have kept snapshots (--config.ema.powers='(0.05,0.1)'); every length is made from them (Karras et al. 2024, EDM2,
section 3.2). All lengths draw the same seeds. Prints a table and writes ema_sweep.md, .png and .json into the workdir. Lengths
that ema_sweep.json has already are not made again; --config.sampler.ema='post_hoc(LENGTH)' uses the best one anywhere else.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from absl import flags

from experiments import cli

DOUBTFUL = 0.1  # a misfit above this makes another average than the one asked for


def scorer(built, dataset, count: int, repeats: int, batch_size: int, **how) -> Callable:
    """params -> the scores of `repeats` sets of `count` images, from the same disjoint seeds every time; compiled once.

    how: features, metrics of judge.against.
    """
    import jax.numpy as jnp

    from diffusion_jax import experiment
    from diffusion_jax.evaluation import generate, judge

    chosen, (labels, cond) = experiment.plan(built), experiment.conditions(built, dataset, count)
    judged = judge.against(dataset.train, labels, held_out=dataset.test, count=count, **how)
    run = experiment.sample_fn(built, chosen.sampler, guided=chosen.guided, clip=chosen.clip, noise=chosen.noise)

    def score(params) -> list[dict[str, float]]:
        sets = []
        for first in range(0, repeats * count, count):
            draw = lambda keys, cond: run(params, keys, cond, chosen.ts, jnp.float32(chosen.guidance))  # noqa: E731
            keys = generate.seeds_to_keys(range(first, first + count))
            sets.append(judged(generate.generate(draw, keys, cond, batch_size=min(batch_size, count))))
        return sets

    return score


def sweep(lengths: Sequence[float], make: Callable, score: Callable, path: Path, told: Mapping) -> list[dict]:
    """A row {'length', 'misfit', 'sets'} for each length; written to `path` after each, and taken from there if told agrees."""
    from diffusion_jax import provenance, reading

    set_of = reading.table(reading.number(finite=False))
    row = reading.record({"length": reading.number(0), "misfit": reading.number(), "sets": reading.items(set_of, least=1)})
    rule = reading.record({"rows": reading.items(row)})
    told, kept = provenance.plain(told), reading.kept(path, lambda path: reading.json_file(path, rule)) or {}
    same = {key: kept.get(key) for key in told} == told
    rows = {row["length"]: row for row in kept["rows"]} if same else {}
    for i, length in enumerate(lengths):
        if length in rows:
            continue
        print(f"length {length:g} ({i + 1} of {len(lengths)})", file=sys.stderr, flush=True)
        made = make(length)
        rows[length] = {"length": length, "misfit": made.misfit, "sets": score(made.params)}
        record = {"rows": [rows[key] for key in sorted(rows)], "provenance": provenance.provenance(told["config"])}
        provenance.save_json(path, {**told, **record})
    return [rows[length] for length in sorted(lengths)]


def means(rows: Sequence[Mapping]) -> list[dict]:
    """Rows {'length', 'misfit', metric: (mean, std over sets)}."""
    import numpy as np

    def over(values):
        return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0

    return [{"length": row["length"], "misfit": row["misfit"]}
            | {metric: over([scores[metric] for scores in row["sets"]]) for metric in row["sets"][0]} for row in rows]  # fmt: skip


def report(rows: Sequence[Mapping]) -> str:
    """The table in markdown; a length that the snapshots do not really give is marked."""
    from diffusion_jax.provenance import markdown_table

    from experiments.evaluate import title_of

    metrics = [key for key in rows[0] if key not in ("length", "misfit")]
    show = lambda mean, std: f"{mean:.4g}" + (f" ± {std:.2g}" if std else "")  # noqa: E731
    shown = [{"length": f"{row['length']:g}" + "*" * (row["misfit"] > DOUBTFUL), "misfit": f"{100 * row['misfit']:.2g} %"}
             | {metric: show(*row[metric]) for metric in metrics} for row in rows]  # fmt: skip
    table = markdown_table(shown, {"length": "length", "misfit": "misfit"} | {m: title_of(m) for m in metrics})
    return table + ("\n*: too few snapshots for this length\n" if any(row["misfit"] > DOUBTFUL for row in rows) else "")


def lengths_of(text: str) -> list[float]:
    """'0.05,0.1' -> [0.05, 0.1]. UserError for anything else, and for lengths that no power EMA has."""
    from diffusion_jax.errors import UserError
    from diffusion_jax.training import ema

    try:
        found = sorted({float(part) for part in text.split(",")})
    except ValueError:
        raise UserError(f"--lengths={text}: write relative lengths with commas, such as 0.05,0.1,0.15") from None
    for length in found:
        ema.gamma(length)
    return found


def main(config) -> None:
    import jax

    from diffusion_jax import experiment, plotting, provenance
    from diffusion_jax import workdir as folder
    from diffusion_jax.evaluation import judge
    from diffusion_jax.training import post_hoc

    FLAGS = flags.FLAGS
    root, lengths, metrics = Path(FLAGS.workdir), lengths_of(FLAGS.lengths), cli.metrics(FLAGS.metrics)
    features, metrics = judge.spelled(cli.names(FLAGS.features), metrics)
    judge.named(metrics)
    config.sampler.ema = f"post_hoc({lengths[0]:g})"
    trained = folder.load(root, config)  # tells at once if there are no snapshots
    experiment.need_images(trained.experiment)
    dataset = folder.images(config, FLAGS.workdir)
    features = features or [judge.default_features(dataset.train)]
    template = jax.eval_shape(lambda: trained.params)
    sampler = {key: value for key, value in config.sampler.items() if key not in ("ema", "batch_size")}
    told = {"num": FLAGS.num, "repeats": FLAGS.repeats, "features": features, "metrics": metrics, "step": trained.step,
            "snapshots": len(post_hoc.steps(root / "ema_snapshots")),
            "config": config.to_dict() | {"sampler": sampler}}  # fmt: skip
    rows = means(sweep(
        lengths, lambda length: post_hoc.reconstruct(root / "ema_snapshots", length, template, step=trained.step),
        scorer(trained.experiment, dataset, FLAGS.num, FLAGS.repeats, config.sampler.batch_size, features=features,
               metrics=metrics), root / "ema_sweep.json", told))  # fmt: skip
    title = f"Power EMAs of {root.name} at step {trained.step}: {FLAGS.repeats} x {FLAGS.num} images, {config.sampler.name}"
    text = f"# {title}\n\n{report(rows)}"
    provenance.save_text(root / "ema_sweep.md", text)
    plotting.lengths(rows, root / "ema_sweep.png", title=title)
    print(text)


if __name__ == "__main__":
    cli.path_flag("workdir", None, "the folder of a trained model", required=True)
    flags.DEFINE_string("lengths", "0.02,0.05,0.1,0.15,0.2", "standard deviations of the weights, as shares of the run")
    cli.integer_flag("num", 1000, "images in each set", 10, 1_000_000)
    cli.integer_flag("repeats", 1, "sets, from disjoint seeds", 1, 1000)
    flags.DEFINE_string("features", "", "features of the images, as in experiments.evaluate")
    flags.DEFINE_string("metrics", "accuracy,frechet", "as in experiments.evaluate")
    cli.launch(main, config="workdir")
