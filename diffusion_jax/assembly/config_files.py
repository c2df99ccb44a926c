"""Config files and overrides of their keys."""

from __future__ import annotations

import importlib.util
import inspect
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.assembly import components, config_schema
from diffusion_jax.errors import UserError, unknown
from diffusion_jax.parsing import expand

ROOT = Path(__file__).parents[2]  # of a clone: config files are not part of the installed package

COMPONENTS = (
    "process",
    "parameterization",
    "objective",
    "discriminator",
    "model.name",
    "sampler.name",
    "sampler.grid",
    "sampler.guide",
)


def load_config(spec: str) -> ConfigDict:
    """'configs/digits.py:vp' -> its ConfigDict, locked. A path is looked up here, then in the
    project's root.

    Raises:
      UserError: for a missing file, one that holds no config, or an unknown variant.
    """
    name, _, variant = spec.partition(":")
    path = Path(expand("--config", name))
    path = (
        path
        if path.exists() or path.is_absolute()
        else ROOT / path
        if (ROOT / path).exists()
        else path
    )
    known = sorted(
        f"configs/{p.name}" for p in (ROOT / "configs").glob("[!_]*.py") if p.stem != "base"
    )
    if not path.is_file():
        found = sorted(
            str(p) for p in path.parent.glob("*.py") if p.stem not in ("base", "__init__")
        )
        raise unknown("config file", name, found or known)
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    if module_spec is None:
        raise UserError(
            f"--config={name} is no Python file; write FILE.py:VARIANT, such as configs/digits.py:vp"
        )
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except (SyntaxError, UnicodeDecodeError) as error:
        raise UserError(f"--config={name} is no Python: {error}") from error
    except (
        Exception
    ) as error:  # whatever the user's own program raises; DIFFUSION_JAX_TRACEBACK shows all of it
        raise _failed(name, path, error) from error
    if not hasattr(module, "get_config"):
        raise UserError(
            f"--config={name} has no get_config(), so it is the config of nothing; take one of {', '.join(known)}"
        )
    if variant and not inspect.signature(module.get_config).parameters:
        raise UserError(f"--config={spec}: {name} has no variants; write --config={name}")
    try:
        config = module.get_config(variant) if variant else module.get_config()
    except UserError:
        raise
    except Exception as error:
        raise _failed(name, path, error) from error
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"--config={name}: get_config() returns no ConfigDict; see configs/digits.py"
        )
    return config.lock()


def _failed(name: str, path: Path, error: Exception) -> UserError:
    """One line for an error that the Python of a config file raises: the line of that file, and
    what it is.
    """
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == str(path)
    ]
    where = f" in line {lines[-1]}" if lines else ""
    return UserError(
        f"--config={name} fails{where}: {type(error).__name__}: {error!s:.300}; fix the file "
        "(DIFFUSION_JAX_TRACEBACK=1 shows where the error comes from)"
    )


def apply(config: ConfigDict, changes: Sequence[tuple[str, str | None]]) -> None:
    """Set keys in order, each value read and checked by config_schema; then check the whole config.

    Args:
      config: a locked config, which is changed in place; of an empty one nothing is checked.
      changes: (key, text) as in --config.KEY=TEXT; the text None is --config.KEY alone.

    Raises:
      UserError: for an unknown key, and a value of another type or out of its range.
    """
    if not config:
        return
    leaves, texts = dict(_leaves(config)), dict(changes)
    for key, text in changes:
        _check_key(key, leaves)
        _assign(config, key, _value(key, text, leaves, texts))
    for key, value in _leaves(config):
        if config_schema.rule(key).is_path and isinstance(value, str) and value.startswith("~"):
            _assign(config, key, expand(f"config.{key}", value))
    config_schema.check(config)


def _check_key(key: str, leaves: Mapping[str, Any]) -> None:
    if key in leaves:
        return
    if inside := [name for name in leaves if name.startswith(f"{key}.")]:
        raise UserError(
            f"config.{key} is a section; set one of its keys, such as --config.{inside[0]}=VALUE"
        )
    raise unknown("config key", key, leaves)


def _value(
    key: str, text: str | None, leaves: Mapping[str, Any], texts: Mapping[str, str | None]
) -> Any:
    """The value of an override. leaves: the config before all overrides; texts: all of them."""
    if text is None:
        if type(leaves[key]) is not bool:
            raise UserError(f"--config.{key} has no value; write --config.{key}=VALUE")
        return True
    own = config_schema.own_key(key)
    model = key.removesuffix(own) + "model.name"  # of the same config, where configs are nested
    value = config_schema.read(key, text, leaves[key], texts.get(model) or leaves.get(model, ""))
    if own not in COMPONENTS:
        return value

    return components.full_name(own, value)


def _assign(config: ConfigDict, key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for section in sections:
        config = config[section]
    with config.ignore_type():
        config[name] = value


def _leaves(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
