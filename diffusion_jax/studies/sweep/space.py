"""The space of a sweep: config keys and their values, from the command line, checked before use.

    KEY=[A, B, C]             these values; commas inside parentheses or quotation marks stay
    KEY=START:STOP:STEP       numbers in even steps, both ends included
    KEY=START:STOP:logCOUNT   COUNT numbers in even ratios, both ends included

A cell of the space has one value of every key; its number counts through all combinations, the
last key fastest. Keys of config.sampler vary on a trained model; every combination of the others
is a training run of its own.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from diffusion_jax.assembly import config_files, same_run
from diffusion_jax.core.errors import UserError

MOST_VALUES = 1000  # of one key
SAMPLING = "sampler."

# These change no score: FREE is what a resumed run may change.
_IDLE = (
    "sampler.batch_size",
    *(key for key in same_run.FREE if key not in (SAMPLING, "training.steps")),
)
_TRAINING_DATA = ("data.batch_size", "data.flip")  # the others change what samples are compared to

_EXAMPLE = "--over='sampler.guidance=1:4:0.5' or --over='sampler.name=[ddim, dpmpp_2m]'"


class Axis(NamedTuple):
    """A config key and the values that a sweep gives it."""

    key: str
    values: tuple[Any, ...]


class Space(NamedTuple):
    """All combinations of the values of several config keys."""

    axes: tuple[Axis, ...]

    @property
    def size(self) -> int:
        """The number of cells."""
        return math.prod(len(axis.values) for axis in self.axes)

    def settings(self, number: int) -> dict[str, Any]:
        """The value of every key in the cell of a number from 0 to size - 1.

        Args:
          number: number of the cell; the last key counts fastest.
        """
        found = {}
        for axis in reversed(self.axes):
            number, place = divmod(number, len(axis.values))
            found[axis.key] = axis.values[place]
        return {axis.key: found[axis.key] for axis in self.axes}


def is_sampling(key: str) -> bool:
    """Whether a key varies on a trained model, instead of needing a run of its own.

    Args:
      key: key of the config, such as 'sampler.nfe'.
    """
    return key.startswith(SAMPLING)


def parse(config: ConfigDict, texts: Sequence[str]) -> Space:
    """Read the flags --over=KEY=VALUES of a command line.

    Args:
      config: the config whose keys they are, locked.
      texts: KEY=VALUES of each flag.

    Raises:
      UserError: for an unknown key, a key that is given twice or changes no score, values that
        cannot be read, and values that the key does not allow.
    """
    if not texts:
        raise UserError(f"--over is missing: the keys to vary and their values, such as {_EXAMPLE}")
    axes = tuple(_axis(config, text) for text in texts)
    keys = [axis.key for axis in axes]
    for key in keys:
        if keys.count(key) > 1:
            raise UserError(f"--over={key} is given twice; write all of its values in one --over")
    return Space(axes)


def overrides(settings: Mapping[str, Any]) -> str:
    """The settings of a cell as overrides to paste: "--config.sampler.nfe=10 ...".

    Args:
      settings: key -> value.
    """
    return " ".join(f"--config.{key}={shlex.quote(str(value))}" for key, value in settings.items())


def with_settings(config: ConfigDict, settings: Mapping[str, Any]) -> ConfigDict:
    """The config with the values of a cell, checked.

    Args:
      config: locked; it stays as it is.
      settings: key -> value.
    """
    copy = config.copy_and_resolve_references().lock()
    config_files.apply(copy, [(key, str(value)) for key, value in settings.items()])
    return copy


# ---- reading
def _axis(config: ConfigDict, text: str) -> Axis:
    """The key and the values of one flag."""
    key, equals, values = (part.strip() for part in text.partition("="))
    key = key.removeprefix("config.")
    if not (key and equals and values):
        raise UserError(f"--over={text:.60}: write KEY=VALUES, such as {_EXAMPLE}")
    _need_effect(key)
    found = [
        _value(config, key, part) for part in _texts(f"--over={key}={values:.60}", key, values)
    ]
    return Axis(key, tuple(dict.fromkeys(found)))


def _need_effect(key: str) -> None:
    """Refuse keys that change no score, and those that change what the samples are judged by."""
    if same_run.among(key, _IDLE):
        raise UserError(f"--over={key}: this key changes no sample; set it by --config.{key}=VALUE")
    if key.startswith("data.") and key not in _TRAINING_DATA:
        raise UserError(
            f"--over={key}: samples of different data cannot be compared; of config.data only "
            f"{' and '.join(_TRAINING_DATA)} can vary"
        )


def _value(config: ConfigDict, key: str, text: str) -> Any:
    """The value that --config.KEY=TEXT means; UserError for an unknown key or a wrong value."""
    value = with_settings(config, {key: text})
    for part in key.split("."):
        value = value[part]
    return value


def _texts(flag: str, key: str, values: str) -> list[str]:
    """The texts of the values: of a list, or of a range."""
    if values.startswith("[") and values.endswith("]"):
        found = _split(values[1:-1])
        if not found:
            raise UserError(f"{flag}: the list is empty; write values, such as {_EXAMPLE}")
    elif values.count(":") == 2 and not re.search(r"[\s(\[]", values):
        found = _range(flag, *values.split(":"))
    else:
        raise UserError(
            f"{flag}: write a list, {key}=[A, B], or a range, {key}=START:STOP:STEP or "
            f"{key}=START:STOP:logCOUNT; one value is set by --config.{key}=VALUE"
        )
    if len(found) > MOST_VALUES:
        raise UserError(f"{flag}: {len(found)} values, and at most {MOST_VALUES} are allowed")
    return found


def _split(text: str) -> list[str]:
    """The parts of a list, separated by commas outside of brackets and quotation marks."""
    parts, depth, quote = [""], 0, ""
    for c in text:
        if quote or c in "'\"":
            quote = "" if c == quote else quote or c
        depth += (c in "([{") - (c in ")]}") if not quote else 0
        if c == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += c
    parts = [part.strip() for part in parts]
    return [_unquoted(part) for part in parts if part]


def _unquoted(text: str) -> str:
    """The text without quotation marks around all of it: '' in quotation marks is ''."""
    whole = len(text) > 1 and text[0] in "'\"" and text.find(text[0], 1) == len(text) - 1
    return text[1:-1] if whole else text


def _range(flag: str, start: str, stop: str, step: str) -> list[str]:
    """The numbers of a range as text, both ends included."""
    ratios = step.startswith("log")
    try:
        low, high, by = (Decimal(text) for text in (start, stop, step.removeprefix("log")))
    except InvalidOperation:
        raise UserError(
            f"{flag}: write numbers, START:STOP:STEP or START:STOP:logCOUNT, such as 1:4:0.5 or "
            "1e-4:1e-3:log5"
        ) from None
    if not all(number.is_finite() and abs(number) < 10**12 for number in (low, high, by)):
        raise UserError(f"{flag}: the numbers of a range must be finite and below 1e12")
    if low > high:
        raise UserError(f"{flag}: the range is empty, since {low} is above {high}")
    if ratios:
        return _ratios(flag, float(low), float(high), by)
    if by <= 0:
        raise UserError(f"{flag}: the step is {by}; it must be above 0")
    count = int((high - low) / by) + 1
    if count > MOST_VALUES:
        raise UserError(f"{flag}: {count} values, and at most {MOST_VALUES} are allowed")
    return [f"{(low + i * by).normalize():f}" for i in range(count)]


def _ratios(flag: str, low: float, high: float, count: Decimal) -> list[str]:
    """`count` numbers from low to high in even ratios, as text with six digits."""
    if low <= 0:
        raise UserError(f"{flag}: a range in even ratios must start above 0")
    if count != int(count) or not 2 <= count <= MOST_VALUES:
        raise UserError(
            f"{flag}: logCOUNT needs a whole number of values from 2 to {MOST_VALUES}, such as log5"
        )
    last = int(count) - 1
    return [f"{low * (high / low) ** (i / last):.6g}" for i in range(last + 1)]
