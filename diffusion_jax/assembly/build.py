"""From a name in a config to the thing in the package: the name IS the path.

    build(SAMPLERS, 'ode.edm_heun')                                    samplers/ode.py, edm_heun()
    build(SAMPLERS, 'ancestral.ddim(eta=0.5)')                         with arguments
    build(SAMPLERS, 'ddim(eta=0.5)')                                   the name alone: the first module that has it
    build(OBJECTIVES, 'denoising.flow_matching(time=times.logit_normal(std=1.2))', process)      nested; more arguments from code

A spec is a call written as text, so that the command line can change a component and its arguments
in one override. It is parsed, never evaluated: names are looked up in the family, arguments are
literals or further specs, and each is checked against the annotation of the parameter that it is
for. No registry: a public function that is annotated to return the family's type, in one of the
family's modules, is a member. One that has another annotation, or stands in another module beside
these, is refused with what is missing.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple

from diffusion_jax.errors import UserError, unknown

LONGEST = 100_000  # characters of a spec: a table of betas has 50,000
LARGEST = 1e300  # of a number in a spec
DEEPEST = 40  # levels of its syntax tree: a sampler around a sampler has 9


class Family(NamedTuple):
    """What a config may name.

    kind: for messages. modules: where members are. returns: what members return ('class': classes).
    arguments: what the arguments of members may return. aliases: other programs' names for members.
    """

    kind: str
    modules: tuple[ModuleType, ...]
    returns: tuple[str, ...]
    arguments: tuple[str, ...] = ()
    aliases: Mapping[str, str] = MappingProxyType({})


def members(family: Family, returns: tuple[str, ...] | None = None) -> dict[str, Callable]:
    """The family's public functions (and dataclasses and networks), as 'module.name'; of a single
    module also as 'name'.
    """
    returns = returns or family.returns
    found = {}
    for module in family.modules:
        prefix = "" if len(family.modules) == 1 else module.__name__.rpartition(".")[2] + "."
        for name, value in vars(module).items():
            if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
                continue
            if (
                "class"
                if inspect.isclass(value)
                else _short(getattr(value, "__annotations__", {}).get("return"))
            ) in returns:
                found[prefix + name] = value
    return found


def build(family: Family, spec: str, *args, **kwargs) -> Any:
    """Build the component that `spec` names, with the spec's own arguments after *args and
    **kwargs.

    Raises UserError, naming the nearest name or the arguments there are, for anything that does not
    fit: an unknown name or argument, a value of another type than the parameter's annotation, or
    one that the component itself refuses.
    """
    return _build(family, _parsed(family, spec), spec, family.returns, args, kwargs)


def resolved(family: Family, spec: str) -> str:
    """The spec with the full names of its members: 'ddim(eta=0.5)' -> 'ancestral.ddim(eta=0.5)'.

    Raises UserError for a name that does not exist. A spec that has full names already is returned
    unchanged.
    """
    tree = _parsed(family, spec)
    full = _spelled(family, tree, spec, family.returns)
    return spec if ast.dump(tree) == ast.dump(_parsed(family, full)) else full


def _parsed(family: Family, spec: Any) -> ast.expr:
    try:
        if len(spec) > LONGEST:
            raise ValueError
        tree = ast.parse(
            spec.strip().replace("++", "pp"), mode="eval"
        ).body  # DPM-Solver++ is dpmpp
        _check_syntax(family, tree, spec)
        return tree
    except UserError:
        raise
    except (SyntaxError, AttributeError, TypeError, ValueError, MemoryError, RecursionError):
        what = f"cannot read {family.kind} '{str(spec):.60}'"
        raise UserError(
            f"{what}; write a name or a call, such as '{next(iter(members(family)))}'"
        ) from None


def _check_syntax(family: Family, tree: ast.expr, spec: str) -> None:
    """UserError for a spec that is nested too deeply, and for an argument that is given twice."""
    level = [tree]
    for _ in range(DEEPEST):
        level = [below for node in level for below in ast.iter_child_nodes(node)]
    if level:
        raise UserError(f"{family.kind} '{_shown(spec)}': it is nested more than {DEEPEST} deep")
    for call in ast.walk(tree):
        names = [keyword.arg for keyword in call.keywords] if isinstance(call, ast.Call) else []
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UserError(
                f"{family.kind} '{_shown(spec)}': {twice} is given twice; keep one of them"
            )


def _shown(spec: str) -> str:
    """A spec in a message, of a long one its beginning."""
    return spec if len(spec) <= 200 else f"{spec[:200]}..."


def _member(family: Family, name: str, returns: tuple[str, ...]) -> tuple[str, Callable]:
    """(full name, function) of a member by its full name, its name alone in any case, or an alias."""
    choices = members(family, returns)
    if name in choices:
        return name, choices[name]
    alike = {choice: (choice.lower(), choice.lower().rpartition(".")[2]) for choice in choices}
    exact = [choice for choice in choices if choice.rpartition(".")[2] == name]
    found = next(
        iter(exact or [choice for choice, words in alike.items() if name.lower() in words]), None
    )
    found = found or family.aliases.get(name.lower())
    if found not in choices:
        raise _no_member(family, name, returns) or unknown(family.kind, name, choices)
    return found, choices[found]


def _no_member(family: Family, name: str, returns: tuple[str, ...]) -> UserError | None:
    """What a function or a class of this name, in a module of the family or beside one, lacks to be
    a member; None if there is none.
    """
    room, _, own = name.rpartition(".")
    for module in family.modules:
        there = (
            getattr(module, own, None) if room in ("", module.__name__.rpartition(".")[2]) else None
        )
        if (
            callable(there)
            and getattr(there, "__module__", None) == module.__name__
            and not own.startswith("_")
        ):
            says = _short(getattr(there, "__annotations__", {}).get("return", "nothing"))
            return UserError(
                f"{family.kind} '{name}': {own} is in {_place(module.__file__)}, but is annotated to return {says}; "
                f"to be named here it must be annotated to return {' or '.join(returns)}"
            )
    listed = {Path(module.__file__) for module in family.modules}
    for folder in dict.fromkeys(path.parent for path in listed):
        files = (
            [folder / f"{room}.py"]
            if room.isidentifier()
            else []
            if room
            else sorted(folder.glob("*.py"))
        )
        for path in files:
            if (
                path.is_file()
                and path not in listed
                and re.search(
                    rf"^(def|class) {re.escape(own)}\b", path.read_text(encoding="utf-8"), re.M
                )
            ):
                return UserError(
                    f"{family.kind} '{name}': {own} is in {_place(path)}, which is no module of this family; "
                    "import it in diffusion_jax/assembly/components.py and add it to the family there"
                )
    return None


def _place(path: str | Path) -> str:
    """A file by its place in the package: samplers/ode.py."""
    return "/".join(Path(path).parts[-2:])


def _build(
    family: Family, node: ast.expr, spec: str, returns: tuple[str, ...], args=(), kwargs=None
) -> Any:
    call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
    name, function = _member(family, ast.unparse(call.func), returns)
    signature = inspect.signature(function)
    given = {keyword.arg or "**": _Node(keyword.value) for keyword in call.keywords}
    try:
        bound = signature.bind(*args, *map(_Node, call.args), **(kwargs or {}), **given)
    except TypeError as error:
        raise UserError(
            f"{family.kind} '{_shown(spec)}': {error}; {name} takes {_takes(function, signature, len(args), kwargs or {})}"
        ) from None
    for parameter, value in bound.arguments.items():
        kind = signature.parameters[parameter]
        if kind.kind is inspect.Parameter.VAR_KEYWORD:
            bound.arguments[parameter] = _options(family, value, function, kind, name, spec)
        elif isinstance(value, _Node):
            bound.arguments[parameter] = _argument(
                family, value.node, _text(kind.annotation), f"{name}: {parameter}", spec
            )
    if not (call.args or call.keywords):
        return function(*bound.args, **bound.kwargs)
    try:
        return function(*bound.args, **bound.kwargs)
    except UserError:
        raise
    except (
        TypeError,
        ValueError,
        ArithmeticError,
        MemoryError,
    ) as error:  # what the component's own checks do not foresee
        raise UserError(
            f"{family.kind} '{_shown(spec)}': {name} refuses these arguments: {error}"
        ) from error


class _Node(NamedTuple):
    """An argument that the spec gives, before it is read."""

    node: ast.expr


def _options(
    family: Family,
    values: dict,
    function: Callable,
    parameter: inspect.Parameter,
    name: str,
    spec: str,
) -> dict:
    """The values of `**options: Unpack[Options]`, by the annotations of that TypedDict."""
    known = _unpacked(function, parameter)
    made = {}
    for key, value in values.items():
        if known is not None and key not in known:
            takes = _takes(function, inspect.signature(function))
            raise UserError(
                f"{family.kind} '{_shown(spec)}': got an unexpected keyword argument '{key}'; {name} takes {takes}"
            )
        annotation = _text((known or {}).get(key, "Any"))
        made[key] = (
            _argument(family, value.node, annotation, f"{name}: {key}", spec)
            if isinstance(value, _Node)
            else value
        )
    return made


def _unpacked(function: Callable, parameter: inspect.Parameter) -> dict[str, Any] | None:
    """The annotations of the TypedDict of a parameter `**options: Unpack[Options]`; None of one
    that says nothing.
    """
    inner = _text(parameter.annotation).removeprefix("Unpack[").removesuffix("]")
    return getattr(getattr(inspect.getmodule(function), inner, None), "__annotations__", None)


def _takes(
    function: Callable,
    signature: inspect.Signature,
    first: int | None = None,
    others: Mapping[str, Any] | None = None,
) -> str:
    """The names of the arguments that a spec may give: all but the first ones and the others, which
    code gives.

    first=None stands for those without a default.
    """
    parameters = list(signature.parameters.values())
    own = (
        [p for p in parameters if p.default is not p.empty] if first is None else parameters[first:]
    )
    names = [
        p.name
        for p in own
        if p.kind is not p.VAR_KEYWORD and p.name not in {*(others or ()), "parent", "name"}
    ]  # (of flax)
    names += [
        key for p in parameters if p.kind is p.VAR_KEYWORD for key in _unpacked(function, p) or ()
    ]
    return ", ".join(dict.fromkeys(names)) or "no arguments"


def _argument(family: Family, node: ast.expr, annotation: str, what: str, spec: str) -> Any:
    """A literal, or a nested component, checked against the annotation of the parameter."""
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError, MemoryError, RecursionError):
        if isinstance(node, (ast.Call, ast.Attribute, ast.Name)):
            return _build(family, node, spec, _returns(family, annotation, what, spec))
        raise UserError(
            f"{family.kind} '{_shown(spec)}': cannot read the argument '{ast.unparse(node):.60}'"
        ) from None
    if not any(_fits(value, one) for one in annotation.split(" | ")):
        raise UserError(
            f"{family.kind} '{_shown(spec)}': {what}={value!r:.60}: it must be {_words(family, annotation)}"
        )
    return value


# ---- annotations
LITERALS = {
    "float": "a number",
    "int": "a whole number",
    "bool": "True or False",
    "str": "a text in quotation marks",
    "None": "None",
}


def _text(annotation: Any) -> str:
    """An annotation as it stands in the code, also where the module does not postpone them."""
    if isinstance(annotation, str):
        return annotation
    if annotation is inspect.Parameter.empty:
        return "Any"
    return (
        getattr(annotation, "__forward_arg__", None)
        or getattr(annotation, "__name__", None)
        or str(annotation)
    )


def _short(annotation: Any) -> str:
    return _text(annotation).rpartition(".")[2]


def _fits(value: Any, annotation: str) -> bool:
    """Whether a literal of a spec may stand for a parameter with this annotation. Numbers must be
    finite.
    """
    if annotation.startswith("tuple["):
        inner = annotation[len("tuple[") : -1].split(", ")
        parts = (
            inner[:1] * len(value)
            if inner[-1] == "..." and isinstance(value, (tuple, list))
            else inner
        )
        return (
            isinstance(value, (tuple, list))
            and len(value) == len(parts)
            and all(map(_fits, value, parts))
        )
    if annotation in ("int", "float"):
        return (
            type(value) in (int, *((float,) if annotation == "float" else ()))
            and abs(value) < LARGEST
        )
    return annotation in ("Any", type(value).__name__) or (value is None and annotation == "None")


def _returns(family: Family, annotation: str, what: str = "", spec: str = "") -> tuple[str, ...]:
    """What a component that stands for a parameter with this annotation must return. UserError
    where only a literal can.
    """
    everything = family.returns + family.arguments
    wanted = [one.rpartition(".")[2] for one in annotation.split(" | ")]
    if what and all(one in LITERALS or one.startswith("tuple[") for one in wanted):
        raise UserError(
            f"{family.kind} '{_shown(spec)}': {what}: it must be {_words(family, annotation)}"
        )
    return tuple(one for one in wanted if one in everything) or everything


def _words(family: Family, annotation: str) -> str:
    """An annotation in words, for messages."""

    def words(one: str) -> str:
        if one.startswith("tuple["):
            inner = one[len("tuple[") : -1].split(", ")
            return (
                f"a tuple of {LITERALS.get(inner[0], inner[0]).removeprefix('a ')}s"
                if inner[-1] == "..."
                else f"a {one}"
            )
        if one in LITERALS:
            return LITERALS[one]
        name = one.rpartition(".")[2]
        return f"a component such as {next(iter(members(family, (name,)) or members(family)))}()"

    return " or ".join(map(words, annotation.split(" | ")))


def _spelled(family: Family, node: ast.expr, spec: str, returns: tuple[str, ...]) -> str:
    """The text of a spec with full names."""
    call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
    name, function = _member(family, ast.unparse(call.func), returns)
    parameters = inspect.signature(function).parameters
    said = []
    for key, value in [("", value) for value in call.args] + [
        (keyword.arg or "**", keyword.value) for keyword in call.keywords
    ]:
        nested = isinstance(value, (ast.Call, ast.Attribute, ast.Name)) and ast.unparse(
            value
        ) not in ("nan", "inf")
        annotation = _text(parameters[key].annotation) if key in parameters else "Any"
        text = (
            _spelled(family, value, spec, _returns(family, annotation))
            if nested
            else ast.unparse(value)
        )
        said.append(f"{key}={text}" if key else text)
    return f"{name}({', '.join(said)})" if isinstance(node, ast.Call) else name
