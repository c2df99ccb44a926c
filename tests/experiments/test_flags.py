"""Every main: its flags are the parameters of the function that it launches, with full help."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# In one process, so that JAX is imported once: what every main launches, and the flags it defines.
DESCRIBE = """
import inspect, json, runpy, sys, typing
from absl import flags
from experiments import arguments, cli, loading, usage

def of_signature(function):
    parameters = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:  # **settings: Unpack[SomeTypedDict]
            hints = typing.get_type_hints(function, include_extras=True)
            (fields,) = typing.get_args(hints[name])
            for key, kind in typing.get_type_hints(fields).items():
                parameters[key] = inspect.Parameter(key, parameter.KEYWORD_ONLY, annotation=kind)
        else:
            parameters[name] = parameter
    return parameters

before, found = set(flags.FLAGS), {}
def plain(value):
    return list(value) if isinstance(value, (list, tuple)) else value

def describe(target, *, instead=None, config, positional="", overridden="", spec="", **options):
    own = {cli.argument_of(flag.name): flag for flag in arguments.own()}
    names = {*own, *filter(None, (positional.lower(), overridden, spec))}
    functions = [target, *(instead or {}).values()]
    parameters = {}
    for function in functions:
        parameters |= of_signature(loading.load(function))
    if config == "none" or instead:
        parameters.pop("config", None)
    else:
        assert next(iter(parameters)) == "config", target
        del parameters["config"]
    defaults = {
        name: [own[name].default, parameters[name].default]
        for name in own
        if name in parameters and parameters[name].default is not parameters[name].empty
    }
    names -= {mode for mode in instead or () if mode not in parameters}  # a switch alone, as --list
    found[command] = {
        "flags": sorted(names),
        "parameters": sorted(parameters),
        "untyped": [name for name, p in parameters.items() if p.annotation is p.empty],
        "defaults": {name: [plain(value) for value in both] for name, both in defaults.items()},
        "help": {flag.name: flag.help for flag in own.values()},
    }
cli.launch = describe
for command in usage.commands():
    sys.argv = [f"experiments.{command}"]
    runpy.run_module(f"experiments.{command}", run_name="__main__")
    for name in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, name)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def described():
    done = subprocess.run(
        [sys.executable, "-c", DESCRIBE], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_flags_are_the_parameters_of_the_function(described):
    for command, of in described.items():
        assert of["flags"] == of["parameters"], command
        assert not of["untyped"], command


def test_a_parameter_has_the_default_of_its_flag(described):
    for command, of in described.items():
        for name, (flag, parameter) in of["defaults"].items():
            assert flag == parameter, f"{command}: {name}"


def test_every_flag_has_a_full_phrase_of_help(described):
    for command, of in described.items():
        for name, text in of["help"].items():
            assert len(text.split()) >= 3 and text[0] != "-", f"{command}: --{name}: {text!r}"
            assert not text.startswith(("of ", "how ", "with ")), f"{command}: --{name}: {text!r}"
