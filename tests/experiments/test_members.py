"""Members of a family of components are found by name, or refused by name."""

from __future__ import annotations

import importlib
import inspect
import sys
from pathlib import Path

import pytest

from diffusion_jax.assembly import components
from diffusion_jax.assembly.build import Family, build, members
from diffusion_jax.core.errors import UserError
from tests.experiments.small_runs import ROOT


def test_a_member_is_found_or_refused_by_name_never_ignored(tmp_path, monkeypatch):
    """What is not in the tuple of members of its module, or in a module that the family does not
    name, is refused with what to do.
    """
    (tmp_path / "mine.py").write_text(
        "def plain(): return 'plain'\ndef bare(): return 'bare'\nTHINGS = (plain,)\n"
    )
    (tmp_path / "postponed.py").write_text(
        "from __future__ import annotations\ndef later(n: int = 1): return f'later {n}'\n"
        "THINGS = (later,)\n"
    )
    (tmp_path / "new.py").write_text("def added(): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    mine, postponed = map(importlib.import_module, ("mine", "postponed"))
    family = Family("thing", mine.THINGS + postponed.THINGS, "THINGS")
    assert {*members(family)} == {"mine.plain", "postponed.later"}
    assert [build(family, name) for name in ("mine.plain", "later", "postponed.later(n=2)")] == [
        "plain",
        "later 1",
        "later 2",
    ]
    for name, said in {
        "mine.bare": "is in .*/mine.py, but not in the tuple THINGS at the end of that file",
        "bare": "mine.py",
        "mine.bare(1)": "add it there",
        "later(n=1.5)": "n=1.5: it must be a whole number",
        "new.added": "/new.py, which is not a module of this family; give it a tuple THINGS",
        "added": "/new.py",
        "new.absent": "unknown thing 'new.absent'",
        "absent": "unknown thing",
    }.items():
        with pytest.raises(UserError, match=said):
            build(family, name)


# functions that return a family's type and are not members, for they need arrays or functions
PARTS = {"memoryless", "empirical", "solver", "discrete_time", "continuous_time"}


@pytest.mark.parametrize(
    "family",
    [f for f in vars(components).values() if type(f) is Family],
    ids=lambda family: family.kind,
)
def test_no_function_that_returns_a_family_s_type_is_missing_from_it(family):
    """Every public function near the members that is annotated as they are is a member, too."""

    def returns(function):
        return getattr(function, "__annotations__", {}).get("return")

    kinds = {returns(function) for function in family.own} - {None, "Array"}
    folders = {Path(sys.modules[function.__module__].__file__).parent for function in family.own}
    listed = {(f.__module__, f.__name__) for f in family.own}
    for path in (path for folder in folders for path in folder.glob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for function in vars(importlib.import_module(name)).values():
            if inspect.isfunction(function) and function.__module__ == name:
                member = returns(function) in kinds and function.__name__[0] != "_"
                known = (name, function.__name__) in listed or function.__name__ in PARTS
                assert known or not member, f"{name}.{function.__name__} is in no {family.listed}"


def test_specs_are_calls_in_text_and_nothing_is_evaluated():
    sampler = build(components.SAMPLERS, "ancestral.ddim(eta=0.5)")
    assert sampler.nfe == 1
    process = build(
        components.PROCESSES, "schedules.Shifted(base=schedules.VP(beta_max=10.0), shift=4.0)"
    )
    assert process.base.beta_max == 10.0
    for spec, said in {
        "ancestral.ddim(eta=": "cannot read sampler",
        "ancestral.ddim(temperature=1)": "unexpected keyword argument 'temperature'; "
        "ancestral.ddim takes eta",
        "ancestral.ddim(eta=__import__('os'))": "ancestral.ddim: eta: it must be a number",
        "__import__('os')": "unknown sampler '__import__'",
        "ancestral.ddimm": "did you mean 'ancestral.ddim'",
    }.items():
        with pytest.raises(UserError, match=said.replace("(", r"\(")):
            build(components.SAMPLERS, spec)
