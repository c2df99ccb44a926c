"""Samples judged at several lengths of the weights' moving average: the command ema_sweep."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from diffusion_jax import data
from diffusion_jax.assembly import denoiser, experiment, sample_conditions, sampling
from diffusion_jax.assembly import workdir as workdirs
from diffusion_jax.assembly.settings import Experiment
from diffusion_jax.assembly.workdir import Trained
from diffusion_jax.core import files, parsing, reading
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Array, Cond, Key, Params
from diffusion_jax.evaluation import choice, generate, judge
from diffusion_jax.evaluation.metrics import find
from diffusion_jax.report import sweeps
from diffusion_jax.report.tables import markdown_table
from diffusion_jax.studies import store
from diffusion_jax.training import ema, post_hoc

DOUBTFUL = 0.1  # a misfit above this gives another average than the requested one

Sets = list[dict[str, float]]  # the scores of each set of images


def ema_sweep(
    config: ConfigDict,
    *,
    workdir: str,
    lengths: str,
    num: int,
    repeats: int,
    features: str,
    metrics: str,
) -> None:
    """Judge the samples of a run under averages of several lengths, and print the table.

    Args:
      config: the config of the workdir, with what the command line changes.
      workdir: the folder of the run.
      lengths: standard deviations of the averages as shares of the run, separated by commas.
      num: images in each set.
      repeats: sets, from disjoint seeds.
      features: the features of the images, separated by commas; '' for the default ones.
      metrics: separated by commas.

    Raises:
      UserError: for a run without snapshots, a length that no power EMA has, and unknown metrics.
    """
    root, values = Path(workdir), lengths_of(lengths)
    names, scores = choice.resolve_names(parsing.names(features), parsing.metrics(metrics))
    choice.check_metrics(scores)
    config.sampler.ema = f"post_hoc({values[0]:g})"
    trained = workdirs.load(root, config)  # raises at once if there are no snapshots
    experiment.need_images(trained.experiment)
    dataset = workdirs.images(config, workdir)
    how = {
        "features": names or [choice.default_features(dataset.train)],
        "metrics": scores,
    }
    score = scorer(
        trained.experiment, dataset, num, repeats, trained.experiment.sampling.batch_size, **how
    )
    settings = _settings(trained, root) | {"num": num, "repeats": repeats} | how
    make = _averages(root, trained)
    rows = means(sweep(values, make, score, root / "ema_sweep.json", settings))
    title = (
        f"Power EMAs of {root.name} at step {trained.step}: {repeats} x {num} images, "
        f"{trained.experiment.sampling.name}"
    )
    text = f"# {title}\n\n{report(rows)}"
    files.save_text(root / "ema_sweep.md", text)
    sweeps.lengths(rows, root / "ema_sweep.png", title=title)
    print(f"{text}\n{root / 'ema_sweep.png'} shows it; to use a length:")
    print(f"python -m experiments.sample --workdir={root} --config.sampler.ema='post_hoc(LENGTH)'")


def lengths_of(text: str) -> list[float]:
    """Parse the lengths of a flag: '0.1,0.05' -> [0.05, 0.1].

    Args:
      text: relative lengths (sigma_rel of EDM2: the width of the average as a share of the training
        time), separated by commas.

    Returns:
      The distinct lengths in increasing order.

    Raises:
      UserError: for anything that is not a number, and for a length that no power EMA has.
    """
    try:
        found = sorted({float(part) for part in text.split(",")})
    except ValueError:
        raise UserError(
            f"--lengths={text}: write relative lengths with commas, such as 0.05,0.1,0.15"
        ) from None
    for length in found:
        ema.gamma(length)
    return found


def _settings(trained: Trained, root: Path) -> dict[str, Any]:
    """The settings on which every row depends: the run, its snapshots and the sampler."""
    varied = ("ema", "batch_size")
    record = trained.experiment.record
    sampler = {key: value for key, value in record["sampler"].items() if key not in varied}
    return {
        "step": trained.step,
        "snapshots": len(post_hoc.steps(root / "ema_snapshots")),
        "config": record | {"sampler": sampler},
    }


def _averages(root: Path, trained: Trained) -> Callable[[float], post_hoc.Reconstructed]:
    """Length -> the average of the run's weights of that length, from its snapshots."""
    template = jax.eval_shape(lambda: trained.params)
    snapshots = root / "ema_snapshots"
    return lambda length: post_hoc.reconstruct(snapshots, length, template, step=trained.step)


def scorer(
    model: Experiment,
    dataset: data.Dataset,
    count: int,
    repeats: int,
    batch_size: int,
    **how: Any,
) -> Callable[[Params], Sets]:
    """A function of parameters: the scores of `repeats` sets of `count` images each.

    The sets have disjoint seeds, the same for all parameters; the sampler is compiled once.

    Args:
      model: the experiment of the parameters.
      dataset: what the images are judged against.
      count: images in each set.
      repeats: sets.
      batch_size: images that are drawn at once.
      **how: features and metrics of `judge.against`.
    """
    plan, (labels, cond) = (
        sampling.method(model),
        sample_conditions.for_judging(model, dataset, count),
    )
    judged = judge.against(dataset.train, labels, held_out=dataset.test, count=count, **how)
    run = sampling.sample_fn(
        model, plan.sampler, guided=plan.guided, clip=plan.clip, noise=plan.noise
    )
    batch = min(batch_size, count)

    def score(params: Params) -> Sets:
        networks = denoiser.ensemble(model, params)

        def draw(keys: Key, cond: Cond) -> Array:
            return run(networks, keys, cond, plan.ts, jnp.float32(plan.guidance))

        sets = []
        for first in range(0, repeats * count, count):
            keys = generate.seeds_to_keys(range(first, first + count))
            sets.append(judged(generate.generate(draw, keys, cond, batch_size=batch)))
        return sets

    return score


def sweep(
    lengths: Sequence[float],
    make: Callable[[float], post_hoc.Reconstructed],
    score: Callable[[Params], Sets],
    path: Path,
    settings: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Score every length that the file does not hold.

    Args:
      lengths: the lengths.
      make: length -> the average of that length.
      score: parameters -> the scores of each set.
      path: the JSON file, written after each length.
      settings: what every row depends on; 'config' among it.

    Returns:
      A row {'length', 'misfit', 'sets'} for each length, in ascending order.
    """
    set_of = reading.table(reading.number(finite=False))
    row = reading.record(
        {
            "length": reading.number(0),
            "misfit": reading.number(),
            "sets": reading.items(set_of, least=1),
        }
    )
    rule = reading.record({"rows": reading.items(row)})
    table = store.open_table(path, settings, rule, config=settings["config"])

    def measure(length: float, place: str) -> dict[str, Any]:
        print(f"length {length:g} ({place})", file=sys.stderr, flush=True)
        made = make(length)
        return {"misfit": made.misfit, "sets": score(made.params)}

    rows = []
    for i, length in enumerate(lengths):
        make_row = functools.partial(measure, length, f"{i + 1} of {len(lengths)}")
        rows.append(store.row(table, {"length": length}, make_row))
    return sorted(rows, key=lambda row: row["length"])


def means(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Average the scores of each length over its sets of images.

    Args:
      rows: for each length {'length', 'misfit', 'sets': [{metric: score}, ...]}.

    Returns:
      For each length {'length', 'misfit', metric: (mean, standard deviation over the sets)}; the
      deviation is 0 for one set.
    """

    def over(values: Sequence[float]) -> tuple[float, float]:
        return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0

    return [
        {"length": row["length"], "misfit": row["misfit"]}
        | {metric: over([scores[metric] for scores in row["sets"]]) for metric in row["sets"][0]}
        for row in rows
    ]


def report(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write a Markdown table, with an asterisk at lengths that the snapshots approximate badly.

    Args:
      rows: the rows of `means`. A misfit is the relative error of the average that is made from the
        snapshots, and more than DOUBTFUL of it is marked.
    """
    metrics = [key for key in rows[0] if key not in ("length", "misfit")]

    def show(mean: float, std: float) -> str:
        return f"{mean:.4g}" + (f" ± {std:.2g}" if std else "")

    shown = [
        {
            "length": f"{row['length']:g}" + "*" * (row["misfit"] > DOUBTFUL),
            "misfit": f"{100 * row['misfit']:.2g} %",
        }
        | {metric: show(*row[metric]) for metric in metrics}
        for row in rows
    ]
    titles = {metric: find(metric, "pixels").title for metric in metrics}
    table = markdown_table(shown, {"length": "length", "misfit": "misfit"} | titles)
    doubtful = any(row["misfit"] > DOUBTFUL for row in rows)
    return table + ("\n*: too few snapshots for this length\n" if doubtful else "")
