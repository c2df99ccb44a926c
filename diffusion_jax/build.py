"""From a name in a config to the thing in the package: the name IS the path.

    build(SAMPLERS, 'ode.edm_heun')                                    samplers/ode.py, edm_heun()
    build(SAMPLERS, 'ancestral.ddim(eta=0.5)')                         with arguments
    build(OBJECTIVES, 'denoising.flow_matching(time=times.logit_normal(std=1.2))', process)      nested; more arguments from code

A spec is a call written as text, so that the command line can change a component and its arguments in one override. It is parsed,
never evaluated: names are looked up in the family, arguments are literals or further specs. No registry: a public function that
is annotated to return the family's type, in one of the family's modules, is a member.
"""

from __future__ import annotations

import ast
import inspect
from types import ModuleType
from typing import Any, Callable, NamedTuple

from diffusion_jax.errors import UserError, unknown


class Family(NamedTuple):
    """What a config may name: `kind` for messages; the modules; what members return ('class': classes); what arguments may return."""

    kind: str
    modules: tuple[ModuleType, ...]
    returns: tuple[str, ...]
    arguments: tuple[str, ...] = ()


def members(family: Family, returns: tuple[str, ...] | None = None) -> dict[str, Callable]:
    """The family's public functions (and dataclasses and networks), as 'module.name'; of a single module also as 'name'."""
    returns = returns or family.returns
    found = {}
    for module in family.modules:
        prefix = "" if len(family.modules) == 1 else module.__name__.rpartition(".")[2] + "."
        for name, value in vars(module).items():
            if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
                continue
            if ("class" if inspect.isclass(value) else getattr(value, "__annotations__", {}).get("return")) in returns:
                found[prefix + name] = value
    return found


def build(family: Family, spec: str, *args, **kwargs) -> Any:
    """Build the component that `spec` names, with the spec's own arguments after *args and **kwargs.

    Raises UserError, naming the nearest name or the arguments there are, for anything that does not fit.
    """
    try:
        tree = ast.parse(spec.strip(), mode="eval").body
    except (SyntaxError, AttributeError):
        raise UserError(f"cannot read {family.kind} '{spec}'; write a name or a call, such as {_example(family)}") from None
    return _build(family, tree, spec, family.returns, args, kwargs)


def _build(family: Family, node: ast.expr, spec: str, returns: tuple[str, ...], args=(), kwargs=None) -> Any:
    call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
    name, choices = ast.unparse(call.func), members(family, returns)
    if name not in choices:
        raise unknown(family.kind, name, choices)
    function = choices[name]
    given = {k.arg: _argument(family, k.value, spec) for k in call.keywords}
    args = (*args, *(_argument(family, a, spec) for a in call.args))
    try:
        inspect.signature(function).bind(*args, **(kwargs or {}), **given)
    except TypeError as error:
        takes = ", ".join(p.name for p in inspect.signature(function).parameters.values() if p.default is not p.empty) or "no arguments"
        raise UserError(f"{family.kind} '{spec}': {error}; {name} takes {takes}") from None
    return function(*args, **(kwargs or {}), **given)


def _argument(family: Family, node: ast.expr, spec: str) -> Any:
    """A literal, or a nested component."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        if isinstance(node, (ast.Call, ast.Attribute, ast.Name)):
            return _build(family, node, spec, family.returns + family.arguments)
        raise UserError(f"{family.kind} '{spec}': cannot read the argument '{ast.unparse(node)}'") from None


def _example(family: Family) -> str:
    return f"'{next(iter(members(family)))}'"
