"""What a user did wrong, in one clear line that names the key, the value and the remedy."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable

MANY = 150  # names that one line still lists all of


class UserError(ValueError):
    """Bad input. The experiment mains print its one line and exit with status 2; nothing is half-written.

    The message is one printable line, whatever is in the names and values that it quotes.
    """

    def __init__(self, message: str):
        super().__init__(printable(re.sub(r"\s*\n\s*", " ", message)))


def printable(text: str) -> str:
    """Text from a file as it may go to a terminal: characters that control it are written as escapes, such as \\x1b.

    These are the control and format characters of Unicode (categories Cc, Cf), among them those that turn the direction of
    writing, its separators of lines and paragraphs, and the halves of surrogate pairs by which Python represents names of files
    that are not UTF-8. Joiners, which emoji are made of, stay.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(c.encode("unicode_escape").decode() if unicodedata.category(c) in _CONTROL and c not in _JOINERS else c for c in text)


_CONTROL, _JOINERS = {"Cc", "Cf", "Cs", "Zl", "Zp"}, "\u200c\u200d"


def unknown(what: str, name: str, choices: Iterable[str]) -> UserError:
    """The error for a name that does not exist: says which names do, and which is nearest.

    unknown('model', 'mpl', ['mlp', 'unet']) -> "unknown model 'mpl'; did you mean 'mlp'? There are: mlp, unet"
    """
    choices = sorted(choices)  # of very many only the nearest are told
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.4)
    hint = f" did you mean '{near[0]}'?" if near else ""
    listed = choices if len(choices) <= MANY else difflib.get_close_matches(name, choices, n=10, cutoff=0.0)
    return UserError(f"unknown {what} '{name}';{hint} There are: {', '.join(listed)}" + ", ..." * (len(choices) > MANY))
