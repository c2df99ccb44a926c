"""Every member of every family, by the tuples of the modules where the members stand.

A new process, grid, sampler or weighting that is listed there is thereby in every test of its
family.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.denoisers import parameterization
from diffusion_jax.objectives import denoising, times, weighting
from diffusion_jax.processes import discrete, schedules
from diffusion_jax.samplers import (
    adaptive,
    ancestral,
    corrector,
    few_step,
    grids,
    multistep,
    ode,
    sde,
    singlestep,
    stochastic,
)

BETAS = ("linear", "scaled_linear", "cosine", "sigmoid")  # the names that discrete.ddpm knows


def public(module, returns: str | None = None) -> dict:
    """The functions written in this module, without a leading underscore; `returns`: those whose
    return annotation is that name.
    """
    found = inspect.getmembers(
        module, lambda f: inspect.isfunction(f) and f.__module__ == module.__name__
    )
    return {
        n: f for n, f in found if n[0] != "_" and returns in (None, f.__annotations__.get("return"))
    }


def by_name(members: Iterable[Callable]) -> dict[str, Callable]:
    """The members by their names, in alphabetical order."""
    return {member.__name__: member for member in sorted(members, key=lambda m: m.__name__)}


def complete(make: Callable) -> bool:
    """Whether every argument has a default."""
    parameters = inspect.signature(make).parameters.values()
    return not any(p.default is p.empty for p in parameters)


PROCESSES = {
    **{name: make() for name, make in by_name(schedules.PROCESSES).items()},
    # with as much noise as the others have: the first step of a multistep method is of first order
    "VDM": schedules.VDM(gamma_max=10.0),
    "Shifted_flow": schedules.Shifted(schedules.RectifiedFlow(), shift=3.0, norm=1.0),
    # the other tables are the same class
    **{f"DDPM_{betas}": discrete.ddpm(betas) for betas in ("linear", "cosine")},
}

PARAMETERIZATIONS = {
    name: make() for name, make in by_name(parameterization.PARAMETERIZATIONS).items()
}

# `stored` needs a file, `learned` a trained model
GRIDS = by_name(g for g in grids.GRIDS if g not in (grids.stored, grids.learned))

TIMES = by_name(times.TIME_LAWS)
WEIGHTINGS = {name: make() for name, make in by_name(weighting.WEIGHTINGS).items()}

OBJECTIVES = {
    **by_name(denoising.OBJECTIVES),
    "dsm_likelihood": functools.partial(denoising.dsm, likelihood=True),
}

SAMPLER_MODULES = (
    adaptive,
    ancestral,
    corrector,
    few_step,
    multistep,
    ode,
    sde,
    singlestep,
    stochastic,
)
SAMPLERS = {  # but for wrappers, which need a sampler
    f"{module.__name__.rpartition('.')[2]}.{name}": make
    for module in SAMPLER_MODULES
    for name, make in by_name(module.SAMPLERS).items()
    if complete(make)
}


@dataclasses.dataclass(frozen=True)
class AnyOf:
    """Whichever of PROCESSES `index` says, perhaps traced: one compiled program then runs under all
    of them.
    """

    index: jax.Array

    def _pick(self, values):
        return jnp.asarray(list(values))[self.index]

    @property
    def t_min(self):
        return self._pick(process.t_min for process in PROCESSES.values())

    @property
    def t_max(self):
        return self._pick(process.t_max for process in PROCESSES.values())

    def alpha(self, t):
        return _either("alpha", self.index, jnp.asarray(t))

    def sigma(self, t):
        return _either("sigma", self.index, jnp.asarray(t))


@functools.partial(jax.jit, static_argnums=0)
def _either(name: str, index, t):
    """That function of process `index`; jitted, so that it is traced once and not for every place
    that a sampler asks at.

    All are evaluated and one is taken: XLA merges what is asked twice, which branches of a switch
      it would not.
    """
    values = [getattr(process, name)(t).astype(t.dtype) for process in PROCESSES.values()]
    return jnp.stack(values)[index]


def smooth(process) -> bool:
    """Whether alpha has a second derivative everywhere: not so on a table of betas, whose nodes are
    kinks.
    """
    return not isinstance(process, discrete.DDPM)


@functools.cache
def logsnr_grid(name: str, n: int) -> np.ndarray:
    """n + 1 times, equal steps of the log-SNR, in float64. (PROCESSES name, n)"""
    with jax.enable_x64(True):
        return np.asarray(grids.uniform_logsnr(PROCESSES[name], n + 1))


def interior(process, count: int = 8) -> np.ndarray:
    """Times well inside the path and, on a table of betas, half-way between its nodes. (count,)
    float64, increasing.

    Tests keep to eight times: then JAX compiles each elementary operation once for all processes.
    """
    t = np.linspace(0.05, 0.95, count)
    return t if smooth(process) else (np.floor(t * process.steps) + 0.5) / process.steps
