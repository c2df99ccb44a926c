"""Who may import whom (docs/design.md): the mathematics, the networks and the machinery never import each other."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "diffusion_jax"
WORDS = {"types", "arrays", "errors", "integrators", "reading"}
MATHEMATICS = WORDS | {
    "processes",
    "parameterization",
    "guidance",
    "inverse",
    "objectives",
    "samplers",
    "likelihood",
    "targets",
}
# room: (our own rooms it may import, outside packages it must not); a room is a file or a folder of diffusion_jax
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
CONFIGS = {"ml_collections"}
ALLOWED = {
    "__init__": (set(), FRAMEWORKS | {"jax"}),
    "types": (set(), FRAMEWORKS),
    "errors": (set(), FRAMEWORKS | {"jax"}),
    "reading": ({"errors"}, FRAMEWORKS | {"jax"}),
    "arrays": ({"types"}, FRAMEWORKS),
    "integrators": ({"types", "arrays"}, FRAMEWORKS),
    "processes": (WORDS | {"processes"}, FRAMEWORKS),
    "parameterization": (WORDS | {"processes"}, FRAMEWORKS),
    "guidance": (WORDS | {"processes"}, FRAMEWORKS),
    "guides": (WORDS | {"guidance"}, FRAMEWORKS),
    "targets": (WORDS | {"processes"}, FRAMEWORKS),
    "chains": (WORDS | {"processes", "parameterization"}, FRAMEWORKS),
    "objectives": (WORDS | {"processes", "parameterization", "samplers", "objectives"}, FRAMEWORKS),  # a teacher's step is a sampler's
    "samplers": (WORDS | {"processes", "samplers"}, FRAMEWORKS),
    "inverse": (MATHEMATICS, FRAMEWORKS),
    "likelihood": (MATHEMATICS, FRAMEWORKS),
    "models": ({"types", "arrays", "errors", "models"}, FRAMEWORKS - {"flax"}),
    "data": ({"types", "arrays", "errors", "reading", "data", "provenance"}, CONFIGS | {"flax", "optax", "orbax"}),
    "training": (
        {"types", "arrays", "errors", "reading", "training", "provenance", "plotting"},
        CONFIGS | {"flax", "tensorflow_datasets"},
    ),
    "evaluation": (
        {"types", "arrays", "errors", "reading", "evaluation", "provenance", "data"},
        CONFIGS | {"flax", "orbax"},
    ),
    "latent": ({"types", "arrays", "errors", "data", "evaluation"}, FRAMEWORKS),
    "convert": ({"errors", "reading", "models"}, FRAMEWORKS),
    "plotting": ({"types", "arrays", "errors", "provenance", "evaluation"}, FRAMEWORKS - {"matplotlib"}),
    "report": ({"types", "errors", "provenance"}, FRAMEWORKS | {"jax"}),
    "provenance": ({"types", "errors", "reading"}, FRAMEWORKS),
    "build": ({"errors"}, FRAMEWORKS | {"jax"}),
    "config_schema": ({"errors"}, FRAMEWORKS | {"jax"}),
    "same_run": ({"errors", "provenance", "reading", "data"}, FRAMEWORKS | {"jax"}),
    "hlo": (set(), FRAMEWORKS | {"jax"}),
    "flops": (set(), FRAMEWORKS | {"jax"}),
}
# sees everything; experiment.py turns a config into components, workdir.py into a run, comparison.py runs samplers side by side,
# planning.py compiles a train step for machines that are not here, autoencoders.py asks trained autoencoders
ROOF = {"experiment", "workdir", "comparison", "planning", "autoencoders"}
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(file: Path) -> set[str]:
    """Every module that a file imports anywhere, also inside functions, by its dotted name; `from a import b` counts as
    a.b.
    """
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def split(file: Path) -> tuple[set[str], set[str]]:
    """(our own rooms, outside packages) that a file imports."""
    names = [name.split(".") for name in imports(file)]
    ours = {name[1] if len(name) > 1 else "" for name in names if name[0] == "diffusion_jax"}
    return ours, {name[0] for name in names if name[0] != "diffusion_jax"}


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_go_downward(file):
    ours, outside = split(file)
    if room(file) in ROOF:
        return
    assert room(file) in ALLOWED, f"{room(file)} is a new room: say in this table what it may import"
    allowed, forbidden = ALLOWED[room(file)]
    assert ours <= allowed, f"{room(file)} may not import {ours - allowed}"
    assert not outside & forbidden, f"{room(file)} may not import {outside & forbidden}"


def test_only_the_roof_reads_configs():
    readers = {
        str(f.relative_to(ROOT))
        for folder in ("diffusion_jax", "configs", "experiments")
        for f in (ROOT / folder).rglob("*.py")
        if "ml_collections" in split(f)[1]
    }
    assert readers <= {f"diffusion_jax/{name}.py" for name in ROOF} | {
        r for r in readers if r.startswith(("configs/", "experiments/"))
    }
    assert any(r.startswith("configs/") for r in readers)


def test_the_checker_sees(tmp_path):
    """The control: a forbidden import inside a function is found."""
    file = tmp_path / "bad.py"
    file.write_text(
        "import numpy as np\ndef f():\n    from flax import linen\n    from diffusion_jax.models import unet\n"
    )
    ours, outside = split(file)
    assert ours == {"models"} and outside == {"numpy", "flax"}


def test_nothing_draws_gaussian_images_but_arrays():
    """jax.random.normal on the sampling and training paths only through arrays.noise, one image from one key."""
    users = {str(f.relative_to(PACKAGE)) for f in FILES if "random.normal" in f.read_text()}
    assert users <= {"arrays.py", "objectives/times.py"} | {
        u for u in users if u.startswith(("models/", "data/"))
    }, users
