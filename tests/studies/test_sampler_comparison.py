"""The command compare_samplers: on a tiny model, its page, its list, and its mistakes."""

from __future__ import annotations

import json
import re
from typing import NamedTuple

import jax
import numpy as np
import pytest
from PIL import Image

from configs import digits, toy
from diffusion_jax import data
from diffusion_jax.assembly import components
from diffusion_jax.assembly.build import members
from diffusion_jax.assembly.experiment import assemble
from diffusion_jax.assembly.workdir import Trained
from diffusion_jax.core import provenance
from diffusion_jax.core.errors import UserError
from diffusion_jax.report import html
from diffusion_jax.studies import subjects
from diffusion_jax.studies.samplers import cells, report
from diffusion_jax.studies.samplers import comparison as sampler_comparison
from diffusion_jax.studies.samplers.cells import Comparison, Result
from diffusion_jax.studies.subject import Subject
from tests import commands
from tests.markdown import squeezed


def command(*args, expect=0, main="compare_samplers"):
    done = commands.run(main, *args)
    assert done.returncode == expect, done.stdout + done.stderr
    return done


def test_a_model_is_compared_with_its_own_fine_solution(tmp_path, monkeypatch):
    """A network with fresh weights: what is judged, kept and written does not depend on how good it
    is.
    """
    monkeypatch.setattr(subjects, "FINE", 81)
    config = digits.get_config("vp")
    config.model.update(width=8, multipliers=(1,), attention=(), head_width=8)
    experiment = assemble(config, (8, 8, 1), 10)
    trained = Trained(
        experiment, experiment.kind.init(experiment, jax.random.key(0)), 7, "params", {}
    )
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (60, 8, 8, 1)).astype(np.uint8), np.arange(60) % 10
    source = data.sources.Arrays(images, labels)
    dataset = data.Dataset("noise", source, source, (8, 8, 1), 10, None)
    record = {"provenance": provenance.provenance(), "step": 7, "weights": "params"}
    entries = ["ancestral.ddim", "ode.edm_heun@karras"]
    text = sampler_comparison.compare_model(
        trained,
        dataset,
        "noise",
        entries,
        [3, 21],
        range(12),
        tmp_path / "compare",
        tmp_path / "samplers",
        record,
    )
    written = json.loads((tmp_path / "samplers.json").read_text())
    rows = {(row["sampler"], row["nfe"]): row for row in written["rows"]}
    assert rows["ode.edm_heun@karras", 21]["error"] < rows["ode.edm_heun@karras", 3]["error"]
    assert {"accuracy", "frechet", "seconds_per_image", "step", "weights"} <= rows[
        "ancestral.ddim", 3
    ].keys()
    assert (
        "81 NFE, which halving its steps moves by" in text
        and squeezed(text).count("| ancestral.ddim |") == 2
    )
    with Image.open(tmp_path / "samplers_strips.png") as picture:
        assert picture.width > 300


def test_the_command_ends_with_an_error_where_no_cell_has_a_result(tmp_path, monkeypatch):
    class Broken(NamedTuple):
        experiment = assemble(toy.get_config("vp"), (2,))

    subject = Subject(*[None] * len(Subject._fields))
    found = Comparison(
        [Result({"sampler": "ancestral.ddim", "nfe": 5, "seeds": "0", "note": "out of order"})],
        Result({"what": ""}),
    )
    monkeypatch.setattr(subjects, "of_model", lambda *args, **options: subject)
    monkeypatch.setattr(cells, "compare", lambda *args, **options: found)
    monkeypatch.setattr(
        report,
        "write",
        lambda subject, compared, stem, record: stem.write_text("written"),
    )
    with pytest.raises(
        UserError, match="no cell has a result; the first failed because: out of order"
    ):
        sampler_comparison.compare_model(
            Broken(), None, "broken", ["ancestral.ddim"], [5], [0], tmp_path, tmp_path / "stem", {}
        )
    assert (tmp_path / "stem").read_text() == "written"


def self_contained(page: str) -> bool:
    return not re.search(
        r"https?:|file:|<link[^>]+href=\"(?!data:)|src=\"(?!data:image/png;base64,)|@import|url\(",
        page,
    )


def test_the_command_compares_on_a_target_and_resumes(tmp_path):
    args = [
        "--target=gmm8",
        "--process=schedules.EDM()",
        "--samplers=ancestral.ddim@karras;ancestral.ddpm",
        "--nfe=4,8",
        "--num=30",
        f"--out={tmp_path}",
    ]
    first = command(*args)
    assert "At 8 NFE, " in first.stdout and "solving for the exact" in first.stderr
    before = json.loads((tmp_path / "compare.json").read_text())["rows"]
    second = command(*args)
    assert "4 of 4 cells are taken" in second.stderr and "solving" not in second.stderr
    assert json.loads((tmp_path / "compare.json").read_text())["rows"] == before
    assert {p.name for p in tmp_path.iterdir()} == {
        "compare",
        *(f"compare{end}" for end in (".html", ".json", ".md", ".png", "_strips.png")),
    }
    page = (tmp_path / "compare.html").read_text()
    assert self_contained(page) and not self_contained('<img src="compare.png">')
    assert page.count("data:image/png;base64,") >= 1 + 2 + 4 and "At 8 NFE, " in page
    gallery = page[page.index('<table class="gallery">') :]
    assert (
        page.index("<figcaption>real data")
        < page.index("<figcaption>exact solution")
        < page.index('<table class="gallery">')
    )
    assert (
        "real data" not in gallery[: gallery.index("</table>")]
        and "RMS error 0." in gallery
        and "Wasserstein 0." in gallery
    )


def test_the_command_lists_every_sampler_with_its_cost_and_kind():
    shown = command("--list").stdout
    assert re.search(r"ancestral.ddpm +1 a step +stochastic", shown)
    assert re.search(r"ode.heun +2 a step +deterministic", shown)
    for name in (
        "karras",
        "gmm8",
        "schedules.EDM",
        *members(components.SAMPLERS),
    ):
        assert f"  {name} " in shown


@pytest.mark.parametrize(
    "args, said",
    [
        (["--target=gmmm8"], "did you mean 'gmm8'"),
        (["--target=gmm8", "--samplers=ode.hun"], "did you mean 'ode.heun'"),
        (["--target=gmm8", "--process=VPP"], "unknown process 'VPP'"),
        (["--target=gmm8", "--nfe=5,x"], "--nfe=5,x: write whole numbers"),
        (["--samplers=ode.heun"], "--workdir is missing"),
    ],
)
def test_a_mistake_gets_one_clear_line(args, said, tmp_path):
    done = command(*args, *([f"--out={tmp_path / 'out'}"] if len(args) > 1 else []), expect=2)
    assert (
        done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and said in done.stderr
    ), done.stderr
    assert not (tmp_path / "out").exists()


def test_a_page_takes_text_literally_and_sorts_by_value(tmp_path):
    rows = [
        {"a": "<b>&", "x": 0.123456, "note": None},
        {"a": "plain", "x": float("nan"), "note": "went wrong"},
    ]
    table = html.table(
        rows,
        {"a": "A", "x": "X", "note": "note"},
        best=lambda row, key: key == "x" and row["a"] == "plain",
    )
    assert (
        "&lt;b&gt;&amp;" in table
        and 'data-v="0.123456">0.1235<' in table
        and 'class="number best" data-v="">nan<' in table
    )
    html.save(
        tmp_path / "a.html",
        html.page("T", [("H", table + html.picture(np.zeros((2, 2, 3), np.uint8)))]),
    )
    assert self_contained((tmp_path / "a.html").read_text())
