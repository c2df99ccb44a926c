"""Our side of the comparison with other programs: compiled programs, their FLOPs and memory."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from diffusion_jax.assembly import denoiser
from diffusion_jax.core.types import Array, Cond, Key, Params
from diffusion_jax.planning import flops
from diffusion_jax.samplers import base
from diffusion_jax.studies.benchmark import sampling
from diffusion_jax.studies.benchmark.timing import BenchmarkSubject, compiled
from diffusion_jax.studies.benchmark.training import compiled_step, memory, plainly


class OwnProgram(NamedTuple):
    """A compiled program of ours.

    Attributes:
      call: runs it.
      steps: in a call.
      work: FLOPs of a step.
      compile_seconds: seconds of tracing and compiling.
      memory_gib: what it holds at once, by the compiler, or on a CPU the peak of this process.
      parameters: number of parameters of the network.
    """

    call: Callable[[], Any]
    steps: int
    work: float
    compile_seconds: float
    memory_gib: float | None
    parameters: int


def own_programs(
    subject: BenchmarkSubject, programs: Sequence[str], nfe: int
) -> dict[str, OwnProgram]:
    """Compile our side.

    Args:
      subject: the config and its data.
      programs: some of 'train', 'forward' and 'ddim'.
      nfe: network evaluations of ddim.
    """
    found = {}
    if "train" in programs:
        step = compiled_step(subject)
        found["train"] = OwnProgram(
            step.call,
            step.steps,
            step.work,
            step.compile_seconds,
            _held(step.program),
            step.parameters,
        )
    for name in (name for name in programs if name != "train"):
        found[name] = _evaluating(subject, name, nfe)
    return found


def _evaluating(subject: BenchmarkSubject, name: str, nfe: int) -> OwnProgram:
    """An evaluation of the network, or a run of DDIM."""
    experiment = subject.experiment
    inputs = sampling.inputs(experiment, experiment.data.batch_size)
    params = jax.jit(lambda key: experiment.kind.init(experiment, key))(
        jax.random.key(experiment.seed)
    )
    method = sampling.methods_of(experiment, ["ancestral.ddim"], nfe)["ancestral.ddim"]

    def forward(params: Params, keys: Key, x: Array, cond: Cond, ts: Array, by: Any) -> Array:
        return sampling.bare(by, params, x, cond, ts[:1])

    def ddim(params: Params, keys: Key, x: Array, cond: Cond, ts: Array, by: Any) -> Array:
        denoise = denoiser.denoiser(by, params, clip="none")
        return base.sample(method.sampler, denoise, by.process, keys, x, ts, cond).x0

    args = params, *inputs, method.ts
    run = {"forward": forward, "ddim": ddim}[name]
    work = flops.count(jax.make_jaxpr(functools.partial(run, by=plainly(subject)))(*args))
    program, seconds = compiled(functools.partial(run, by=experiment), *args)
    count = sum(x.size for x in jax.tree.leaves(params))
    return OwnProgram(functools.partial(program, *args), 1, work, seconds, _held(program), count)


def _held(program: Any) -> float | None:
    """The memory of a program, as the table has it."""
    sizes = memory(program)
    return sizes["process_gib" if jax.default_backend() == "cpu" else "program_gib"]
