"""Results that are kept are not taken for those of files which were written anew."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from diffusion_jax.assembly import origins, sample_conditions, workdir
from diffusion_jax.core.errors import UserError
from diffusion_jax.pretrained import folders
from diffusion_jax.studies import scoring, subjects
from diffusion_jax.studies.sweep import cells, command
from diffusion_jax.studies.sweep import space as sweep_space
from diffusion_jax.studies.sweep import task as sweep_task

FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.fixture
def digits(tmp_path):
    """The workdir of a model of the digits, and next to it that of a worse one."""
    with tarfile.open(FIXTURES / "workdirs.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    shutil.copytree(tmp_path / "digits", tmp_path / "worse")
    return tmp_path / "digits"


def cell(folder, over):
    """The first cell of a sweep of one key."""
    config = workdir.saved_config(folder)
    task = sweep_task.make(config, folder, sweep_space.parse(config, [over]), folder, 20, "grid()")
    return task.cells[0]


def place(path, first):
    path.parent.mkdir(exist_ok=True)
    grids = {str(n): [first, *range(1, n)] for n in range(2, 9)}
    path.write_text(json.dumps({"logsnr": grids}))


@pytest.mark.parametrize("spec", ["placed", "'stored(\"{}\")'"])
def test_a_grid_that_is_placed_anew_is_another_cell(digits, spec):
    path = digits / "grids" / "placed.json"
    place(path, -9)
    found = cell(digits, f"sampler.grid=[{spec.format(path)}]")
    scored = cells.Scoring(None, "frechet", {}, {})
    first = cells.cell_path(found, scored, digits)
    place(path, -9)
    assert cells.cell_path(found, scored, digits) == first
    place(path, -8)
    assert cells.cell_path(found, scored, digits) != first
    shutil.rmtree(path.parent)
    karras = found.sampling._replace(grid="karras")
    assert origins.of_times(karras, (digits / "grids",)) == {}


def test_the_model_of_a_guide_is_a_part_of_the_identity(digits):
    config = workdir.saved_config(digits).unlock()
    assert origins.of_weights(digits, config) == {}
    config.sampler.guide = f"autoguidance(workdir='{digits.parent / 'worse'}')"
    (before,) = origins.of_weights(digits, config)["guide"]
    step = digits.parent / "worse" / "checkpoints" / str(before["step"])
    step.rename(step.with_name(str(before["step"] + 1)))
    (after,) = origins.of_weights(digits, config)["guide"]
    assert after["step"] == before["step"] + 1
    config.sampler.guide = "autoguidance(workdir='/nowhere')"
    with pytest.raises(UserError, match="nowhere"):
        origins.of_weights(digits, config)


def test_a_published_model_is_known_by_its_weights_and_is_not_written_to(tmp_path, monkeypatch):
    model = Path(__file__).parents[2] / "pretrained" / "digits"
    trained = workdir.load(model)
    weights = folders.manifest(model)["files"][folders.WEIGHTS]["sha256"]
    assert trained.experiment.origins == {"published": weights}
    assert subjects._identity(trained, [0])["published"] == weights
    settings = trained.experiment.sampling
    assert scoring._identity_of(trained, settings)["published"] == weights
    monkeypatch.chdir(tmp_path)
    root = command._root({"out": "", "workdir": str(model)})
    assert root == Path("runs", "pretrained", "digits", "sweep")
    assert command._root({"out": "", "workdir": str(tmp_path)}) == tmp_path / "sweep"


def test_cells_of_other_labels_draw_those(digits):
    """The model stays loaded from cell to cell, with the settings of the first."""
    found = [cell(digits, f"sampler.labels=[{law}]") for law in ("uniform", "training")]
    trained = workdir.load(digits, found[0].config)
    dataset = workdir.images(found[0].config, digits)
    sampler = cells.CellSampler(found, dataset, 20, None)
    sampler.model = lambda cell: trained
    drawn = [sampler.plan(each, 20)[0].conditions(np.arange(20))[0] for each in found]
    as_trained = sample_conditions.labels_as_in(dataset, np.arange(20))
    assert drawn[0].tolist() == [*range(10)] * 2
    assert drawn[1].tolist() == as_trained.tolist() != drawn[0].tolist()
