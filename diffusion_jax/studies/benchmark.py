"""Timings of the train step, the training loop, the data pipeline and the samplers."""

from __future__ import annotations

import collections
import functools
import itertools
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import data, reading
from diffusion_jax.assembly import conditions, datasets, denoiser, experiment, train, trainer
from diffusion_jax.assembly import denoiser as denoiser_
from diffusion_jax.assembly import sampling as sampling_
from diffusion_jax.assembly.sampling import evaluations, grid
from diffusion_jax.data import Dataset, toys
from diffusion_jax.data.sources import Arrays
from diffusion_jax.errors import UserError, unknown
from diffusion_jax.evaluation import generate
from diffusion_jax.planning import compile, flops
from diffusion_jax.processes import gaussian
from diffusion_jax.progress import progress
from diffusion_jax.samplers import base
from diffusion_jax.training import loop as loop_
from diffusion_jax.training.loop import stack

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


# ---- how time is taken
def compiled(function: Callable, *args) -> tuple[Callable, float]:
    """(the compiled function, the seconds that tracing and compiling took)."""
    began = time.perf_counter()
    return jax.jit(function).lower(*args).compile(), time.perf_counter() - began


def take_turns(programs: Mapping[Any, Callable[[], Any]], rounds: int) -> dict[Any, list[float]]:
    """Seconds of every program in every round, until its results are there. Each round begins with
    another program.
    """
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


def timed(function: Callable[[], Any]) -> float:
    """Seconds until its results are there."""
    began = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - began


def spread(seconds: Sequence[float]) -> float:
    """How uncertain they are: the distance between the quartiles as a share of the median."""
    low, middle, high = np.quantile(seconds, (0.25, 0.5, 0.75))
    return float((high - low) / middle)


# ---- what is measured on
def subject(config, shape: Sequence[int] = (), classes: int = 10):
    """The data set of the config if it is at hand, else noise of its shape (or of `shape`)."""
    if not shape and (config.data.path or config.data.name in ("digits", *toys.TOYS)):
        return datasets.dataset(config)
    return synthetic(*((tuple(shape), classes) if shape else datasets.data_shape(config)))


def synthetic(shape: tuple[int, ...], classes: int, size: int = 50_000):
    """A data set of noise: `size` images uint8 (fewer where they are large), or points."""
    rng, size = np.random.default_rng(0), max(256, min(size, 2 * 10**8 // int(np.prod(shape))))
    image = (
        rng.integers(256, size=(size, *shape), dtype=np.uint8)
        if len(shape) == 3
        else rng.normal(size=(size, *shape))
    )
    label = rng.integers(classes, size=size) if classes else None
    source = Arrays(image if len(shape) == 3 else image.astype(np.float32), label)
    return Dataset("noise", source, source, tuple(shape), classes, tuple(map(str, range(classes))))


def told(config, dataset) -> str:
    """The model, and what it is fed, in words."""
    return f"{config.model.name} on {' x '.join(map(str, dataset.image_shape))} ({dataset.name})"


# ---- training
def training(config, settings: Mapping) -> dict:
    """A row for the compiled step: images a second, MFU, compilation, memory. settings: dataset,
    repeats.
    """
    dataset, size, k = settings["dataset"], config.data.batch_size, config.training.steps_per_call
    built = experiment.assemble(config, dataset.image_shape, dataset.num_classes)
    parts = trainer.training(built)
    batch = data.batches(
        dataset.train, batch_size=size, seed=config.seed, rows=parts.runner.rows(size)
    )
    placed = [parts.runner.put_batch(stack(batch, k)(n), axis=1) for n in range(2)]
    state = parts.runner.init(parts.init, jax.random.key(config.seed))
    began = time.perf_counter()
    traced = parts.step.trace(state, placed[0])
    work, program = flops.count(traced.jaxpr) / k, traced.lower().compile()
    cold = time.perf_counter() - began
    print(f"{settings['config']}: step compiled in {cold:.1f} s", file=sys.stderr, flush=True)

    def call() -> Any:
        nonlocal state
        state, numbers = program(state, placed[next(turn) % 2])
        return state, numbers

    turn = itertools.count()
    call(), jax.block_until_ready(call())  # the first calls load and touch memory
    seconds = take_turns({"step": call}, settings["repeats"])["step"]
    step, (peak, whose) = median(seconds) / k, peak_flops()
    row = {
        "config": settings["config"],
        "what": "step",
        "batch": size,
        "seconds": seconds,
        "images_per_second": size / step,
        "milliseconds": 1e3 * step,
        "spread_percent": 100 * spread(seconds),
        "gflop": work / 1e9,
        "mfu_percent": 100 * work / (step * peak),
        "compile_seconds": cold,
        **memory(program),
    }
    count = sum(x.size for x in jax.tree.leaves(state.params)) / 1e6
    facts = (
        f"{told(config, dataset)}, {count:.2f} million parameters, batch {size}, "
        f"{config.optimizer.name}. Median of {len(seconds)} calls. MFU: products and convolutions as written, against "
        f"{peak / 1e12:.3g} TFLOP/s, {whose}."
    )
    return {"rows": [row], "columns": TRAINING, "facts": facts}


TRAINING = {
    "config": "config",
    "batch": "batch",
    "images_per_second": "images/s",
    "milliseconds": "a step, ms",
    "spread_percent": "spread, %",
    "gflop": "GFLOP a step",
    "mfu_percent": "MFU, %",
    "compile_seconds": "compile, s",
    "program_gib": "the step's memory, GiB",
    "device_gib": "device's peak, GiB",
    "process_gib": "process's peak, GiB",
}


def memory(program) -> dict[str, float | None]:
    """GiB: what the compiler says the program holds at once; the device's and the process's peaks
    so far, where known.
    """
    sizes, stats = program.memory_analysis(), jax.local_devices()[0].memory_stats()
    held = sizes and (
        sizes.argument_size_in_bytes
        + sizes.output_size_in_bytes
        - sizes.alias_size_in_bytes
        + sizes.temp_size_in_bytes
    )
    unit = 1 if sys.platform == "darwin" else 1024
    peaks = {
        "program_gib": held,
        "device_gib": stats and stats.get("peak_bytes_in_use"),
        "process_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
    }
    return {name: size / 2**30 if size else None for name, size in peaks.items()}


@functools.cache
def peak_flops() -> tuple[float, str]:
    """(FLOP/s of all devices at most, where that comes from): the data sheet, or what a large
    product reaches here.
    """
    kind, n = jax.devices()[0].device_kind, 2048
    known = max((name for name in compile.CHIPS if kind.startswith(name)), key=len, default=None)
    if known:
        return compile.CHIPS[known].flops * jax.device_count(), f"{known}'s data sheet in bfloat16"
    x = jnp.ones((n, n))
    product = jax.jit(lambda x: x @ x)
    timed(lambda: product(x))
    best = min(timed(lambda: product(x)) for _ in range(8))
    return 2 * n**3 / best * jax.device_count(), f"a float32 product of {n} x {n} on this {kind}"


# ---- the loop
def loop(config, settings: Mapping) -> dict:
    """A row that says where the time of the training loop goes, at the config's own cadences.
    settings: dataset, steps.

    The run is shorter than the config's, with three checkpoints at least; what one costs is spread
    over as many steps as lie between two in the config. Evaluation and samples, which are other
    programs, are left out.
    """
    k, dataset = config.training.steps_per_call, settings["dataset"]
    steps = max(settings["steps"] // (3 * k), 1) * 3 * k
    short = config.copy_and_resolve_references()
    short.training.update(steps=steps, eval_every=0, sample_every=0)
    if "best" in short.training:
        short.training.best = ""  # what would choose it is not measured
    short.training.checkpoint_every = min(steps // 3, config.training.checkpoint_every or steps)
    short.training.log_every = min(steps // 3, config.training.log_every or steps)
    events: dict[str, list] = collections.defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        train.train(short, str(Path(folder) / "run"), dataset=dataset, fit=watched(events))
    configured = {
        "logging": config.training.log_every,
        "checkpointing": config.training.checkpoint_every,
    }
    seconds, shares = account(events, k, configured)
    total = sum(shares.values())
    row = {
        "config": settings["config"],
        "what": "loop",
        "batch": config.data.batch_size,
        "seconds": seconds,
        "milliseconds": 1e3 * total,
        "images_per_second": config.data.batch_size / total,
        "outside_percent": 100 * (1 - shares["step"] / total),
    }
    row |= {f"{name}_percent": 100 * share / total for name, share in shares.items()}
    facts = (
        f"{told(config, dataset)}: {steps} steps, a row every {short.training.log_every} and a checkpoint every "
        f"{short.training.checkpoint_every}, told for every {configured['logging']} and every "
        f"{configured['checkpointing']}, as configured."
    )
    return {"rows": [row], "columns": LOOP, "facts": facts}


LOOP = {
    "config": "config",
    "batch": "batch",
    "images_per_second": "images/s",
    "milliseconds": "a step, ms",
    "outside_percent": "outside the compiled step, %",
    "data_percent": "waiting for data, %",
    "logging_percent": "logging, %",
    "checkpointing_percent": "checkpoints, %",
    "rest_percent": "the rest, %",
}


def watched(events: dict[str, list]) -> Callable:
    """loop.fit, which notes (begin, end) of every step, wait for data, row and checkpoint in
    events[name].
    """

    def noted(name: str, function: Callable) -> Callable:
        def run(*args, **kwargs):
            began = time.perf_counter()
            try:
                return (
                    jax.block_until_ready(function(*args, **kwargs))
                    if name == "step"
                    else function(*args, **kwargs)
                )
            finally:
                events[name].append((began, time.perf_counter()))

        return run

    def fit(state, step_fn, batches, *, writer, checkpointer, **options):
        def feed(start):
            iterator = iter(batches(start))
            take = noted("data", lambda: next(iterator, None))
            while (item := take()) is not None:
                yield item

        writer = writer._replace(row=noted("logging", writer.row), sync=noted("sync", writer.sync))
        checkpointer.save = noted("checkpointing", checkpointer.save)
        options |= {"progress": False}
        return loop_.fit(
            state, noted("step", step_fn), feed, writer=writer, checkpointer=checkpointer, **options
        )

    return fit


def account(
    events: Mapping[str, list], steps_per_call: int, cadences: Mapping[str, int]
) -> tuple[list[float], dict[str, float]]:
    """(seconds of every call, seconds per step by what they went to), from the second call's end to
    that of the last event.

    cadences: name -> steps between two such events (0: none), over which the mean of one is spread.
    """
    begin, end = events["step"][1][1], max(stop for name in events for _, stop in events[name])
    inside = {
        name: [stop - start for start, stop in spans if start >= begin]
        for name, spans in events.items()
    }
    steps, spent = (
        len(inside["step"]) * steps_per_call,
        {name: sum(seconds) for name, seconds in inside.items()},
    )
    rest = end - begin - sum(spent.values())
    shares = {
        "step": spent["step"] / steps,
        "data": spent.get("data", 0.0) / steps,
        "rest": rest / steps,
    }
    for name, every in cadences.items():
        total = spent.get(name, 0.0) + (
            spent.get("sync", 0.0) if name == "checkpointing" else 0.0
        )  # rows are first on disk
        shares[name] = total / len(inside[name]) / every if every and inside.get(name) else 0.0
    return inside["step"], shares


# ---- data
def pipeline(config, settings: Mapping) -> dict:
    """Rows for the input pipeline alone: batches made on the host, and batches delivered to the
    device, ahead.

    settings: dataset, repeats, and consumed: images a second of the training step, if that was
      measured.
    """
    dataset, size = settings["dataset"], config.data.batch_size
    flip = config.data.flip and len(dataset.image_shape) == 3
    batch = data.batches(dataset.train, batch_size=size, seed=config.seed, flip=flip)
    alone = min(timed(lambda: batch(step)) for step in range(3))
    together = max(1, min(200, int(0.2 / alone)))  # batches in one timing, of about 0.2 s
    rounds = settings["repeats"]
    count = itertools.count()
    seconds = {
        "made": [
            timed(lambda: [batch(next(count)) for _ in range(together)]) for _ in range(rounds)
        ]
    }
    feed = data.prefetch(batch, 0, workers=config.data.get("workers", 0), put=jax.device_put)
    for _ in range(4):  # start-up, and what is ready already
        next(feed)
    seconds["delivered"] = [
        timed(lambda: [next(feed) for _ in range(together)]) for _ in range(rounds)
    ]
    feed.close()
    rows = []
    for what, times in seconds.items():
        rate = together * size / median(times)
        rows.append(
            {
                "config": settings["config"],
                "what": what,
                "batch": size,
                "seconds": [t / together for t in times],
                "images_per_second": rate,
                "milliseconds": 1e3 * size / rate,
                "spread_percent": 100 * spread(times),
                "multiple": settings["consumed"] and rate / settings["consumed"],
            }
        )
    facts = (
        f"{' x '.join(map(str, dataset.image_shape))} ({dataset.name}), {len(dataset.train):,} images, batch {size}, "
        f"{config.data.get('workers', 0)} workers."
    )
    return {"rows": rows, "columns": DATA, "facts": facts}


DATA = {
    "config": "config",
    "what": "batches",
    "batch": "batch",
    "images_per_second": "images/s",
    "milliseconds": "a batch, ms",
    "spread_percent": "spread, %",
    "multiple": "times what training consumes",
}


# ---- sampling
def bare(built, params, x, cond, ts):
    """The network at the times ts, one after the other: what any sampler must at least do. Returns
    x, up to rounding.
    """
    denoise, process = denoiser.denoiser(built, params, clip="none"), built.process

    def look(x, t):
        x0, eps = denoise(x, t, cond)[:2]
        return process.alpha(t) * x0 + process.sigma(
            t
        ) * eps, None  # x again, but only the network's work gets there

    return jax.lax.scan(look, x, ts)[0]


def plans(built, entries: Sequence[str], nfe: int) -> dict:
    """entry -> experiment.Plan, for 'sampler' on the config's grid or 'sampler@grid'. UserError for
    one that does not fit.
    """
    found = {}
    for entry in dict.fromkeys(entries):
        name, _, grid = entry.partition("@")
        found[entry] = plan = sampling_.plan(
            built, name=name, nfe=nfe, **({"grid": grid} if grid else {})
        )
        if base.adaptive(plan.sampler) or len(plan.ts) < 2:
            raise UserError(
                f"--samplers={entry} --nfe={nfe}: needed are fixed steps, and a budget that buys one"
            )
    if not found:
        raise UserError("--samplers= names none; separate them by ';'")
    return found


def sampling(config, settings: Mapping) -> dict:
    """A row for every sampler: its time, that of the bare evaluations, the overhead in percent,
    compilation, images a second.

    settings: dataset, samplers, nfe, batch_size, repeats.
    """
    dataset, batch = settings["dataset"], settings["batch_size"]
    built = experiment.assemble(config, dataset.image_shape, dataset.num_classes)
    chosen = plans(built, settings["samplers"], settings["nfe"])
    params = jax.jit(lambda key: built.kind.init(built, key))(jax.random.key(config.seed))
    keys = generate.seeds_to_keys(range(batch))
    x = base.start(built.process, keys, (batch, *built.shape))
    cond = conditions.cond_for(
        built, np.arange(batch) % built.num_classes if built.num_classes else ()
    )

    def network(params):
        return denoiser_.denoiser(built, params, clip="none")

    def nothing(params):
        return lambda x, t, cond=None: gaussian.from_eps(built.process, x, 0.9 * x, t)

    def whole(sampler: base.Sampler, denoiser: Callable) -> Callable:
        return lambda params, keys, x, cond, ts: (
            base.sample(sampler, denoiser(params), built.process, keys, x, ts, cond, padded=True).x0
        )

    programs, own, cold, count = (
        {},
        {},
        {},
        {entry: evaluations(plan) for entry, plan in chosen.items()},
    )
    for n in sorted(set(count.values())):
        args = params, x, cond, grid(built, "uniform", n)
        programs[n] = _call(
            f"{n} bare evaluations", cold, n, lambda *args: bare(built, *args), args
        )
    for entry, plan in chosen.items():
        args = params, keys, x, cond, plan.ts
        programs[entry] = _call(entry, cold, entry, whole(plan.sampler, network), args)
        own[entry] = functools.partial(compiled(whole(plan.sampler, nothing), *args)[0], *args)
    alone, seconds = (
        take_turns(own, 3 * settings["repeats"]),
        take_turns(programs, settings["repeats"]),
    )
    rows = [
        {"config": settings["config"], "what": entry, "batch": batch}
        | _row(entry, n, batch, cold[entry], seconds[entry], seconds[n], alone[entry])
        for entry, n in count.items()
    ]
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    each = min(min(seconds[n]) / n for n in set(count.values())) / batch
    shape = " x ".join(map(str, built.shape))
    facts = (
        f"{config.model.name} of {size / 1e6:.2f} million parameters on {shape}, batch {batch}; a bare "
        f"evaluation takes {1e3 * each:.3g} ms an image. The shortest of {settings['repeats']} times."
    )
    return {"rows": rows, "columns": COLUMNS, "facts": facts}


COLUMNS = {
    "config": "config",
    "sampler": "sampler",
    "evaluations": "NFE",
    "overhead_percent": "overhead, %",
    "overhead_median_percent": "of medians, %",
    "own_percent": "own work, %",
    "milliseconds": "a batch, ms",
    "bare_milliseconds": "bare, ms",
    "images_per_second": "images/s",
    "compile_seconds": "compile, s",
}


def _call(title: str, cold: dict, name, function: Callable, args: tuple) -> Callable[[], Any]:
    """The compiled function at these arguments; the seconds of its compilation are put into
    cold[name].
    """
    program, cold[name] = compiled(function, *args)
    print(f"{title}: compiled in {cold[name]:.1f} s", file=sys.stderr, flush=True)
    return functools.partial(program, *args)


def _row(
    entry: str, evaluations: int, batch: int, cold: float, whole: list, network: list, own: list
) -> dict:
    """What is told of a sampler, from the seconds of its runs, of the bare evaluations, and of its
    runs without a network.
    """

    def percent(a, b):
        return round(100 * a / b, 2)

    return {
        "sampler": entry,
        "evaluations": evaluations,
        "compile_seconds": round(cold, 1),
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


# ---- comparing
def compare(stored: Mapping, found: Mapping) -> list[dict]:
    """Rows for all that both runs timed: milliseconds then and now, and whether they differ by more
    than both spreads.
    """
    rows = []
    for name in PARTS:
        before = {
            _key(row): row["seconds"]
            for row in stored.get(name, {}).get("rows", ())
            if "seconds" in row
        }
        for row in found.get(name, {}).get("rows", ()):
            if not (old := before.get(_key(row))):
                continue
            change = median(row["seconds"]) / median(old) - 1
            noise = max(0.02, spread(old) + spread(row["seconds"]))
            verdict = "the same" if abs(change) <= noise else "slower" if change > 0 else "faster"
            rows.append(
                {
                    "part": name,
                    "config": row["config"],
                    "what": row["what"],
                    "verdict": verdict,
                    "before": 1e3 * median(old),
                    "now": 1e3 * median(row["seconds"]),
                    "change_percent": 100 * change,
                    "noise_percent": 100 * noise,
                }
            )
    return rows


COMPARED = {
    "part": "part",
    "config": "config",
    "what": "what",
    "before": "before, ms",
    "now": "now, ms",
    "change_percent": "change, %",
    "noise_percent": "noise, %",
    "verdict": "verdict",
}


def earlier(value: Any, place: str) -> None:
    """The rule of a file that this command wrote: what `compare` and `differences` read of it."""
    row = reading.record(
        {},
        {
            "seconds": reading.items(reading.number(1e-12), least=1),
            "batch": reading.scalar,
            "evaluations": reading.scalar,
            "config": reading.text(),
            "what": reading.text(),
        },
    )
    timed = reading.record(
        {"seconds": reading.anything, "config": reading.anything, "what": reading.anything}
    )
    facts = reading.record(
        {}, dict.fromkeys(("cpu", "devices", "versions"), reading.optional(reading.table()))
    )
    reading.record(
        {"provenance": facts}, dict.fromkeys(PARTS, reading.record({"rows": reading.items(row)}))
    )(value, place)
    for name in PARTS:
        for i, each in enumerate(value.get(name, {}).get("rows", ())):
            if "seconds" in each:
                timed(each, f"{name}.rows[{i}]")


def _key(row: Mapping) -> tuple:
    return row["config"], row["what"], row.get("batch"), row.get("evaluations")


def differences(stored: Mapping, found: Mapping) -> list[str]:
    """What else differs between two runs, by their provenance: then a difference of times is not
    one of the code alone.
    """
    names = "cpu", "devices", "versions"
    pairs = (
        (name, *(run["provenance"].get(name) or {} for run in (stored, found))) for name in names
    )
    return [
        f"{name}.{key}: {old.get(key)} then, {new.get(key)} now"
        for name, old, new in pairs
        for key in sorted(old | new)
        if old.get(key) != new.get(key)
    ]


# ---- the command
PARTS = {"training": training, "loop": loop, "data": pipeline, "sampling": sampling}


def measure(
    configs: Mapping[str, Any],
    parts: Sequence[str],
    settings: Mapping,
    keep: Callable[[dict], None],
) -> dict:
    """{part: {'rows', 'columns', 'facts'}} over all configs; keep is called after each part, so
    that none is lost.
    """
    found: dict[str, dict] = {}
    for title, config in configs.items():
        own = settings | {
            "config": title,
            "dataset": subject(config, settings["shape"], settings["classes"]),
            "consumed": None,
        }
        for name in parts:
            part = PARTS[name](config, own)
            if name == "training":
                own["consumed"] = part["rows"][0]["images_per_second"]
            if name in found:
                part |= {
                    "rows": found[name]["rows"] + part["rows"],
                    "facts": f"{found[name]['facts']}\n{part['facts']}",
                }
            found[name] = part
            keep(found)
    return found


def chosen_parts(text: str) -> list[str]:
    """The parts of --parts, in the order of PARTS, so that data knows what training consumes."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in PARTS:
            raise unknown("--parts", name, PARTS)
    return [name for name in PARTS if name in names]
