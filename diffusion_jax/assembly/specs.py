"""Specs: components written as calls in text, such as 'ancestral.ddim(eta=0.5)'.

A spec is parsed, never evaluated. `build` turns it into the component; `with_args` makes a variant
of it for a config.
"""

from __future__ import annotations

import ast
from typing import Any

from diffusion_jax.core.errors import UserError

LONGEST = 100_000  # characters of a spec: a table of betas has 50,000
DEEPEST = 40  # levels of its syntax tree: a sampler around a sampler has 9
RENAMED = {"taught": "distilled"}  # arguments of components that had another name


def parse(spec: Any, kind: str, example: str) -> ast.expr:
    """The syntax tree of a spec.

    Args:
      spec: the text.
      kind: the kind of the component, for messages: 'sampler'.
      example: a spec of this kind, for messages.

    Raises:
      UserError: for a value that is not a spec, is nested too deeply, or gives an argument twice.
    """
    try:
        if len(spec) > LONGEST:
            raise ValueError
        text = spec.strip().replace("++", "pp")  # DPM-Solver++ is dpmpp
        tree = ast.parse(text, mode="eval").body
        _check_syntax(tree, spec, kind)
        return _rename_arguments(tree)
    except UserError:
        raise
    except (SyntaxError, AttributeError, TypeError, ValueError, MemoryError, RecursionError):
        raise UserError(
            f"cannot read {kind} '{str(spec):.60}'; write a name or a call, such as '{example}'"
        ) from None


def _check_syntax(tree: ast.expr, spec: str, kind: str) -> None:
    level = [tree]
    for _ in range(DEEPEST):
        level = [below for node in level for below in ast.iter_child_nodes(node)]
    if level:
        raise UserError(f"{kind} '{shown(spec)}': it is nested more than {DEEPEST} deep")
    for node in ast.walk(tree):
        names = [keyword.arg for keyword in as_call(node).keywords]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UserError(f"{kind} '{shown(spec)}': {twice} is given twice; keep one of them")


def _rename_arguments(tree: ast.expr) -> ast.expr:
    """The tree with arguments under the names that they have now; stored configs have old ones."""
    for node in ast.walk(tree):
        for keyword in as_call(node).keywords:
            keyword.arg = RENAMED.get(keyword.arg, keyword.arg)
    return tree


def as_call(node: ast.AST) -> ast.Call:
    """Return a node as a call: a name alone is a call without arguments.

    Args:
      node: a name or a call of a parsed spec.
    """
    return node if type(node) is ast.Call else ast.Call(node, [], [])


def is_component(node: ast.expr) -> bool:
    """Return whether an argument is a name or a call, rather than a literal.

    Args:
      node: the value of the argument in a parsed spec.
    """
    return type(node) in (ast.Call, ast.Attribute, ast.Name)


def shown(spec: str) -> str:
    """Return a spec as a message shows it; of more than 200 characters the beginning.

    Args:
      spec: the text of a spec, which may be malformed.
    """
    return spec if len(spec) <= 200 else f"{spec[:200]}..."


def with_args(spec: str, **arguments: Any) -> str:
    """The spec with these arguments, which replace those of the same name.

    The rest of its text stays as it is.

        with_args("schedules.VE(sigma_min=0.02)", sigma_max=10.0)
        'schedules.VE(sigma_min=0.02, sigma_max=10.0)'

    Args:
      spec: a name or a call.
      **arguments: literals. Arguments that are components are set by `with_parts`.
    """
    return with_parts(spec, **{name: repr(value) for name, value in arguments.items()})


def with_parts(spec: str, **parts: str) -> str:
    """The spec with these components as arguments, which replace those of the same name.

        with_parts("autoencoding.elbo()", likelihood="autoencoding.gaussian()")
        'autoencoding.elbo(likelihood=autoencoding.gaussian())'

    Args:
      spec: a name or a call.
      **parts: specs.
    """
    for name, text in parts.items():
        spec = _with_one(spec, name, text)
    return spec


def _with_one(spec: str, name: str, text: str) -> str:
    tree = ast.parse(spec, mode="eval").body
    if not spec.endswith(")"):
        return f"{spec}({name}={text})"
    call = as_call(tree)
    for keyword in call.keywords:
        if keyword.arg == name:
            # ast counts bytes, and a spec may hold any text
            raw, value = spec.encode(), keyword.value
            return (raw[: value.col_offset] + text.encode() + raw[value.end_col_offset :]).decode()
    comma = ", " if call.args or call.keywords else ""
    return f"{spec[:-1]}{comma}{name}={text})"
