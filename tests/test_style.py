"""How the code is written: lengths, imports, annotations and names (CONTRIBUTING.md)."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EVERY = {
    file: ast.parse(file.read_text())
    for folder in ("diffusion_jax", "experiments", "configs", "tests")
    for file in sorted((ROOT / folder).rglob("*.py"))
}
# The scripts that made the fixtures import the programs that they compare with where they use them.
# They are run by hand and are not part of the test suite.
FILES = {file: tree for file, tree in EVERY.items() if not file.name.startswith("make_")}
OURS = {file: tree for file, tree in FILES.items() if "tests" not in file.relative_to(ROOT).parts}
FUNCTION, SHORT, LONG = (ast.FunctionDef, ast.AsyncFunctionDef), 60, 400
ids = {"ids": lambda file: str(file.relative_to(ROOT))}

# A class has one name in the whole package. A function is called by its module (`npz.load`,
# `grids.uniform`), which is a part of its name, so members of several families share names:
#
#   uniform, logistic, few_step    laws of t and weightings (objectives), grids (samplers)
#   edm, ddpm, ncsn, v, x0, ...    the paper's part in each family: process, parameterization,
#                                  objective, weighting, sampler
#   euler, heun, rk4, dpmpp_2m     a method in core/integrators, and the samplers of the ODE and the
#                                  SDE that use it
#   two_moons, rings, ...          data sets, and the analytic targets of the same shape
#   cfg, autoguidance, classifier  guidance (a function of denoisers), and the guide of a config
#   load, save, read, write, ...   one verb for each kind of file
#   init, loss, draw, complete     the functions that every kind of model has (assembly/kinds)
#
# A function that is imported by its own name has no module in front of it where it is called, so
# one such name means one function everywhere, with these exceptions:
TWICE = {
    "load": "data.load reads a data set, and diffusion_jax.load a trained model; both are exported",
}


def functions(tree: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, FUNCTION)]


def public(tree: ast.Module) -> list[tuple[str, ast.FunctionDef, bool]]:
    """(name, function, whether it is a method) of all public functions and methods of a module."""
    found = [(node.name, node, False) for node in tree.body if isinstance(node, FUNCTION)]
    for owner in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        if not owner.name.startswith("_"):
            methods = (node for node in owner.body if isinstance(node, FUNCTION))
            found += [(f"{owner.name}.{node.name}", node, True) for node in methods]
    return [
        entry
        for entry in found
        if not entry[1].name.startswith("_") or entry[1].name in ("__init__", "__call__")
    ]


def lines(node: ast.AST) -> int:
    return node.end_lineno - node.lineno + 1


def too_long(file: Path, tree: ast.Module) -> list[str]:
    found = [f"{node.name}: {lines(node)} lines" for node in functions(tree) if lines(node) > SHORT]
    whole = len(file.read_text().splitlines())
    return found + [f"{whole} lines"] * (whole > LONG)


def unexplained_imports(file: Path, tree: ast.Module) -> list[str]:
    """Imports inside functions whose line has no comment that names an optional dependency."""
    text = file.read_text().splitlines()
    found = {
        text[node.lineno - 1].strip()
        for function in functions(tree)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    return sorted(line for line in found if "optional dependency: " not in line)


def parameters(node: ast.FunctionDef, method: bool) -> list[ast.arg]:
    """All parameters of a function but a method's self or cls."""
    fixed = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
    static = any(getattr(each, "id", "") == "staticmethod" for each in node.decorator_list)
    fixed = fixed[1:] if method and not static else fixed
    return fixed + [each for each in (node.args.vararg, node.args.kwarg) if each]


def not_annotated(tree: ast.Module) -> list[str]:
    found = []
    for name, node, method in public(tree):
        missing = [each.arg for each in parameters(node, method) if each.annotation is None]
        missing += ["return"] * (node.returns is None)
        found += [f"{name}: {', '.join(missing)}"] * bool(missing)
    return found


def named_lambdas(tree: ast.Module) -> list[int]:
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Lambda)
        and isinstance(node.targets[0], ast.Name)
    ]


# The functions that raise UserError for an argument out of its range.
RANGES = {"need_range", "need_ranges", "need_increasing"}


def raises_without_a_word(tree: ast.Module) -> list[str]:
    """Public functions that raise an error and do not say so in their docstrings.

    A module in which all functions check their arguments may say so once, in its own docstring.
    """
    found, at_the_top = [], "raises UserError" in (ast.get_docstring(tree) or "")
    for name, node, _ in public(tree):
        inner = {
            id(part) for each in functions(node) if each is not node for part in ast.walk(each)
        }
        own = [part for part in ast.walk(node) if id(part) not in inner]
        raises = any(isinstance(part, ast.Raise) for part in own)
        called = {getattr(part.func, "id", "") for part in own if isinstance(part, ast.Call)}
        if (
            (raises or (called & RANGES and not at_the_top))
            and "Error" not in (text := ast.get_docstring(node) or "")
            and "Raises" not in text
        ):
            found.append(name)
    return found


def documented(text: str) -> list[str]:
    """The names that the section `Args:` of a docstring describes, one entry each."""
    section = re.search(r"^Args:\n((?:  .*\n|\n)*)", f"{text}\n", re.MULTILINE)
    return re.findall(r"^  \*{0,2}(\w+): ", section[1], re.MULTILINE) if section else []


def is_protocol(node: ast.ClassDef) -> bool:
    return any(getattr(base, "id", "") == "Protocol" for base in node.bases)


def signature(name: str, node: ast.FunctionDef) -> tuple[str, ...]:
    """The name of a method without its class, and the names of its parameters."""
    return name.split(".")[-1], *(each.arg for each in parameters(node, True))


def not_documented(tree: ast.Module, elsewhere: set[tuple[str, ...]] = frozenset()) -> list[str]:
    """Public functions whose section `Args:` is not about exactly their parameters.

    Those of a constructor may stand in the docstring of its class. A method of one of the package's
    protocols (`elsewhere`) is documented there, and needs no section of its own.
    """
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    found = []
    for name, node, method in public(tree):
        names = [each.arg for each in parameters(node, method)]
        described = documented(ast.get_docstring(node) or "")
        owner = classes[name.split(".")[0]] if method else None
        if node.name == "__init__" and not described:
            described = documented(ast.get_docstring(owner) or "")
        inherited = method and signature(name, node) in elsewhere and not is_protocol(owner)
        wrong = sorted(set(names) ^ set(described))
        if wrong and not (inherited and not described):
            found.append(f"{name}: {', '.join(wrong)}")
    return found


# The methods that a protocol documents for all classes that implement it.
PROTOCOLS = {
    signature(node.name, node)
    for tree in OURS.values()
    for owner in tree.body
    if isinstance(owner, ast.ClassDef) and is_protocol(owner)
    for node in functions(owner)
}


def keeps_the_cause(handler: ast.ExceptHandler) -> bool:
    """Whether a handler raises an error from the one that it caught, or logs its traceback."""
    for node in ast.walk(handler):
        if isinstance(node, ast.Raise) and node.exc is None:
            return True
        kept = []
        if isinstance(node, ast.Raise) and node.cause:
            kept = [node.cause]
        elif isinstance(node, ast.Call):
            if ast.unparse(node.func) == "traceback.print_exc":
                return True
            kept = [word.value for word in node.keywords if word.arg == "exc_info"]
        if handler.name and handler.name in map(ast.unparse, kept):
            return True
    return False


def hidden_tracebacks(tree: ast.Module) -> list[int]:
    """The lines that catch errors of every type and drop their tracebacks."""
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or ast.unparse(node.type) == "Exception")
        and not keeps_the_cause(node)
    ]


@pytest.mark.parametrize("file", EVERY, **ids)
def test_functions_and_files_are_short(file):
    assert not too_long(file, EVERY[file])


@pytest.mark.parametrize("file", FILES, **ids)
def test_imports_stand_at_the_top(file):
    assert not unexplained_imports(file, FILES[file])


@pytest.mark.parametrize("file", FILES, **ids)
def test_no_lambda_is_bound_to_a_name_and_no_line_is_left_to_its_author(file):
    assert not named_lambdas(FILES[file])
    marks = ("fmt: " + word for word in ("skip", "off"))
    assert not any(mark in file.read_text() for mark in marks)


@pytest.mark.parametrize("file", OURS, **ids)
def test_public_functions_are_annotated_and_their_errors_documented(file):
    assert not not_annotated(OURS[file])
    assert not raises_without_a_word(OURS[file])


@pytest.mark.parametrize("file", OURS, **ids)
def test_public_functions_describe_their_parameters(file):
    assert not not_documented(OURS[file], PROTOCOLS)


@pytest.mark.parametrize("file", FILES, **ids)
def test_no_traceback_is_hidden(file):
    assert not hidden_tracebacks(FILES[file])


def test_the_command_line_is_read_in_one_file():
    readers = {
        str(file.relative_to(ROOT))
        for file, tree in OURS.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr == "argv"
    }
    assert readers == {"experiments/cli.py"}


def test_mains_are_short():
    for file in (ROOT / "experiments").glob("*.py"):
        text = file.read_text()
        if 'if __name__ == "__main__":' in text and file.name not in ("cli.py",):
            assert len(text.splitlines()) <= SHORT, file


def test_no_two_public_classes_share_a_name():
    places = defaultdict(list)
    for file, tree in OURS.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(str(file.relative_to(ROOT)))
    assert not {name: files for name, files in places.items() if len(files) > 1}


def test_a_function_that_is_imported_by_its_own_name_shares_it_with_no_other():
    defined = {
        (".".join(file.relative_to(ROOT).with_suffix("").parts), name)
        for file, tree in OURS.items()
        for name in (node.name for node in tree.body if isinstance(node, FUNCTION))
    }
    modules = defaultdict(set)
    for tree in OURS.values():
        for node in (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)):
            for alias in (alias for alias in node.names if (node.module, alias.name) in defined):
                modules[alias.asname or alias.name].add(node.module)
    assert {name for name, found in modules.items() if len(found) > 1} == set(TWICE)


def test_the_checks_see(tmp_path):
    """The control: each check finds a file that breaks its rule."""
    file = tmp_path / "bad.py"
    file.write_text(
        "f = lambda x: x\ndef g(x):\n    import numpy\n    raise ValueError\n" + "\n" * 400
    )
    tree = ast.parse(file.read_text())
    assert too_long(file, tree) == ["404 lines"]
    assert unexplained_imports(file, tree) == ["import numpy"]
    assert named_lambdas(tree) == [1]
    assert not_annotated(tree) == ["g: x, return"] and raises_without_a_word(tree) == ["g"]
    assert not_documented(tree) == ["g: x"]
    checks = "def k(x): need_range('k: x', x, 0, 1)"
    assert raises_without_a_word(ast.parse(checks)) == ["k"]
    assert not raises_without_a_word(ast.parse(f"'Every function raises UserError.'\n{checks}"))

    caught = "try: pass\nexcept Exception as error:\n    "
    for handled in ("pass", "raise ValueError", "raise ValueError from None", "log(error)"):
        assert hidden_tracebacks(ast.parse(caught + handled)) == [2]
    for handled in ("raise", "raise ValueError from error", "log('', exc_info=error)"):
        assert not hidden_tracebacks(ast.parse(caught + handled))

    file.write_text(
        '"""Three ways to describe parameters, and four mistakes."""\n'
        "class Law(Protocol):\n"
        "    def draw(self, key): ...\n"
        "class Coin:\n"
        '    """A law.\n\n    Args:\n      bias: probability of 1.\n    """\n'
        "    def __init__(self, bias): ...\n"
        "    def draw(self, key): ...\n"
        "    def toss(self, key): ...\n"
        "def h(x, y, **rest):\n"
        '    """Adds.\n\n    Args:\n      x: (B,).\n        y: deeper\n      z: stale.\n    """\n'
    )
    law = {("draw", "key")}
    found = not_documented(ast.parse(file.read_text()), law)
    assert found == ["h: rest, y, z", "Law.draw: key", "Coin.toss: key"]
