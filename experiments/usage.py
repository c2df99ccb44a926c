"""What --help prints, for one command and for all.

Docstrings are read as text: no command, config or library is imported.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path

from absl import flags

HERE = Path(__file__).parent
CONFIGS = HERE.parent / "configs"

SHORT = {
    "sampler": "sampler.name",
    "nfe": "sampler.nfe",
    "guidance": "sampler.guidance",
    "steps": "training.steps",
}

WIDTH = 110
REPEATED = "; repeat this option to specify a list of values"  # absl's words


# the overrides that users want first
COMMON = {
    "file": {
        "data.path": "FOLDER",
        "data.batch_size": "64",
        "training.steps": "2000",
        "optimizer.learning_rate": "5e-4",
        "model.width": "64",
        "sampler.nfe": "20",
        "sampler.guidance": "2",
    },
    "workdir": {
        "sampler.name": "multistep.dpmpp_2m",
        "sampler.grid": "karras",
        "sampler.nfe": "20",
        "sampler.guidance": "2",
        "sampler.ema": "params",
        "sampler.batch_size": "64",
    },
}


def commands() -> dict[str, str]:
    """Every command and what it does, in one line each."""
    found = {}
    for file in sorted(HERE.glob("[!_]*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        if any(
            isinstance(node, ast.If) and "__main__" in ast.unparse(node.test) for node in tree.body
        ):
            found[file.stem] = _one_line(_first_sentence(ast.get_docstring(tree) or ""))
    return found


def config_files(folder: Path = CONFIGS) -> dict[str, str]:
    """Every config file, as typed from the root of the project, with its summary and variants.

    Args:
      folder: where the config files are.
    """
    found = {}
    for file in sorted(folder.glob("[!_]*.py")):
        text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        variants = re.search(r"Variants[^.]*\.?(?:py)?", text)
        if file.stem != "base":
            said = _first_sentence(text) + (
                f" {variants[0]}" if variants and variants[0] not in text.partition("\n")[0] else ""
            )
            found[f"{folder.name}/{file.name}"] = " ".join(said.split())
    recipes = [file.stem for file in sorted(folder.glob("papers/[!_]*.py"))]
    if recipes:
        names = ", ".join(recipes)
        found[f"{folder.name}/papers/NAME.py"] = f"Published recipes (docs/papers.md): {names}."
    return found


def short(source: str, names: Iterable[str] = SHORT) -> dict[str, str]:
    """The short forms of config keys that have an effect in a command, and their keys.

    Args:
      source: where its config comes from: 'file', 'workdir' or 'none'.
      names: those of SHORT that the command has.
    """
    keys = {"file": "", "workdir": "sampler.", "none": "-"}[source]
    return {name: key for name, key in SHORT.items() if key.startswith(keys) and name in names}


def overview() -> str:
    """The text of `python -m experiments`."""
    return "\n".join(
        [
            "Diffusion models: train, sample, evaluate and compare. Run a command as",
            "",
            "    python -m experiments.NAME --FLAG=VALUE ...        "
            "(its flags: python -m experiments.NAME --help)",
            "",
            *_table(commands()),
            "",
            "First steps: python -m experiments.quickstart, or make quickstart. "
            "Documentation: README.md and docs/.",
        ]
    )


def of_command(
    doc: str,
    own: Iterable[flags.Flag],
    shared: Iterable[flags.Flag],
    sources: Iterable[str],
    name: str,
    names: Iterable[str] = SHORT,
    positional: str = "",
) -> str:
    """The text of `python -m experiments.NAME --help`.

    Args:
      doc: the docstring of the command.
      own: its flags.
      shared: the flags of all commands.
      sources: where its config may come from: 'file', 'workdir', 'none'.
      name: the name of the command.
      names: the short forms of config keys that have an effect in it.
      positional: its argument without a name, if it takes one.
    """
    own, sources = list(own), list(sources)
    parts = [
        doc.strip(),
        "",
        " ".join(
            part
            for part in (
                f"usage: python -m experiments.{name}",
                positional,
                "--FLAG=VALUE ...",
                _usage(sources),
            )
            if part
        ),
        "",
    ]
    if own:
        parts += ["flags", *_table({f"--{flag.name}": _described(flag) for flag in own}), ""]
    if "file" in sources:
        parts += [
            "config: --config=FILE.py:VARIANT, one of these or a file of your own",
            *_table(config_files()),
            "",
        ]
    if "workdir" in sources:
        parts += ["config: that of --workdir, as it was trained", ""]
    if set(sources) != {"none"}:
        parts += [
            "overrides: --config.KEY=VALUE changes any key (configs/base.py documents all of "
            "them), for example",
            *_examples(sources, set(names), {flag.name for flag in own}),
            "",
        ]
    parts += [
        "runs of several processes",
        *_table({f"--{flag.name}": _described(flag) for flag in shared if flag.name != "config"}),
    ]
    return "\n".join(parts)


def _usage(sources: list[str]) -> str:
    given = {"file": "--config=FILE.py:VARIANT", "workdir": "--workdir=FOLDER"}
    named = " or ".join(given[source] for source in sources if source in given)
    return f"{named} [--config.KEY=VALUE ...]" if named else ""


def _examples(sources: list[str], names: set[str], own: set[str]) -> list[str]:
    """Common overrides that have an effect, with their short forms where the command has them."""
    source = "file" if "file" in sources else "workdir"
    forms = {key: name for name, key in short(source, names - own).items()}
    without = {key for name, key in SHORT.items() if name not in names}
    if not names:  # a command that does not sample
        without.add("sampler.grid")
    lines = {
        f"--config.{key}={value}": f"or --{forms[key]}={value}" if key in forms else ""
        for key, value in COMMON[source].items()
        if key not in without
    }
    return _table(lines)


def _described(flag: flags.Flag) -> str:
    """The help of a flag, with its default, or that it is required."""
    help_text = " ".join((flag.help or "").split())
    help_text = help_text.replace(REPEATED, "; may be given several times")
    required = any(
        "must have a value other than None" in getattr(v, "message", "") for v in flag.validators
    )
    if required:
        return f"{help_text} (required)"
    silent = flag.default in (None, "", []) or flag.default is False or "default" in help_text
    return help_text if silent else f"{help_text} (default {flag.default_as_str.strip(chr(39))})"


def _table(rows: Mapping[str, str]) -> list[str]:
    """Two columns, the second wrapped; a long entry of the first has a line of its own."""
    left = min(max(map(len, rows), default=0), 40)
    lines = []
    for name, text in rows.items():
        wrapped = textwrap.wrap(text, WIDTH - left - 6) or [""]
        if len(name) > left:
            lines.append(f"  {name}")
            wrapped = wrapped if text else []
        else:
            lines.append(f"  {name:{left}}  {wrapped.pop(0)}".rstrip())
        lines += [f"  {'':{left}}  {line}" for line in wrapped]
    return lines


def _one_line(sentence: str, longest: int = 88) -> str:
    """A sentence that fits next to the name of a command, cut at a colon or semicolon if long."""
    if len(sentence) > longest:
        sentence = re.split(r"[:;] ", sentence)[0].rstrip(".") + "."
    return textwrap.shorten(sentence, longest, placeholder=" ...")


def _first_sentence(text: str) -> str:
    """The first sentence of a docstring."""
    first = " ".join(text.partition("\n\n")[0].split())
    match = re.match(r"(.*?[.?!])(?:\s|$)", first)
    return match[1] if match else first
