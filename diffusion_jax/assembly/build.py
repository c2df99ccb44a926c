"""From a name in a config to the component: the name is the path.

    build(SAMPLERS, 'ode.edm_heun')                    samplers/ode.py, edm_heun()
    build(SAMPLERS, 'ancestral.ddim(eta=0.5)')         with arguments
    build(SAMPLERS, 'ddim(eta=0.5)')                   the name alone: the first member that has it
    build(OBJECTIVES, 'denoising.flow_matching(time=times.logit_normal(std=1.2))', process)
                                                       nested, with more arguments from code

Names are looked up in the family; arguments are literals or further specs, and each is checked
against the type of the parameter that it is for. The members of a family are those of the tuples at
the end of their modules (SAMPLERS in samplers/*.py). A function that is in no tuple is refused with
what to do.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from diffusion_jax.assembly import annotations
from diffusion_jax.assembly.specs import as_call, is_component, parse, shown
from diffusion_jax.core.errors import UserError, unknown


class Family(NamedTuple):
    """A family of components that a config can name.

    Attributes:
      kind: the kind of its members, for messages.
      own: the members.
      listed: the name of the tuple of members in their modules, for messages.
      arguments: what an argument of a member may name, by the type of the parameter.
      aliases: the names of other programs for members.
    """

    kind: str
    own: tuple[Callable, ...]
    listed: str
    arguments: Mapping[Any, tuple[Callable, ...]] = MappingProxyType({})
    aliases: Mapping[str, str] = MappingProxyType({})


def members(family: Family) -> dict[str, Callable]:
    """Return the members of a family by their names in a config.

    Args:
      family: the family, such as components.SAMPLERS.

    Returns:
      Keys are 'module.name', or 'name' where all members are of one module.
    """
    return _named(family, family.own)


def build(family: Family, spec: str, *args: Any, **kwargs: Any) -> Any:
    """Build the component that `spec` names.

    Args:
      family: what the spec may name.
      spec: a name or a call.
      *args: arguments that precede those of the spec.
      **kwargs: more arguments from code.

    Raises:
      UserError: for an unknown name or argument, with the nearest name or the arguments that there
        are; for a value of another type than the parameter's; and for one that the component itself
        refuses.
    """
    return _build(family, _parsed(family, spec), spec, family.own, args, kwargs)


def resolved(family: Family, spec: str) -> str:
    """Complete the names of the members in a spec: 'ddim(eta=0.5)' -> 'ancestral.ddim(eta=0.5)'.

    A spec that has full names already is returned unchanged.

    Args:
      family: the family of the outermost name.
      spec: a name or a call, whose arguments may be specs of other families.

    Raises:
      UserError: for a name that does not exist.
    """
    tree = _parsed(family, spec)
    full = _spelled(family, tree, family.own)
    return spec if ast.dump(tree) == ast.dump(_parsed(family, full)) else full


def member(family: Family, spec: str) -> Callable:
    """Return the function or class that a spec names, without calling it.

    Args:
      family: the family of the outermost name.
      spec: a name or a call; its arguments are ignored.

    Raises:
      UserError: for a name that does not exist.
    """
    name = ast.unparse(as_call(_parsed(family, spec)).func)
    return _member(family, name, family.own)[1]


def _parsed(family: Family, spec: str) -> ast.expr:
    return parse(spec, family.kind, next(iter(members(family))))


# ---- names
def _module(function: Callable) -> str:
    return function.__module__.rpartition(".")[2]


def _named(family: Family, choices: tuple[Callable, ...]) -> dict[str, Callable]:
    """The functions by their names in specs of this family."""
    everything = family.own + sum(family.arguments.values(), ())
    alone = len({function.__module__ for function in everything}) == 1
    return {
        function.__name__ if alone else f"{_module(function)}.{function.__name__}": function
        for function in choices
    }


def _member(family: Family, name: str, choices: tuple[Callable, ...]) -> tuple[str, Callable]:
    """Find a member by its full name, its name in any case, or an alias: (full name, function)."""
    known = _named(family, choices)
    if name in known:
        return name, known[name]
    alike = {choice: (choice.lower(), choice.lower().rpartition(".")[2]) for choice in known}
    exact = [choice for choice in known if choice.rpartition(".")[2] == name]
    near = [choice for choice, words in alike.items() if name.lower() in words]
    found = next(iter(exact or near), None) or family.aliases.get(name.lower())
    if found not in known:
        raise _not_listed(family, name, choices) or unknown(family.kind, name, known)
    return found, known[found]


def _not_listed(family: Family, name: str, choices: tuple[Callable, ...]) -> UserError | None:
    """The remedy for a function of this name that is not a member; None if there is no function.

    It is looked for in the family's modules and in the other files of their folders.
    """
    module, _, own = name.rpartition(".")
    modules = [sys.modules[found] for found in dict.fromkeys(f.__module__ for f in choices)]
    listed = dict.fromkeys(Path(module.__file__) for module in modules)
    folders = dict.fromkeys(path.parent for path in listed)
    others = [path for folder in folders for path in sorted(folder.glob("*.py"))]
    for path in dict.fromkeys([*listed, *others]):
        if own.startswith("_") or module not in ("", path.stem) or not _defines(path, own):
            continue
        place = "/".join(path.parts[-2:])
        if path in listed:
            return UserError(
                f"{family.kind} '{name}': {own} is in {place}, but not in the tuple "
                f"{family.listed} at the end of that file; add it there"
            )
        return UserError(
            f"{family.kind} '{name}': {own} is in {place}, which is not a module of this family; "
            f"give it a tuple {family.listed} and add it to the family in "
            "diffusion_jax/assembly/components.py"
        )
    return None


def _defines(path: Path, name: str) -> bool:
    """Whether a file defines a function or class of this name."""
    return path.is_file() and bool(
        re.search(rf"^(def|class) {re.escape(name)}\b", path.read_text(encoding="utf-8"), re.M)
    )


# ---- calls
class _Node(NamedTuple):
    """An argument that the spec gives, before it is read."""

    node: ast.expr


def _build(
    family: Family,
    node: ast.expr,
    spec: str,
    choices: tuple[Callable, ...],
    args: tuple = (),
    kwargs: Mapping[str, Any] = MappingProxyType({}),
) -> Any:
    call = as_call(node)
    name, function = _member(family, ast.unparse(call.func), choices)
    bound = _bound(family, call, spec, name, function, args, kwargs)
    if not (call.args or call.keywords):
        return function(*bound.args, **bound.kwargs)
    try:
        return function(*bound.args, **bound.kwargs)
    except UserError:
        raise
    # what the component's own checks do not foresee
    except (TypeError, ValueError, ArithmeticError, MemoryError) as error:
        raise UserError(
            f"{family.kind} '{shown(spec)}': {name} refuses these arguments: {error}"
        ) from error


def _bound(
    family: Family,
    call: ast.Call,
    spec: str,
    name: str,
    function: Callable,
    args: tuple,
    kwargs: Mapping[str, Any],
) -> inspect.BoundArguments:
    """The arguments of a member: those from code, and those of the spec, read and checked."""
    signature = inspect.signature(function)
    known = annotations.options(function)
    given = {keyword.arg or "**": _Node(keyword.value) for keyword in call.keywords}
    try:
        bound = signature.bind(*args, *map(_Node, call.args), **kwargs, **given)
    except TypeError as error:
        takes = _takes(function, signature, len(args), kwargs)
        raise UserError(f"{family.kind} '{shown(spec)}': {error}; {name} takes {takes}") from None
    hints = annotations.hints(function)
    for parameter, value in bound.arguments.items():
        if signature.parameters[parameter].kind is not inspect.Parameter.VAR_KEYWORD:
            hint = hints.get(parameter, Any)
            bound.arguments[parameter] = _read(family, value, hint, f"{name}: {parameter}", spec)
            continue
        if known is not None and (wrong := [key for key in value if key not in known]):
            raise UserError(
                f"{family.kind} '{shown(spec)}': got an unexpected keyword argument '{wrong[0]}'; "
                f"{name} takes {_takes(function, signature)}"
            )
        bound.arguments[parameter] = {
            key: _read(family, one, (known or {}).get(key, Any), f"{name}: {key}", spec)
            for key, one in value.items()
        }
    return bound


def _takes(
    function: Callable,
    signature: inspect.Signature,
    first: int | None = None,
    others: Mapping[str, Any] = MappingProxyType({}),
) -> str:
    """The names of the arguments that a spec may give.

    Args:
      function: the member.
      signature: its signature.
      first: the number of leading arguments that code gives; None for those without a default.
      others: the arguments that code gives by name.
    """
    parameters = list(signature.parameters.values())
    optional = [p for p in parameters if p.default is not p.empty]
    own = optional if first is None else parameters[first:]
    hidden = {*others, "parent", "name"}  # the last two are flax's own
    names = [p.name for p in own if p.kind is not p.VAR_KEYWORD and p.name not in hidden]
    names += annotations.options(function) or ()
    return ", ".join(dict.fromkeys(names)) or "no arguments"


def _read(family: Family, value: Any, hint: Any, what: str, spec: str) -> Any:
    """An argument: as code gives it, a literal of the spec, or a nested component."""
    if type(value) is not _Node:
        return value
    node = value.node
    try:
        literal = ast.literal_eval(node)
    except (ValueError, TypeError, MemoryError, RecursionError):
        if is_component(node):
            return _build(family, node, spec, _choices(family, hint, what, spec))
        raise UserError(
            f"{family.kind} '{shown(spec)}': cannot read the argument '{ast.unparse(node):.60}'"
        ) from None
    if not annotations.fits(literal, hint):
        must = annotations.words(hint, lambda one: _example(family, one))
        raise UserError(f"{family.kind} '{shown(spec)}': {what}={literal!r:.60}: it must be {must}")
    return literal


def _choices(family: Family, hint: Any, what: str = "", spec: str = "") -> tuple[Callable, ...]:
    """The components that may stand for a parameter of this type.

    Raises:
      UserError: where only a literal can, if `what` names the parameter.
    """
    wanted = annotations.alternatives(hint)
    if what and all(map(annotations.is_literal, wanted)):
        must = annotations.words(hint, lambda one: _example(family, one))
        raise UserError(f"{family.kind} '{shown(spec)}': {what}: it must be {must}")
    found = sum((family.arguments.get(one, ()) for one in wanted), ())
    return found or family.own + sum(family.arguments.values(), ())


def _example(family: Family, hint: Any) -> str:
    """The name of a component that fits a parameter of this type, for messages."""
    return next(iter(_named(family, family.arguments.get(hint, ()) or family.own)))


def _spelled(family: Family, node: ast.expr, choices: tuple[Callable, ...]) -> str:
    """The text of a spec with full names."""
    call = as_call(node)
    name, function = _member(family, ast.unparse(call.func), choices)
    hints, texts = annotations.hints(function), [_spelled_one(family, v, Any) for v in call.args]
    for keyword in call.keywords:
        text = _spelled_one(family, keyword.value, hints.get(keyword.arg, Any))
        texts.append(f"{keyword.arg or '**'}={text}")
    return f"{name}({', '.join(texts)})" if type(node) is ast.Call else name


def _spelled_one(family: Family, node: ast.expr, hint: Any) -> str:
    if is_component(node) and ast.unparse(node) not in ("nan", "inf"):
        return _spelled(family, node, _choices(family, hint))
    return ast.unparse(node)
