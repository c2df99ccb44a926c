"""Folders of tiny models of Stable Diffusion, as diffusers wrote them, and their workdirs."""

from __future__ import annotations

import atexit
import functools
import gzip
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np

from diffusion_jax.assembly import workdir
from diffusion_jax.assembly.workdir import Trained
from diffusion_jax.pretrained import safetensors
from diffusion_jax.studies.weights import import_pipeline
from tests.fixtures.seeded_weights import weights

FIXTURES = Path(__file__).parents[1] / "fixtures"
ABOUT = json.loads(gzip.decompress((FIXTURES / "stable_diffusion.json.gz").read_bytes()))
NAMES = ("sd1", "sd2", "sdxl")


@functools.cache
def outputs(name: str) -> dict[str, np.ndarray]:
    """What diffusers made; images and latents are (B, H, W, C) here."""
    with np.load(FIXTURES / "stable_diffusion.npz") as saved:
        own = {key: saved[key] for key in saved if key.startswith(f"{name}/")}
    return {
        key.removeprefix(f"{name}/"): value.transpose(0, 2, 3, 1) if value.ndim == 4 else value
        for key, value in own.items()
    }


def folder_of(name: str, folder: Path) -> Path:
    """The folder of a pipeline."""
    for place, text in ABOUT[name]["files"].items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_text(text)
    for place, shapes in ABOUT[name]["tensors"].items():
        part = place.partition("/")[0]
        # the second text encoder of XL is drawn by its names within the pipeline
        drawn = weights({f"{name}/{part}/{key}": shape for key, shape in shapes.items()})
        tensors = {key.removeprefix(f"{name}/{part}/"): value for key, value in drawn.items()}
        safetensors.save(folder / place, tensors)
    return folder


@functools.cache
def workdir_of(name: str) -> Path:
    """A workdir of the folder, made once."""
    root = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return import_pipeline.stable_diffusion(folder_of(name, root / "theirs"), root / "run")


@functools.cache
def loaded(name: str) -> Trained:
    """The model of that workdir."""
    return workdir.load(workdir_of(name))
