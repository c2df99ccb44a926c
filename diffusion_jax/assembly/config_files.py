"""Config files and overrides of their keys."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.assembly import by_shape, components, config_schema
from diffusion_jax.core.errors import UserError, unknown
from diffusion_jax.core.parsing import expand_home

ROOT = Path(__file__).parents[2]  # of a clone: config files are not part of the installed package


def load_config(spec: str) -> ConfigDict:
    """Load a config file: 'configs/digits.py:vp' -> its ConfigDict, locked.

    A path is looked up in the working directory, then in the root of the clone.

    Args:
      spec: FILE.py or FILE.py:VARIANT. The file is run as Python.

    Raises:
      UserError: for a missing file, one that holds no config, or an unknown variant.
    """
    name, _, variant = spec.partition(":")
    path = _file(name)
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    if module_spec is None:
        raise UserError(
            f"--config={name} is not a Python file; write FILE.py:VARIANT, such as "
            "configs/digits.py:vp"
        )
    module = importlib.util.module_from_spec(module_spec)
    with _failing(name, path):
        module_spec.loader.exec_module(module)
    get_config = vars(module).get("get_config")
    if get_config is None:
        raise UserError(
            f"--config={name} has no get_config(), so it is not a config file; use one of "
            f"{', '.join(_known())}"
        )
    if variant and not inspect.signature(get_config).parameters:
        raise UserError(f"--config={spec}: {name} has no variants; write --config={name}")
    with _failing(name, path):
        config = get_config(variant) if variant else get_config()
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"--config={name}: get_config() returns no ConfigDict; see configs/digits.py"
        )
    return config.lock()


def _known() -> list[str]:
    """The config files of the clone."""
    folder = ROOT / "configs"
    files = [path for name in ("", "papers") for path in (folder / name).glob("[!_]*.py")]
    return sorted(str(path.relative_to(ROOT)) for path in files if path.stem != "base")


def _file(name: str) -> Path:
    """The path of a config file. UserError, with the nearest name, where there is none."""
    path = Path(expand_home("--config", name))
    if not path.exists() and not path.is_absolute() and (ROOT / path).exists():
        path = ROOT / path
    if not path.is_file():
        others = path.parent.glob("[!_]*.py")
        found = sorted(str(other) for other in others if other.stem != "base")
        raise unknown("config file", name, found or _known())
    return path


@contextlib.contextmanager
def _failing(name: str, path: Path) -> Iterator[None]:
    """Turn what the Python of a config file raises into one line."""
    try:
        yield
    except UserError:
        raise
    except (SyntaxError, UnicodeDecodeError) as error:
        raise UserError(f"--config={name} is not valid Python: {error}") from error
    except Exception as error:
        raise _failed(name, path, error) from error


def _failed(name: str, path: Path, error: Exception) -> UserError:
    """The line of a config file that raised an error, and the error."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    where = f" in line {lines[-1]}" if lines else ""
    return UserError(
        f"--config={name} fails{where}: {type(error).__name__}: {error!s:.300}; fix the file "
        "(DIFFUSION_JAX_TRACEBACK=1 shows where the error comes from)"
    )


def apply(config: ConfigDict, changes: Sequence[tuple[str, str | None]]) -> None:
    """Set keys in order; config_schema reads and checks each value, and at the end the config.

    Args:
      config: a locked config, which is changed in place; of an empty one nothing is checked. A
        network that is left to the data is chosen first (by_shape).
      changes: (key, text) as in --config.KEY=TEXT; the text None is --config.KEY alone.

    Raises:
      UserError: for an unknown key, and a value of another type or out of its range.
    """
    if not config:
        return
    texts, leaves = dict(changes), dict(config_schema.leaves(config))
    if "model" in config and config.model.get("name") == by_shape.AUTO:
        for key, text in changes:
            if key.startswith("data."):
                _check_key(key, leaves)
                _assign(config, key, _value(key, text, leaves, texts))
        by_shape.choose(config, texts.get("model.name"))
        leaves = dict(config_schema.leaves(config)) | {
            k: v for k, v in leaves.items() if k.startswith("data.")
        }
    for key, text in changes:
        _check_key(key, leaves)
        _assign(config, key, _value(key, text, leaves, texts))
    for key, value in config_schema.leaves(config):
        if config_schema.rule(key).is_path and type(value) is str and value.startswith("~"):
            _assign(config, key, expand_home(f"config.{key}", value))
    if "model.name" in texts:
        _check_network(config)
    config_schema.check_values(config)


def _check_network(config: ConfigDict) -> None:
    """Refuse a network that has not the keys of the one for which the config was written."""
    name = config.model.name
    fields = components.network_fields(name)
    foreign = [key for key in config.model if key not in ("name", *fields)]
    if fields and foreign:
        raise UserError(
            f"config.model.name={name}: the config is of another network, whose keys "
            f"{', '.join(foreign[:3])} this one does not have; write config.model = "
            f"network('{name}') in a config file, or take a config of this network"
        )


def _check_key(key: str, leaves: Mapping[str, Any]) -> None:
    """Check that a key exists; UserError if it does not."""
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
    return components.full_name(own, value) if own in components.NAMED else value


def _assign(config: ConfigDict, key: str, value: Any) -> None:
    """Set a key of a locked config, whatever type it had."""
    *sections, name = key.split(".")
    for section in sections:
        config = config[section]
    with config.ignore_type():
        config[name] = value
