"""The benchmark of samplers: their time against that of bare network evaluations."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, NamedTuple

import jax
import numpy as np

from diffusion_jax.assembly import denoiser
from diffusion_jax.assembly.sampling import SamplingMethod, method, with_sampler
from diffusion_jax.assembly.sampling import evaluations as evaluations_of
from diffusion_jax.assembly.sampling import grid as grid_of
from diffusion_jax.assembly.settings import Experiment
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Array, Cond, Denoise, Key, Params
from diffusion_jax.evaluation import generate
from diffusion_jax.processes import gaussian
from diffusion_jax.samplers import base
from diffusion_jax.studies.benchmark.timing import (
    BenchmarkSettings,
    BenchmarkSubject,
    Part,
    compiled,
    take_turns,
)

SAMPLERS = (
    "ancestral.ddim",
    "ancestral.ddpm",
    "ode.edm_heun",
    "singlestep.dpmpp_3s",
    "multistep.dpmpp_2m",
    "multistep.dpmpp_3m",
    "multistep.deis",
    "multistep.unipc",
    "multistep.pndm",
    "sde.dpmpp_2m",
    "sde.sa",
    "sde.edm",
)
COLUMNS = {
    "config": "config",
    "sampler": "sampler",
    "batch": "batch",
    "evaluations": "NFE",
    "overhead_percent": "overhead, %",
    "overhead_median_percent": "of medians, %",
    "own_percent": "own work, %",
    "milliseconds": "a batch, ms",
    "bare_milliseconds": "bare, ms",
    "images_per_second": "images/s",
    "compile_seconds": "compile, s",
}


class Programs(NamedTuple):
    """Compiled programs without arguments.

    Attributes:
      bare: evaluations -> that many bare network evaluations.
      whole: sampler -> a run of it.
      own: sampler -> a run of it on a denoiser that costs nothing.
      compile_seconds: sampler -> seconds that the compilation of its run took.
    """

    bare: dict[int, Callable[[], Any]]
    whole: dict[str, Callable[[], Any]]
    own: dict[str, Callable[[], Any]]
    compile_seconds: dict[str, float]


def sampling(subject: BenchmarkSubject, settings: BenchmarkSettings) -> Part:
    """Time samplers, with fresh weights, without guidance or clipping.

    Args:
      subject: the config and its data.
      settings: samplers, nfe, batch_size, repeats.

    Returns:
      A row for every sampler: its time, that of the bare evaluations, the overhead in percent,
      compilation, images per second.
    """
    experiment, batch = subject.experiment, settings.batch_size
    chosen = methods_of(experiment, settings.samplers, settings.nfe)
    evaluations = {entry: evaluations_of(resolved) for entry, resolved in chosen.items()}
    seed = jax.random.key(experiment.seed)
    params = jax.jit(lambda key: experiment.kind.init(experiment, key))(seed)
    programs = _programs(experiment, params, chosen, evaluations, batch)
    own = take_turns(programs.own, 3 * settings.repeats)
    seconds = take_turns({**programs.bare, **programs.whole}, settings.repeats)
    rows = [
        {"config": subject.title, "what": entry, "batch": batch}
        | row(
            entry,
            n,
            batch,
            programs.compile_seconds[entry],
            seconds[entry],
            seconds[n],
            own[entry],
        )
        for entry, n in evaluations.items()
    ]
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    each = min(min(seconds[n]) / n for n in programs.bare) / batch
    shape = " x ".join(map(str, experiment.shape))
    facts = (
        f"{experiment.specs.model} of {size / 1e6:.2f} million parameters on {shape}, "
        f"batch {batch}; a bare evaluation takes {1e3 * each:.3g} ms an image. "
        f"The shortest of {settings.repeats} times."
    )
    return Part(rows, COLUMNS, facts)


def methods_of(
    experiment: Experiment, entries: Sequence[str], nfe: int
) -> dict[str, SamplingMethod]:
    """The sampling method of each entry, 'sampler' or 'sampler@grid'.

    Args:
      experiment: the model, whose grid an entry without one has.
      entries: the samplers.
      nfe: network evaluations per image.

    Raises:
      UserError: for an adaptive sampler, a budget below one step, and no entries at all.
    """
    found = {}
    for entry in dict.fromkeys(entries):
        name, _, grid = entry.partition("@")
        settings = with_sampler(experiment.sampling, name)
        changes = {"grid": grid} if grid else {}
        found[entry] = resolved = method(experiment, settings._replace(nfe=nfe, **changes))
        if base.adaptive(resolved.sampler) or len(resolved.ts) < 2:
            raise UserError(
                f"--samplers={entry} --nfe={nfe}: needed are fixed steps, and a budget that buys "
                "one"
            )
    if not found:
        raise UserError("--samplers is empty; give names, separated by ';'")
    return found


def bare(experiment: Experiment, params: Params, x: Array, cond: Cond, ts: Array) -> Array:
    """Evaluate the network at the times ts in turn: the least that any sampler does.

    Args:
      experiment: the model.
      params: its parameters.
      x: (B, ...).
      cond: the condition.
      ts: (n,) times.

    Returns:
      x, up to rounding, which depends on all evaluations.
    """
    denoise, process = denoiser.denoiser(experiment, params, clip="none"), experiment.process

    def evaluate(x: Array, t: Array) -> tuple[Array, None]:
        x0, eps = denoise(x, t, cond)[:2]
        return process.alpha(t) * x0 + process.sigma(t) * eps, None  # = x

    return jax.lax.scan(evaluate, x, ts)[0]


def inputs(experiment: Experiment, batch: int) -> tuple[Key, Array, Cond]:
    """The inputs of a sampler.

    Args:
      experiment: the model.
      batch: images at once.

    Returns:
      (keys (B,), x_T (B, ...), the condition: all classes in turn).
    """
    classes = experiment.num_classes
    keys = generate.seeds_to_keys(range(batch))
    x = base.start(experiment.process, keys, (batch, *experiment.shape))
    return keys, x, experiment.conditions.of_labels(np.arange(batch) % classes if classes else ())


def _programs(
    experiment: Experiment,
    params: Params,
    chosen: dict[str, SamplingMethod],
    evaluations: dict[str, int],
    batch: int,
) -> Programs:
    """Compile everything that is timed."""
    process = experiment.process
    keys, x, cond = inputs(experiment, batch)

    def network(params: Params) -> Denoise:
        return denoiser.denoiser(experiment, params, clip="none")

    def nothing(params: Params) -> Denoise:
        return lambda x, t, cond=None: gaussian.from_eps(process, x, 0.9 * x, t)

    def run_of(sampler: base.Sampler, denoise_by: Callable[[Params], Denoise]) -> Callable:
        def run(params: Params, keys: Key, x: Array, cond: Cond, ts: Array) -> Array:
            denoise = denoise_by(params)
            return base.sample(sampler, denoise, process, keys, x, ts, cond, padded=True).x0

        return run

    found = Programs({}, {}, {}, {})
    for n in sorted(set(evaluations.values())):
        args = params, x, cond, grid_of(experiment, "uniform", n)
        found.bare[n], _ = _compile(
            f"{n} bare evaluations", functools.partial(bare, experiment), args
        )
    for entry, resolved in chosen.items():
        args = params, keys, x, cond, resolved.ts
        found.whole[entry], seconds = _compile(entry, run_of(resolved.sampler, network), args)
        found.compile_seconds[entry] = seconds
        own, _ = compiled(run_of(resolved.sampler, nothing), *args)
        found.own[entry] = functools.partial(own, *args)
    return found


def _compile(
    title: str, function: Callable, args: tuple[Any, ...]
) -> tuple[Callable[[], Any], float]:
    """The compiled function with its arguments, and the seconds of its compilation."""
    program, seconds = compiled(function, *args)
    print(f"{title}: compiled in {seconds:.1f} s", file=sys.stderr, flush=True)
    return functools.partial(program, *args), seconds


def row(
    entry: str,
    evaluations: int,
    batch: int,
    compile_seconds: float,
    whole: list[float],
    network: list[float],
    own: list[float],
) -> dict[str, Any]:
    """The numbers of a sampler.

    Args:
      entry: the sampler.
      evaluations: network evaluations per image.
      batch: images at once.
      compile_seconds: seconds of its compilation.
      whole: seconds of its runs.
      network: seconds of as many bare evaluations.
      own: seconds of its runs on a denoiser that costs nothing.
    """

    def percent(a: float, b: float) -> float:
        return round(100 * a / b, 2)

    return {
        "sampler": entry,
        "evaluations": evaluations,
        "compile_seconds": round(compile_seconds, 1),
        "overhead_percent": percent(min(whole) - min(network), min(network)),
        "overhead_median_percent": percent(median(whole) - median(network), median(network)),
        "own_percent": percent(min(own), min(network)),
        "milliseconds": 1e3 * min(whole),
        "bare_milliseconds": 1e3 * min(network),
        "images_per_second": batch / min(whole),
        "seconds": whole,
        "bare_seconds": network,
        "own_seconds": own,
    }
