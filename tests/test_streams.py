"""Every random stream of the package has a name in diffusion_jax/core/streams.py."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "diffusion_jax"


def unnamed(source: str) -> list[int]:
    """The lines on which a raw integer is folded into a key."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and "fold_in" in ast.unparse(node.func):
            parts = (part for argument in node.args[1:] for part in ast.walk(argument))
            if any(isinstance(part, ast.Constant) and type(part.value) is int for part in parts):
                lines.append(node.lineno)
    return lines


@pytest.mark.parametrize(
    "file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE))
)
def test_no_raw_integer_is_folded_into_a_key(file):
    assert not unnamed(file.read_text()), "name the stream in diffusion_jax/core/streams.py"


def test_the_check_finds_raw_integers():
    assert unnamed("x = arrays.fold_in(keys, 3)") == [1]
    assert unnamed("x = jax.jit(jax.random.fold_in)(key, 2**32 - i)") == [1]
    assert not unnamed("x = arrays.fold_in(keys, streams.PRIOR)")
