"""What the package contains, and what importing it costs."""

from __future__ import annotations

import ast
import configparser
import importlib
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import diffusion_jax

ROOT = Path(__file__).parent.parent


def test_the_wheel_contains_diffusion_jax_alone(tmp_path):
    """The files that setuptools copies into a wheel, built offline from a copy of the sources."""
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / name)
    for folder in ("diffusion_jax", "configs", "experiments", "tests"):
        shutil.copytree(
            ROOT / folder,
            tmp_path / folder,
            ignore=shutil.ignore_patterns("__pycache__", "fixtures"),
        )
    script = "import setuptools; setuptools.setup(script_args=['build', '--build-lib', 'wheel'])"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    wheel = tmp_path / "wheel"
    assert [entry.name for entry in wheel.iterdir()] == ["diffusion_jax"]
    assert (wheel / "diffusion_jax" / "py.typed").is_file()
    packaged = {file.relative_to(wheel) for file in wheel.rglob("*.py")}
    assert packaged == {file.relative_to(ROOT) for file in (ROOT / "diffusion_jax").rglob("*.py")}


def test_importing_the_package_imports_no_other():
    script = "import sys; before = {*sys.modules}; import diffusion_jax.core.errors; "
    script += "print(sorted({name.split('.')[0] for name in {*sys.modules} - before}))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    others = set(ast.literal_eval(done.stdout)) - set(sys.stdlib_module_names)
    assert others == {"diffusion_jax"}


def test_the_names_of_a_first_session_are_exposed():
    assert set(diffusion_jax.__all__) <= set(dir(diffusion_jax))
    for name, place in diffusion_jax._PLACES.items():
        module, *attribute = (place,) if isinstance(place, str) else place
        found = importlib.import_module(module)
        assert getattr(diffusion_jax, name) is (getattr(found, *attribute) if attribute else found)
    assert set(diffusion_jax._PLACES) == set(diffusion_jax.__all__)


def test_a_type_checker_sees_the_names_that_are_exposed():
    """The imports under TYPE_CHECKING are the names of `__all__`, from the same modules."""
    tree = ast.parse((ROOT / "diffusion_jax" / "__init__.py").read_text())
    checked = next(
        node
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    seen = {alias.name: node.module for node in checked.body for alias in node.names}
    assert set(seen) == set(diffusion_jax.__all__)
    for name, place in diffusion_jax._PLACES.items():
        expected = place.rpartition(".")[0] if isinstance(place, str) else place[0]
        assert seen[name] == expected, name


def test_the_version_is_that_of_the_metadata():
    assert f"version = {diffusion_jax.__version__}\n" in (ROOT / "setup.cfg").read_text()
    assert f"version: {diffusion_jax.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## {diffusion_jax.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def extras(text: str) -> dict[str, list[str]]:
    parser = configparser.ConfigParser()
    parser.read_string(text)
    return {name: value.split() for name, value in parser["options.extras_require"].items()}


def test_the_extras_for_accelerators_are_those_of_jax():
    """Those of setup.cfg exist in JAX, and the documentation and Makefile name no other."""
    ours = extras((ROOT / "setup.cfg").read_text())
    of_jax = metadata.metadata("jax").get_all("Provides-Extra")
    accelerators = {
        name: re.fullmatch(r"jax\[(\w+)\]", needs)[1]
        for name, (needs, *_) in ours.items()
        if needs.startswith("jax[")
    }
    assert accelerators == {"cuda12": "cuda12", "cuda13": "cuda13", "tpu": "tpu", "cuda": "cuda12"}
    assert set(accelerators.values()) <= set(of_jax)
    texts = [*ROOT.glob("*.md"), ROOT / "Makefile", *(ROOT / "docs").glob("*.md")]
    texts += [file for file in (ROOT / "experiments" / "launch").iterdir() if file.is_file()]
    named = {name for file in texts for name in re.findall(r"EXTRAS=(\w+)", file.read_text())}
    assert {"cuda12", "cuda13", "tpu"} <= named <= set(accelerators)
    packages = (file for file in (ROOT / "diffusion_jax").rglob("*.py"))
    asked = {
        name
        for file in packages
        for name in re.findall(r"diffusion_jax\[(\w+)\]", file.read_text())
    }
    assert asked <= set(ours)


def test_make_refuses_an_extra_that_does_not_exist(tmp_path):
    line = ["make", "install", "EXTRAS=cuda14", f"VENV={tmp_path / 'venv'}"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode and "EXTRAS=cuda14: write cuda13, cuda12 or tpu" in done.stderr
    assert not (tmp_path / "venv").exists()


TARGETS = {
    "train": "diffusion_jax.studies.training:train",
    "sample": "diffusion_jax.studies.generation:sample",
}
# Checkpoints need Orbax; the others take seconds to import, and a run may not need them.
LIBRARIES = {
    "diffrax",
    "equinox",
    "grain",
    "jinja2",
    "matplotlib",
    "orbax",
    "scipy",
    "sklearn",
    "tensorflow_datasets",
}


@pytest.mark.parametrize("command", TARGETS)
def test_commands_import_libraries_when_they_use_them(command):
    """What `experiments.train` and `experiments.sample` import before they run."""
    script = f"import sys; from experiments import loading; loading.load('{TARGETS[command]}'); "
    script += "print(sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert set(ast.literal_eval(done.stdout)) & LIBRARIES == {"orbax"}
