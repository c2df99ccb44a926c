"""What a user did wrong, in one clear line that names the key, the value and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MANY = 150  # names that one line still lists all of


class UserError(ValueError):
    """Bad input. The experiment mains print its one line and exit with status 2; nothing is half-written."""


def unknown(what: str, name: str, choices: Iterable[str]) -> UserError:
    """The error for a name that does not exist: says which names do, and which is nearest.

    unknown('model', 'mpl', ['mlp', 'unet']) -> "unknown model 'mpl'; did you mean 'mlp'? There are: mlp, unet"
    """
    choices = sorted(choices)  # of very many only the nearest are told
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.4)
    hint = f" did you mean '{near[0]}'?" if near else ""
    listed = choices if len(choices) <= MANY else difflib.get_close_matches(name, choices, n=10, cutoff=0.0)
    return UserError(f"unknown {what} '{name}';{hint} There are: {', '.join(listed)}" + ", ..." * (len(choices) > MANY))
