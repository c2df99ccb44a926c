"""What things cost on this machine. So far: what a sampler costs beyond the evaluations of the network.

python -m experiments.benchmark --config=configs/cifar10.py:vp --samplers='ancestral.ddim;multistep.unipc@karras' --nfe=10

A sampler's overhead is the time of one compiled base.sample against as many bare evaluations in one compiled scan: the same
network with fresh weights, the same batch, no guidance, no clip. All programs take turns in every round, so that what else the
machine does strikes them alike; the shortest time counts, and the median is told beside it. On a busy machine the difference of
two such times is uncertain by some percent. The sampler's own work, timed on a denoiser that costs nothing, is not, though it
misses what network and steps do to each other. Compilation is timed without the cache on disk.

To add a part (training, data): a function (config, settings) -> {'rows', 'columns', 'facts'} in PARTS.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

from absl import flags

from experiments import cli

SAMPLERS = ("ancestral.ddim", "ancestral.ddpm", "ode.edm_heun", "singlestep.dpmpp_3s", "multistep.dpmpp_2m",
            "multistep.dpmpp_3m", "multistep.deis", "multistep.unipc", "multistep.pndm", "sde.dpmpp_2m", "sde.sa",
            "sde.edm")  # fmt: skip


# ---- how time is taken -------------------------------------------------------------------------------------------------------


def compiled(function: Callable, *args) -> tuple[Callable, float]:
    """(the compiled function, the seconds that tracing and compiling took)."""
    import jax

    began = time.perf_counter()
    return jax.jit(function).lower(*args).compile(), time.perf_counter() - began


def take_turns(programs: Mapping[Any, Callable[[], Any]], rounds: int) -> dict[Any, list[float]]:
    """Seconds of every program in every round, until its results are there. Each round begins with another program."""
    import jax

    from diffusion_jax.evaluation.progress import progress

    names, seconds = list(programs), {name: [] for name in programs}
    for program in programs.values():  # first calls load and touch memory; they do not count
        jax.block_until_ready(program())
    with progress(rounds, "measuring", unit="rounds") as advance:
        for i in range(rounds):
            for name in names[i % len(names) :] + names[: i % len(names)]:
                began = time.perf_counter()
                jax.block_until_ready(programs[name]())
                seconds[name].append(time.perf_counter() - began)
            advance(1)
    return seconds


# ---- sampling ----------------------------------------------------------------------------------------------------------------


def bare(built, params, x, cond, ts):
    """The network at the times ts, one after the other: what any sampler must at least do. Returns x, up to rounding."""
    import jax

    from diffusion_jax import experiment

    denoise, process = experiment.denoiser(built, params, clip="none"), built.process

    def look(x, t):
        x0, eps, _ = denoise(x, t, cond)
        return process.alpha(t) * x0 + process.sigma(t) * eps, None  # x again, but only the network's work gets there

    return jax.lax.scan(look, x, ts)[0]


def plans(built, entries: Sequence[str], nfe: int) -> dict:
    """entry -> experiment.Plan, for 'sampler' on the config's grid or 'sampler@grid'. UserError for one that does not fit."""
    from diffusion_jax import experiment
    from diffusion_jax.errors import UserError
    from diffusion_jax.samplers import base

    found = {}
    for entry in dict.fromkeys(entries):
        name, _, grid = entry.partition("@")
        found[entry] = plan = experiment.plan(built, name=name, nfe=nfe, **({"grid": grid} if grid else {}))
        if base.adaptive(plan.sampler) or len(plan.ts) < 2:
            raise UserError(f"--samplers={entry} --nfe={nfe}: needed are fixed steps, and a budget that buys one")
    if not found:
        raise UserError("--samplers= names none; separate them by ';'")
    return found


def sampling(config, settings: Mapping) -> dict:
    """A row for every sampler: its time, that of the bare evaluations, the overhead in percent, compilation, images a second.

    settings: shape (H, W, C), classes, samplers, nfe, batch_size, repeats.
    """
    import jax
    import numpy as np

    from diffusion_jax import experiment
    from diffusion_jax.evaluation import generate
    from diffusion_jax.processes import gaussian
    from diffusion_jax.samplers import base

    built, batch = experiment.assemble(config, settings["shape"], settings["classes"]), settings["batch_size"]
    chosen = plans(built, settings["samplers"], settings["nfe"])
    params = jax.jit(lambda key: experiment.init_params(built, key))(jax.random.key(config.seed))
    keys = generate.seeds_to_keys(range(batch))
    x = base.start(built.process, keys, (batch, *built.shape))
    cond = experiment.cond_for(built, np.arange(batch) % built.num_classes if built.num_classes else ())

    def network(params):
        return experiment.denoiser(built, params, clip="none")

    def nothing(params):
        return lambda x, t, cond=None: gaussian.from_eps(built.process, x, 0.9 * x, t)

    def whole(sampler: base.Sampler, denoiser: Callable) -> Callable:
        return lambda params, keys, x, cond, ts: base.sample(
            sampler, denoiser(params), built.process, keys, x, ts, cond, padded=True)  # fmt: skip

    programs, own, cold, count = {}, {}, {}, {entry: experiment.evaluations(plan) for entry, plan in chosen.items()}
    for n in sorted(set(count.values())):
        args = params, x, cond, experiment.grid(built, config.sampler.grid, n)
        programs[n] = _call(f"{n} bare evaluations", cold, n, lambda *args: bare(built, *args), args)
    for entry, plan in chosen.items():
        args = params, keys, x, cond, plan.ts
        programs[entry] = _call(entry, cold, entry, whole(plan.sampler, network), args)
        own[entry] = functools.partial(compiled(whole(plan.sampler, nothing), *args)[0], *args)
    alone, seconds = take_turns(own, 3 * settings["repeats"]), take_turns(programs, settings["repeats"])
    rows = [_row(entry, n, batch, cold[entry], seconds[entry], seconds[n], alone[entry]) for entry, n in count.items()]
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    each = min(min(seconds[n]) / n for n in set(count.values())) / batch
    shape = " x ".join(map(str, built.shape))
    facts = (f"{config.model.name} of {size / 1e6:.2f} million parameters on {shape}, batch {batch}; a bare "
             f"evaluation takes {1e3 * each:.3g} ms an image. The shortest of {settings['repeats']} times.")  # fmt: skip
    return {"rows": rows, "columns": COLUMNS, "facts": facts}


COLUMNS = {"sampler": "sampler", "evaluations": "NFE", "overhead_percent": "overhead, %",
           "overhead_median_percent": "of medians, %", "own_percent": "own work, %",
           "milliseconds": "a batch, ms", "bare_milliseconds": "bare, ms",
           "images_per_second": "images/s", "compile_seconds": "compile, s"}  # fmt: skip


def _call(title: str, cold: dict, name, function: Callable, args: tuple) -> Callable[[], Any]:
    """The compiled function at these arguments; the seconds of its compilation are put into cold[name]."""
    program, cold[name] = compiled(function, *args)
    print(f"{title}: compiled in {cold[name]:.1f} s", file=sys.stderr, flush=True)
    return functools.partial(program, *args)


def _row(entry: str, evaluations: int, batch: int, cold: float, whole: list, network: list, own: list) -> dict:
    """What is told of a sampler, from the seconds of its runs, of the bare evaluations, and of its runs without a network."""
    percent = lambda a, b: round(100 * a / b, 2)  # noqa: E731
    return {"sampler": entry, "evaluations": evaluations, "compile_seconds": round(cold, 1),
            "overhead_percent": percent(min(whole) - min(network), min(network)),
            "overhead_median_percent": percent(median(whole) - median(network), median(network)),
            "own_percent": percent(min(own), min(network)),
            "milliseconds": 1e3 * min(whole), "bare_milliseconds": 1e3 * min(network),
            "images_per_second": batch / min(whole), "seconds": whole, "bare_seconds": network, "own_seconds": own}  # fmt: skip


# ---- the command -------------------------------------------------------------------------------------------------------------

PARTS = {"sampling": sampling}


def main(config) -> None:
    import jax

    from diffusion_jax import provenance
    from diffusion_jax.errors import UserError

    FLAGS = flags.FLAGS
    jax.config.update("jax_enable_compilation_cache", False)  # compilation is measured
    settings = {name: FLAGS[name].value for name in ("classes", "nfe", "batch_size", "repeats")}
    settings["samplers"] = [part.strip() for part in FLAGS.samplers.split(";") if part.strip()]
    settings["shape"] = cli.integers("shape", FLAGS.shape)
    if len(settings["shape"]) not in (1, 3):
        raise UserError(f"--shape={FLAGS.shape}: write height, width and channels, such as 32,32,3; one number for points")
    found = {name: part(config, settings) for name, part in PARTS.items()}
    record = {"settings": settings, "config": config, "provenance": provenance.provenance(config.to_dict(), config.seed)}
    kept = {name: {key: part[key] for key in ("rows", "facts")} for name, part in found.items()}
    provenance.save_json(FLAGS.out, kept | record)
    for name, part in found.items():
        print(f"## {name}\n\n{part['facts']}\n\n{provenance.markdown_table(part['rows'], part['columns'])}")
    print(FLAGS.out)


if __name__ == "__main__":
    flags.DEFINE_string("samplers", ";".join(SAMPLERS), "specs separated by ';', each with @grid if it wants its own")
    flags.DEFINE_integer("nfe", 10, "network evaluations per image", lower_bound=2)
    flags.DEFINE_string("shape", "32,32,3", "of an image, height, width and channels; no data are read")
    flags.DEFINE_integer("classes", 10, "of the data", lower_bound=0)
    flags.DEFINE_integer("batch_size", 16, "images at once", lower_bound=1)
    flags.DEFINE_integer("repeats", 20, "rounds in which every program runs once", lower_bound=1)
    flags.DEFINE_string("out", "runs/benchmark.json", "the file of all numbers")
    sys.argv[1:1] = [] if any(arg.startswith("--config=") for arg in sys.argv) else ["--config=configs/cifar10.py:vp"]
    cli.launch(main, config="file")
