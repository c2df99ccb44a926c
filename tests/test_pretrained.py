"""The models that the repository ships: every folder is whole, small, and draws images."""

from __future__ import annotations

import numpy as np
import pytest

from diffusion_jax.assembly import sampling
from diffusion_jax.assembly import workdir as workdirs
from diffusion_jax.evaluation import generate
from diffusion_jax.pretrained import addresses, folders

LARGEST = 16_000_000  # bytes of all models together
FOLDERS = sorted(path for path in addresses.SHIPPED.glob("*"))
ids = {"ids": lambda folder: folder.name}


def files_of(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_all_models_together_are_small_and_are_found_by_their_names():
    assert sum(path.stat().st_size for path in addresses.SHIPPED.rglob("*")) <= LARGEST
    assert {folder.name for folder in FOLDERS} == addresses.names().keys() >= {"mnist"}


@pytest.mark.parametrize("folder", FOLDERS, **ids)
def test_a_folder_holds_what_was_published_and_nothing_else(folder):
    folders.check(folder)
    listed = {*folders.manifest(folder)["files"], folders.MANIFEST, folders.CARD, folders.PICTURE}
    assert files_of(folder) == listed and not any(path.is_symlink() for path in folder.rglob("*"))
    card = (folder / folders.CARD).read_text()
    assert card.startswith('---\nlicense: "') and "not stated by the publisher" not in card
    for file in folder.rglob("*.json"):
        assert not any(path in file.read_text() for path in ('"/', "/home", "/tmp", "/root"))
    assert not any(path in card for path in ("/home/", "/tmp/", "/root/"))


@pytest.mark.parametrize("folder", FOLDERS, **ids)
def test_a_folder_loads(folder):
    trained = workdirs.load(folder)
    names = trained.data["class_names"]
    assert len(names) in (0, trained.data["num_classes"]) and trained.step > 0


@pytest.mark.long
@pytest.mark.parametrize("folder", FOLDERS, **ids)
def test_a_folder_draws_images(folder):
    """Two images by two evaluations, which are finite and not the same."""
    trained = workdirs.load(folder)
    model = trained.experiment
    method = sampling.method(model, model.sampling._replace(nfe=2, guidance=1.0, grid="auto"))
    labels = np.arange(2) if model.num_classes else np.zeros(0, int)
    prompts = model.conditions.of_prompts(["a", "b"]) if model.encoder else None
    cond = prompts if model.encoder else model.conditions.of_labels(labels)
    run = sampling.sample_with(model, trained.params, method)
    x = np.asarray(run(generate.seeds_to_keys(range(2)), cond))
    assert np.isfinite(x).all() and np.abs(x[0] - x[1]).max() > 0.1
