"""The benchmark of training: the compiled step alone, and the input pipeline alone."""

from __future__ import annotations

import functools
import itertools
import resource
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffusion_jax import data
from diffusion_jax.assembly import datasets, trainer
from diffusion_jax.assembly.experiment import assemble
from diffusion_jax.assembly.settings import Experiment
from diffusion_jax.planning import devices, flops
from diffusion_jax.studies.benchmark.timing import (
    BenchmarkSettings,
    BenchmarkSubject,
    Part,
    spread,
    take_turns,
    timed,
)
from diffusion_jax.training.loop import stack

STEP = {
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
DATA = {
    "config": "config",
    "what": "batches",
    "batch": "batch",
    "images_per_second": "images/s",
    "milliseconds": "a batch, ms",
    "spread_percent": "spread, %",
    "multiple": "times what training consumes",
}
TIMING = 0.2  # seconds of batches in one timing of the pipeline, about
WARM_UP = 4  # batches that the prefetcher has ready, or that start it


class CompiledStep(NamedTuple):
    """The train step of a subject, compiled, with batches that are on the device.

    Attributes:
      call: runs it once, which may be several steps.
      steps: in a call.
      work: FLOPs of a step (`model_flops`).
      program: the compiled program.
      compile_seconds: seconds of tracing and compiling.
      parameters: their number.
    """

    call: Callable[[], Any]
    steps: int
    work: float
    program: Any
    compile_seconds: float
    parameters: int


def compiled_step(subject: BenchmarkSubject) -> CompiledStep:
    """Compile the train step, and run it twice, as the first calls load and touch memory.

    Args:
      subject: the config and its data.
    """
    experiment = subject.experiment
    size, k = experiment.data.batch_size, experiment.training.steps_per_call
    parts = trainer.training(experiment)
    batch = datasets.training_batches(experiment, subject.dataset, parts.runner.rows(size))
    placed = [parts.runner.put_batch(stack(batch, k)(n), axis=1) for n in range(2)]
    state = parts.runner.init(parts.init, jax.random.key(experiment.seed))
    count = sum(x.size for x in jax.tree.leaves(state.params))
    began = time.perf_counter()
    program = parts.step.trace(state, placed[0]).lower().compile()
    cold = time.perf_counter() - began
    print(f"{subject.title}: step compiled in {cold:.1f} s", file=sys.stderr, flush=True)
    work, turn = model_flops(subject, state, placed[0]) / k, itertools.count()

    def call() -> Any:
        nonlocal state
        state, numbers = program(state, placed[next(turn) % 2])
        return state, numbers

    for _ in range(2):
        jax.block_until_ready(call())
    return CompiledStep(call, k, work, program, cold, count)


def plainly(subject: BenchmarkSubject) -> Experiment:
    """The experiment as it is without fused kernels and rematerialization, to count its FLOPs.

    Kernels hide their products, and work that is done again is none of the model's.

    Args:
      subject: the config and its data.
    """
    config = subject.config.copy_and_resolve_references()
    for key, value in {"attention_impl": "plain", "remat": "none"}.items():
        if key in config.model:
            config.model[key] = value
    return assemble(config, subject.dataset.image_shape, subject.dataset.num_classes)


def model_flops(subject: BenchmarkSubject, *args: Any) -> float:
    """FLOPs of the products and convolutions of a call of the train step, as written.

    Args:
      subject: the config and its data.
      *args: of the step.
    """
    return flops.count(trainer.training(plainly(subject)).step.trace(*args).jaxpr)


def training(subject: BenchmarkSubject, settings: BenchmarkSettings) -> Part:
    """Time the compiled train step, on batches that are on the device already.

    Args:
      subject: the config and its data.
      settings: repeats.

    Returns:
      A row: images per second, model FLOPs utilization (MFU), compilation, memory.
    """
    found, size = compiled_step(subject), subject.experiment.data.batch_size
    seconds = take_turns({"step": found.call}, settings.repeats)["step"]
    step, (peak, source) = median(seconds) / found.steps, peak_flops()
    row = {
        "config": subject.title,
        "what": "step",
        "batch": size,
        "seconds": seconds,
        "images_per_second": size / step,
        "milliseconds": 1e3 * step,
        "spread_percent": 100 * spread(seconds),
        "gflop": found.work / 1e9,
        "mfu_percent": 100 * found.work / (step * peak),
        "compile_seconds": found.compile_seconds,
        **memory(found.program),
    }
    facts = (
        f"{subject.words}, {found.parameters / 1e6:.2f} million parameters, batch {size}, "
        f"{subject.config.optimizer.name}. Median of {len(seconds)} calls. MFU: products and "
        f"convolutions as written, against {peak / 1e12:.3g} TFLOP/s, {source}."
    )
    return Part([row], STEP, facts)


def memory(program: Any) -> dict[str, float | None]:
    """Memory in GiB.

    Args:
      program: a compiled program.

    Returns:
      program_gib: what the program holds at once, by the compiler; device_gib and process_gib: the
        peaks of the device and of this process so far. None where it is not known.
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
    """The most FLOP/s of all devices, and where the number comes from.

    It is the data sheet's where there is one, else what a large matrix product reaches here.
    """
    kind, n = jax.devices()[0].device_kind, 2048
    if chip := devices.chip_of(kind):
        return chip.flops * jax.device_count(), f"{chip.name}'s data sheet in bfloat16"
    x = jnp.ones((n, n))
    product = jax.jit(lambda x: x @ x)
    timed(lambda: product(x))
    best = min(timed(lambda: product(x)) for _ in range(8))
    return 2 * n**3 / best * jax.device_count(), f"a float32 product of {n} x {n} on this {kind}"


def pipeline(subject: BenchmarkSubject, settings: BenchmarkSettings) -> Part:
    """Time the input pipeline alone.

    Args:
      subject: the config and its data.
      settings: repeats.

    Returns:
      Rows for batches made on the host, and for batches delivered to the device, ahead of use.
    """
    dataset, chosen = subject.dataset, subject.experiment.data
    size, repeats = chosen.batch_size, settings.repeats
    batch = datasets.training_batches(subject.experiment, dataset)
    alone = min(timed(functools.partial(batch, step)) for step in range(3))
    together = max(1, min(200, int(TIMING / alone)))  # batches in one timing
    count = itertools.count()
    made = [timed(lambda: [batch(next(count)) for _ in range(together)]) for _ in range(repeats)]
    feed = data.prefetch(batch, 0, workers=chosen.workers, put=jax.device_put)
    for _ in range(WARM_UP):
        next(feed)
    delivered = [timed(lambda: [next(feed) for _ in range(together)]) for _ in range(repeats)]
    feed.close()
    rows = []
    for what, times in {"made": made, "delivered": delivered}.items():
        rate = together * size / median(times)
        rows.append(
            {
                "config": subject.title,
                "what": what,
                "batch": size,
                "seconds": [t / together for t in times],
                "images_per_second": rate,
                "milliseconds": 1e3 * size / rate,
                "spread_percent": 100 * spread(times),
                "multiple": subject.consumed and rate / subject.consumed,
            }
        )
    facts = (
        f"{subject.data}, {len(dataset.train):,} images, batch {size}, {chosen.workers} workers."
    )
    return Part(rows, DATA, facts)
