"""Command-line mains. Importing this package sets what XLA must be told before jax starts."""

from __future__ import annotations

import sys

from diffusion_jax.training import runtime
from experiments import exits

exits.open_closed_streams()


if sys.argv[:1] == [
    "-m"
]:  # `python -m experiments.NAME` is importing this package before it runs NAME
    exits.watch_signals()


runtime.set_cpu_flags()
