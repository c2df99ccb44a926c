"""The samplers, grids, targets and processes by the names that specs use."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from diffusion_jax.assembly import components
from diffusion_jax.assembly.build import build, members
from diffusion_jax.core.types import Process
from diffusion_jax.samplers import base

KINDS = {True: "stochastic", False: "deterministic", None: ""}


def listing() -> str:
    """List every sampler, grid, target and process, one per line."""
    vp = build(components.PROCESSES, "schedules.VP()")
    lines = ["samplers: name, network evaluations (+ at the start), kind, own grid (@auto)"]
    lines += [_line(name, make, vp) for name, make in members(components.SAMPLERS).items()]
    families = {
        "grids": components.GRIDS,
        "targets": components.TARGETS,
        "processes": components.PROCESSES,
    }
    for plural, family in families.items():
        lines += ["", plural]
        lines += [f"  {name:32} {summary(make)}" for name, make in members(family).items()]
    return "\n".join(lines)


def summary(make: Callable[..., Any]) -> str:
    """Return the first line of a docstring.

    Args:
      make: a function or a class; without a docstring the line is ''.
    """
    return (inspect.getdoc(make) or "").partition("\n")[0]


def _line(name: str, make: Callable[..., base.Sampler], process: Process) -> str:
    """The line of a sampler: its cost and kind, or the arguments that it needs."""
    parameters = inspect.signature(make).parameters.values()
    if needs := [p.name for p in parameters if p.default is p.empty]:
        return f"  {name:32} {'takes ' + ', '.join(needs):34} {summary(make)}"
    sampler = make()
    start = f" + {sum(sampler.warmup)}" if sampler.warmup else ""
    nfe = "its own steps" if base.adaptive(sampler) else f"{sampler.nfe} a step{start}"
    kind = KINDS[base.draws_noise(sampler, process)]
    return f"  {name:32} {nfe:15} {kind:18} {sampler.grid:34} {summary(make)}"
