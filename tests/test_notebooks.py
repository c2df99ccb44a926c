"""docs/notebooks/: their outputs are those of their present code, they are small, and they run."""

from __future__ import annotations

import ast
import base64
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
PAGE = ROOT / "docs" / "notebooks.md"
MACHINE = re.compile(r"/(?:home|root|tmp|work|usr|opt|var|Users|content)/")
LARGEST, LARGEST_ANIMATION = 300_000, 300_000  # bytes

# The parameters of the notebooks with which they run in seconds, and show nothing.
SMALL = {
    "1_forward_process": {"points": 40, "particles": 20, "steps": 12, "frames": 4},
    "2_one_family": {"train_steps": 3, "points": 20},
    "3_your_own_network_and_data": {"train_steps": 3, "per_class": 2},
    "4_samplers_against_exact_truth": {"starts": 4, "count": 50, "finest": 32},
    "5_guidance": {"count": 50, "steps": 4},
    "6_one_step": {"teacher_steps": 3, "student_steps": 3, "points": 20},
}
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path, kind: str = "code") -> list[dict]:
    """The cells of a kind, each with its source as one text."""
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [
        cell | {"source": "".join(cell["source"])} for cell in found if cell["cell_type"] == kind
    ]


def tagged(path: Path, tag: str) -> list[dict]:
    return [cell for cell in cells(path) if tag in cell["metadata"].get("tags", [])]


def pictures(cell: dict) -> list[bytes]:
    """The PNG files among the outputs of a cell."""
    found = (output.get("data", {}).get("image/png") for output in cell["outputs"])
    return [base64.b64decode(data) for data in found if data]


def test_there_are_six_notebooks_and_the_page_shows_them():
    assert [path.stem for path in NOTEBOOKS] == sorted(SMALL)
    page = PAGE.read_text(encoding="utf-8")
    for number, path in enumerate(NOTEBOOKS, 1):
        assert f"(notebooks/{path.name})" in page
        assert f"(images/notebook_{number}.png)" in page
        (cell,) = tagged(path, "figure")
        picture = ROOT / "docs" / "images" / f"notebook_{number}.png"
        assert picture.read_bytes() == pictures(cell)[-1]


@every_notebook
def test_the_outputs_are_those_of_the_code(path):
    """If this fails: make notebooks."""
    every = cells(path)
    assert [cell["execution_count"] for cell in every] == list(range(1, len(every) + 1))
    code = "\n\0".join(cell["source"] for cell in every)
    recorded = json.loads(path.read_text(encoding="utf-8"))["metadata"]["code_sha256"]
    assert recorded == hashlib.sha256(code.encode()).hexdigest(), "run `make notebooks`"
    for cell in every:
        for output in cell["outputs"]:
            assert output["output_type"] != "error" and output.get("name") != "stderr"
            assert set(output.get("data", {})) <= {"text/plain", "image/png"}
            assert not MACHINE.search(json.dumps({**output, "data": {}}))


@every_notebook
def test_it_is_small(path):
    """All of it but its animations, whose data are in base64."""
    found = [picture for cell in cells(path) for picture in pictures(cell)]
    animations = [len(picture) for picture in found if b"acTL" in picture[:2000]]
    assert len(found) >= 2 and max(animations, default=0) < LARGEST_ANIMATION
    assert path.stat().st_size - 4 / 3 * sum(animations) < LARGEST


@every_notebook
def test_the_first_cell_installs_the_library(path):
    first, *others = cells(path)
    assert first["source"] == cells(NOTEBOOKS[0])[0]["source"]
    assert first["source"].count("URL_OF_THE_REPOSITORY") == 1
    assert not any("URL_OF_THE_REPOSITORY" in cell["source"] for cell in others)
    assert "URL_OF_THE_REPOSITORY" in (ROOT / "README.md").read_text(encoding="utf-8")


@every_notebook
def test_links_lead_somewhere(path):
    text = "\n".join(cell["source"] for cell in cells(path, "markdown"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        assert target.startswith("https:") or (path.parent / target).exists(), target


def test_forty_lines_are_forty_lines():
    (cell,) = tagged(ROOT / "docs" / "notebooks" / "3_your_own_network_and_data.ipynb", "core")
    assert sum(bool(line.strip()) for line in cell["source"].splitlines()) <= 40


def parameters(path: Path) -> set[str]:
    """The names that the cell of parameters gives numbers to."""
    (cell,) = tagged(path, "parameters")
    body = ast.parse(cell["source"]).body
    assert all(isinstance(each, ast.Assign) and isinstance(each.value.value, int) for each in body)
    return {target.id for each in body for target in each.targets}


@every_notebook
def test_the_small_settings_are_its_parameters(path):
    assert parameters(path) == {*SMALL[path.stem]}


# in place of IPython's
IMAGE = """
def Image(filename):
    with open(filename, "rb") as file:
        assert file.read(8) == b"\\x89PNG\\r\\n\\x1a\\n"
"""


def program(path: Path) -> str:
    """The code of a notebook with small settings, where a missing library is an error."""
    parts = []
    for cell in cells(path):
        code = re.sub(r"^( *)%pip .*", r"\1raise ModuleNotFoundError", cell["source"], flags=re.M)
        parts.append(code.replace("from IPython.display import Image\n", IMAGE))
        if "parameters" in cell["metadata"].get("tags", []):
            parts += [f"{name} = {value}" for name, value in SMALL[path.stem].items()]
    return "\n".join(parts)


@pytest.mark.long
@every_notebook
def test_it_runs(path, tmp_path):
    """The code of all cells in order, in a process of its own, without IPython."""
    (tmp_path / "notebook.py").write_text(program(path), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", "notebook.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
