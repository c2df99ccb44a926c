"""Every member of every family, found by looking: a new process, grid, sampler, weighting, ... is
tested unasked.

A family is told by what its functions return (their annotation) or, for processes, by having alpha
and sigma.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import samplers
from diffusion_jax.denoisers import parameterization
from diffusion_jax.objectives import denoising, times, weighting
from diffusion_jax.processes import discrete, schedules
from diffusion_jax.samplers import grids

BETAS = (
    "linear",
    "scaled_linear",
    "cosine",
    "sigmoid",
)  # the names that discrete.ddpm knows; its own error lists them


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


def _is_process(member) -> bool:
    return (
        inspect.isclass(member)
        and dataclasses.is_dataclass(member)
        and hasattr(member, "alpha")
        and hasattr(member, "sigma")
    )


PROCESSES = {
    **{name: cls() for name, cls in inspect.getmembers(schedules, _is_process)},
    "Shifted_flow": schedules.Shifted(schedules.RectifiedFlow(), shift=3.0, norm=1.0),
    **{
        f"DDPM_{betas}": discrete.ddpm(betas) for betas in ("linear", "cosine")
    },  # the other tables are the same class
}

PARAMETERIZATIONS = {
    name: make() for name, make in public(parameterization, "Parameterization").items()
}

GRIDS = {
    name: f
    for name, f in public(grids, "Array").items()
    if list(inspect.signature(f).parameters)[:2] == ["process", "n"] and name != "stored"
}

TIMES = public(times, "TimeLaw")
WEIGHTINGS = {name: make() for name, make in public(weighting, "Weighting").items()}

OBJECTIVES = {
    **public(denoising, "Objective"),
    "dsm_likelihood": functools.partial(denoising.dsm, likelihood=True),
}

SAMPLERS = {
    f"{module.name}.{name}": make
    for module in pkgutil.iter_modules(samplers.__path__)
    for name, make in public(
        importlib.import_module(f"{samplers.__name__}.{module.name}"), "Sampler"
    ).items()
    if not any(p.default is p.empty for p in inspect.signature(make).parameters.values())
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
