"""Who may import whom (docs/design.md): the chapters, from the foundations up to the commands."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "diffusion_jax"

# Each layer may import those below it. Chapters of one layer do not import each other.
LAYERS = (
    ("core",),
    ("processes", "models", "data"),
    ("denoisers", "samplers", "likelihood", "targets"),
    ("pretrained",),  # the conversion of weights describes networks and their parameterizations
    ("objectives", "inverse", "evaluation"),
    ("report",),  # tables and figures take titles and formats from evaluation/metrics.py
    ("training",),
    ("assembly",),
    ("planning", "configs"),
    ("studies",),
    ("experiments",),
)
LAYER = {chapter: number for number, layer in enumerate(LAYERS) for chapter in layer}

FRAMEWORKS = {
    "flax",
    "optax",
    "orbax",
    "grain",
    "tensorflow_datasets",
    "tensorflow",
    "sklearn",
    "matplotlib",
    "ml_collections",
    "absl",
}
# What a chapter must not import: the mathematics needs nothing but JAX, and only the assembly and
# what stands above it reads configs.
FORBIDDEN = {
    "core": FRAMEWORKS,
    "processes": FRAMEWORKS,
    "denoisers": FRAMEWORKS,
    "samplers": FRAMEWORKS,
    "likelihood": FRAMEWORKS,
    "targets": FRAMEWORKS,
    "objectives": FRAMEWORKS,
    "inverse": FRAMEWORKS,
    "pretrained": FRAMEWORKS,
    "models": FRAMEWORKS - {"flax"},
    "report": FRAMEWORKS - {"matplotlib"},
    "data": {"ml_collections", "flax", "optax", "orbax"},
    "training": {"ml_collections", "flax", "tensorflow_datasets"},
    "evaluation": {"ml_collections", "flax", "orbax"},
    "planning": FRAMEWORKS - {"ml_collections"},
}
# The package's own __init__.py names members of many chapters and imports none of them until they
# are used (tests/test_packaging.py), so it has no layer.
FILES = sorted(
    file
    for folder in ("diffusion_jax", "configs", "experiments")
    for file in (ROOT / folder).rglob("*.py")
    if file != PACKAGE / "__init__.py"
)


def imports(file: Path) -> set[str]:
    """Every module that a file imports anywhere, also inside functions, by its dotted name; `from a
    import b` counts as a.b, and deferred("a") as an import of a.
    """
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "deferred":
            found.add(node.args[0].value)
    return found


def chapter(parts: tuple[str, ...]) -> str:
    """The chapter of a module, by the parts of its dotted name."""
    if parts[0] != "diffusion_jax":
        return parts[0]
    return parts[1] if len(parts) > 1 and (PACKAGE / parts[1]).is_dir() else "__init__"


def chapter_of(file: Path) -> str:
    return chapter(file.relative_to(ROOT).with_suffix("").parts)


def split(file: Path) -> tuple[set[str], set[str]]:
    """(our own chapters, outside packages) that a file imports."""
    names = [name.split(".") for name in imports(file)]
    ours = [name for name in names if name[0] in ("diffusion_jax", "configs", "experiments")]
    return {chapter(tuple(name)) for name in ours}, {name[0] for name in names if name not in ours}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_go_downward(file):
    ours, outside = split(file)
    own = chapter_of(file)
    assert own in LAYER, f"{own} is a new chapter: give it a layer in this table"
    upward = {other for other in ours - {own} if LAYER[other] >= LAYER[own]}
    assert not upward, f"{own} may not import {upward}"
    forbidden = outside & FORBIDDEN.get(own, set())
    assert not forbidden, f"{own} may not import {forbidden}"


def modules_of(file: Path) -> set[Path]:
    """The files of ours that a file imports, also for its annotations alone; not __init__.py."""
    names = [name.split(".") for name in imports(file)]
    found = {
        ROOT.joinpath(*parts).with_suffix(".py") for name in names for parts in (name, name[:-1])
    }
    return found & set(FILES) - {file}


def test_no_files_import_each_other_in_a_circle():
    graph = {file: modules_of(file) for file in FILES if file.name != "__init__.py"}
    assert sum(map(len, graph.values())) > len(FILES), "the control: imports are seen"
    tuple(TopologicalSorter(graph).static_order())  # raises CycleError, which names the files


def test_every_chapter_exists():
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    assert folders | {"configs", "experiments"} == set(LAYER)


def test_the_checker_sees(tmp_path):
    """The control: a forbidden import inside a function is found, and a deferred one."""
    file = tmp_path / "bad.py"
    file.write_text(
        "import numpy as np\ndef f():\n    from flax import linen\n"
        "    from diffusion_jax.models import unet\n"
        "ocp = deferred('orbax.checkpoint')\n"
    )
    ours, outside = split(file)
    assert ours == {"models"} and outside == {"numpy", "flax", "orbax"}


def test_nothing_draws_gaussian_images_but_arrays():
    """jax.random.normal on the sampling and training paths only through arrays.noise, one image
    from one key.
    """
    package = [file for file in FILES if file.is_relative_to(PACKAGE)]
    users = {
        str(file.relative_to(PACKAGE)) for file in package if "random.normal" in file.read_text()
    }
    allowed = {user for user in users if user.startswith(("models/", "data/"))}
    assert users <= {"core/arrays.py", "objectives/times.py"} | allowed, users
