"""python -m experiments: lists the commands. python -m experiments NAME --FLAG=VALUE ... runs one,
as experiments.NAME does.
"""

from __future__ import annotations

import runpy
import sys

from diffusion_jax.errors import unknown
from experiments import arguments, usage


def main(argv: list[str]) -> None:
    """List the commands, or run the one that argv names."""
    name, rest = (
        (argv[1].removeprefix("experiments."), argv[2:]) if len(argv) > 1 else ("--help", [])
    )
    if name.lstrip("-") in arguments.HELP:
        arguments.show(usage.overview())
    elif name in usage.commands():
        sys.argv = [f"experiments.{name}", *rest]
        runpy.run_module(f"experiments.{name}", run_name="__main__", alter_sys=True)
    else:
        arguments.fail(unknown("command", name, usage.commands()))


if __name__ == "__main__":
    main(sys.argv)
