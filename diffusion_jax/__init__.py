"""diffusion_jax: diffusion models in JAX and Flax.

A process is two functions of time, a network becomes a denoiser that returns `Prediction(x0, eps)`,
and one loop runs every sampler. The names below are enough for a first session; README.md uses them
to train a network of the reader's own and to sample it. They are imported on first use, so that
`import diffusion_jax` needs neither JAX nor any other package.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusion_jax.assembly.workdir import load
    from diffusion_jax.denoisers import guidance, parameterization
    from diffusion_jax.denoisers.parameterization import denoiser
    from diffusion_jax.objectives import denoising
    from diffusion_jax.processes import schedules
    from diffusion_jax.samplers import ancestral, grids, multistep, ode
    from diffusion_jax.samplers.base import sample, start

__version__ = "0.1.0"

__all__ = [
    "ancestral",
    "denoiser",
    "denoising",
    "grids",
    "guidance",
    "load",
    "multistep",
    "ode",
    "parameterization",
    "sample",
    "schedules",
    "start",
]

# name -> the module that it is, or (module, attribute)
_PLACES: dict[str, str | tuple[str, str]] = {
    "ancestral": "diffusion_jax.samplers.ancestral",
    "denoiser": ("diffusion_jax.denoisers.parameterization", "denoiser"),
    "denoising": "diffusion_jax.objectives.denoising",
    "grids": "diffusion_jax.samplers.grids",
    "guidance": "diffusion_jax.denoisers.guidance",
    "load": ("diffusion_jax.assembly.workdir", "load"),
    "multistep": "diffusion_jax.samplers.multistep",
    "ode": "diffusion_jax.samplers.ode",
    "parameterization": "diffusion_jax.denoisers.parameterization",
    "sample": ("diffusion_jax.samplers.base", "sample"),
    "schedules": "diffusion_jax.processes.schedules",
    "start": ("diffusion_jax.samplers.base", "start"),
}


def __getattr__(name: str) -> Any:
    """Import a name of `__all__` on first use (PEP 562)."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    place = _PLACES[name]
    if isinstance(place, str):
        value = importlib.import_module(place)
    else:
        value = getattr(importlib.import_module(place[0]), place[1])
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the names of `__all__` and those that are already defined."""
    return sorted({*globals(), *__all__})
