"""Published workdirs of tiny models, made of those in tests/fixtures/workdirs.tar.gz."""

from __future__ import annotations

import tarfile
from pathlib import Path

from diffusion_jax.assembly import workdir as workdirs
from diffusion_jax.studies.weights import publish

FIXTURES = Path(__file__).parents[1] / "fixtures"


def unpacked(folder: Path) -> Path:
    """The runs of the fixtures, in a folder."""
    with tarfile.open(FIXTURES / "workdirs.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def published(run: Path, out: Path, **options) -> Path:
    """A run published to `out`, whose picture takes two evaluations."""
    config = workdirs.saved_config(run)
    with config.unlocked():
        config.sampler.nfe = 2
    publish.publish(config, workdir=str(run), out=str(out), **options)
    return out
