"""Command-line mains. Importing this package sets what XLA must be told before jax starts."""

import sys

from experiments import exits

exits.open_closed_streams()
if sys.argv[:1] == ["-m"]:  # `python -m experiments.NAME` is importing this package before it runs NAME
    exits.watch_signals()

from diffusion_jax.training import runtime  # noqa: E402  (its imports take a moment, in which a signal may come)

runtime.set_cpu_flags()
