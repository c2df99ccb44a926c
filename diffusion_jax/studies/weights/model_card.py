"""The model card of a published workdir: README.md with the front matter that hubs read."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from diffusion_jax.assembly.publication import PublishedModel
from diffusion_jax.assembly.workdir import Trained
from diffusion_jax.core import files, parsing, reading
from diffusion_jax.core.errors import UserError, printable
from diffusion_jax.evaluation import metrics as metric_table
from diffusion_jax.report import media
from diffusion_jax.report.tables import markdown_table
from diffusion_jax.studies.few_step import methods
from diffusion_jax.training import metrics

NOT_STATED = "not stated by the publisher"
_NUMBERS = reading.table(reading.number(finite=False))
_EVALUATION = reading.record(
    {
        "mean": _NUMBERS,
        "num": reading.integer(1),
        "repeats": reading.integer(1),
        "sampler": reading.record(
            {"name": reading.text(), "nfe": reading.integer(1), "guidance": reading.number()}
        ),
    },
    {
        "intervals": _NUMBERS,
        "real": _NUMBERS,
        "real_intervals": _NUMBERS,
        "titles": reading.table(reading.text()),
        "step": reading.integer(),
        "weights": reading.text(),
    },
)


def evaluations(root: Path, paths: str, step: int, weights: str) -> list[dict[str, Any]]:
    """Read the files of experiments.evaluate that the card has as tables.

    Args:
      root: the workdir.
      paths: the files, with commas; '' takes evaluation.json of the workdir, if it is there and is
        of the weights that are published; else a note says so.
      step: the step of these weights.
      weights: their name.

    Raises:
      UserError: for a file that is missing, of another kind or of other weights.
    """
    chosen = [Path(path) for path in parsing.paths("evaluations", paths)] if paths else []
    if not paths and (root / "evaluation.json").is_file():
        chosen = [root / "evaluation.json"]
    found = []
    for path in chosen:
        read = files.load_json(path, _EVALUATION)
        own = read.get("step", step), read.get("weights", weights)
        if own == (step, weights):
            found.append(read)
            continue
        why = (
            f"{path} is of the weights '{own[1]}' of step {own[0]}, and '{weights}' of step {step} "
            "are published"
        )
        if paths:
            raise UserError(f"--evaluations: {why}; evaluate those (experiments.evaluate)")
        print(f"note: the card has no scores: {why}", file=sys.stderr)
    return found


def card(
    name: str,
    trained: Trained,
    root: Path,
    start: str,
    autoencoder: PublishedModel | None,
    said: Any,
    found: Sequence[Mapping[str, Any]],
    dtype: str,
    shown: str,
) -> str:
    """The text of the model card.

    Args:
      name: the name of the model, that of its folder.
      trained: the model as it is published.
      root: the workdir of its run.
      start: the model with whose weights its training began; '' for none.
      autoencoder: the autoencoder of a model of latents.
      said: what the publisher states, publish.Statements.
      found: what `evaluations` returned.
      dtype: to which the weights are rounded.
      shown: a sentence about the picture.
    """
    parts = [
        _front_matter(name, trained, said.license),
        f"# {_text(name)}",
        _summary(trained, autoencoder, dtype),
        f"![samples](samples.png)\n\n{shown}",
        f"## Use\n\n{_use(name, trained)}",
        f"## Data\n\n{_data(trained, said)}",
        f"## Training\n\n{_training(name, trained, root)}",
        f"## Evaluation\n\n{_evaluation(found, _plural(trained))}",
        f"## Limitations\n\n{_limitations(trained, start, said, dtype)}",
        f"## License\n\nThe weights: {said.license or NOT_STATED}. "
        f"The data: {said.data_license or NOT_STATED}.",
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(name: str, trained: Trained, license: str) -> str:
    """The YAML block that hubs read; texts are quoted as JSON, which YAML reads."""
    task = "text-to-image" if trained.experiment.encoder else "unconditional-image-generation"
    kind = f"pipeline_tag: {task}"  # hubs have no such task for numbers
    tags = ["diffusion", "jax", "flax", str(trained.data.get("name", ""))]
    lines = ["---"]
    lines += [f"license: {json.dumps(license)}"] if license else []
    lines += ["library_name: diffusion_jax", *[kind] * (_plural(trained) == "images"), "tags:"]
    lines += [f"- {json.dumps(tag)}" for tag in tags if tag]
    return "\n".join([*lines, f"model_name: {json.dumps(name)}", "---"])


def _summary(trained: Trained, autoencoder: PublishedModel | None, dtype: str) -> str:
    model, size = trained.experiment, sum(x.size for x in jax.tree.leaves(trained.params))
    shape = " x ".join(map(str, model.shape))
    condition = "captions" if model.encoder else f"{model.num_classes} classes"
    condition = condition if model.encoder or model.num_classes else "no condition"
    text = (
        f"{model.kind.name[0].upper()}{model.kind.name[1:]} of `{_data_name(trained)}` with "
        f"{condition}: a `{model.specs.model}` of {size:,} parameters for examples of {shape}, "
        f"under the process `{model.specs.process}`, with the parameterization "
        f"`{model.specs.parameterization}` and the objective `{model.specs.objective}`. "
        f"`weights.safetensors` holds the weights '{trained.weights}' of step {trained.step:,}, "
        f"rounded to {dtype}."
    )
    if autoencoder is not None:
        count = sum(x.size for x in jax.tree.leaves(autoencoder.trained.params))
        text += f" The examples are latents of the autoencoder in `autoencoder/` ({count:,} "
        text += "parameters), which decodes them to images."
    if model.encoder:
        own = model.specs.encoder == "bytes"
        text += (
            " Captions are read as bytes, and need no further model."
            if own
            else (
                f" Captions are encoded by `{model.specs.encoder}`, whose weights are not in this "
                f"folder: `python -m experiments.get_weights {model.specs.encoder}` installs them."
            )
        )
    return text


def _use(name: str, trained: Trained) -> str:
    condition = " --prompt='...'" if trained.experiment.encoder else ""
    return (
        "With diffusion_jax, where FOLDER is this folder, or its address (`hf://OWNER/NAME` or "
        "`https://...`), or the bare name of a folder of `pretrained/` in a clone:\n\n"
        "```bash\n"
        f"python -m experiments.sample --workdir=FOLDER --out={shlex.quote(name)}{condition}\n"
        "python -m experiments.evaluate --workdir=FOLDER --config.data.path=DATA\n"
        "python -m experiments.train --config=FILE.py --workdir=runs/mine "
        "--config.init_from=FOLDER\n"
        "```\n\n"
        "The files are JSON and safetensors: nothing in this folder is executed."
    )


def _data_name(trained: Trained) -> str:
    encoded = trained.data.get("encoded", {})
    return _text(encoded.get("data") or trained.data.get("name", "") or "unknown data")


def _data(trained: Trained, said: Any) -> str:
    about = trained.data
    encoded = about.get("encoded", about)
    lines = [f"- data set: `{_data_name(trained)}`"]
    if "train_size" in about:
        lines.append(
            f"- {about['train_size']:,} training and {about['test_size']:,} test examples of "
            f"{' x '.join(map(str, encoded['image_shape']))}"
        )
    names = encoded["class_names"]
    if names:
        more = f", and {len(names) - 20} more" if len(names) > 20 else ""
        lines.append(f"- classes: {', '.join(map(_text, names[:20]))}{more}")
    lines.append(f"- source: {said.data_source or NOT_STATED}")
    lines.append(f"- license: {said.data_license or NOT_STATED}")
    return "\n".join(lines)


def _training(name: str, trained: Trained, root: Path) -> str:
    """What a run records of its cost; imported weights have none."""
    about = files.load_json(root / "provenance.json", reading.table())
    if "imported" in about:
        return "The weights were trained by another program and imported."
    rows = metrics.read_rows(root / "metrics.jsonl") if (root / "metrics.jsonl").is_file() else []
    images = max((row["images"] for row in rows if "images" in row), default=0)
    seconds = methods.seconds(root) or 0.0
    device, cpu, versions = (about.get(key) or {} for key in ("devices", "cpu", "versions"))
    hardware = f"{device.get('count', '?')} x {device.get('kind', '?')}"
    if device.get("kind") == "cpu":
        cores = cpu.get("cores") or "?"
        unit = "core" if cores == 1 else "cores"
        hardware = f"{cores} {unit} of {cpu.get('model') or 'a CPU'}"
    lines = [
        f"- steps: {trained.step:,}, in batches of {trained.experiment.data.batch_size}",
        f"- examples seen: {images:,}",
        f"- time in training steps: {_duration(seconds)}, on {hardware}",
        f"- seed: {about.get('seed')}",
        f"- date: {str(about.get('date', ''))[:10]}",
        f"- code: diffusion_jax {versions.get('diffusion_jax')} at commit {about.get('commit')}, "
        f"jax {versions.get('jax')}, Python {versions.get('python')}",
    ]
    command = without_paths(str(about.get("command") or ""), name)
    text = "```bash\n" + command + "\n```\n\n" if command else ""
    return text + _text("\n".join(lines))


def without_paths(command: str, name: str) -> str:
    """A command line without the paths of the machine where it ran.

    Args:
      command: as it was typed.
      name: the name of the model, which the workdir gets.
    """
    try:
        words = shlex.split(command)
    except ValueError:  # a quote without its end
        return ""
    start = words.index("-m") if "-m" in words else 0
    words = ["python", *words[start:]] if "-m" in words else words
    return shlex.join(_without_path(word, name) for word in words)


def _without_path(word: str, name: str) -> str:
    flag, equals, value = word.partition("=")
    if not equals:
        return Path(word).name if _is_path(word) else word
    if flag == "--workdir":
        return f"--workdir=runs/{name}"
    if not _is_path(value):
        return re.sub(r"(?<![\w.])[/~][^\s,;'\")]*/", "", word)
    if flag.startswith("--config.data."):
        return f"{flag}=DATA"
    return f"{flag}={Path(value).name}"


def _is_path(text: str) -> bool:
    return text.startswith(("/", "~", "../", "./")) or "://" in text


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _plural(trained: Trained) -> str:
    """What the samples are, such as 'images' or 'rows'."""
    return media.media_of(trained.experiment.shape, trained.experiment.normalization).plural


def _evaluation(found: Sequence[Mapping[str, Any]], plural: str) -> str:
    """One column for each evaluation, and one of real test data."""
    if not found:
        return "This model was not evaluated before it was published."
    heads = {"": ""} | {str(i): _setting(each) for i, each in enumerate(found)}
    rows = []
    for name in dict.fromkeys(name for each in found for name in each["mean"]):
        metric = metric_table.find(name)
        title = next(each.get("titles", {}).get(name, name) for each in found)
        row = {"": title}
        for i, each in enumerate(found):
            if name in each["mean"]:
                row[str(i)] = metric.text(each["mean"][name], each.get("intervals", {}).get(name))
        real = next((each for each in found if name in each.get("real", {})), None)
        if real:
            half = real.get("real_intervals", {}).get(name)
            row["real"] = metric.text(real["real"][name], half)
        rows.append(row)
    sets = {f"{each['repeats']} x {each['num']}" for each in found}
    text = markdown_table(rows, heads | {"real": f"real test {plural}"})
    return (
        f"{text}\n{metric_table.INTERVALS} Measured on {' and '.join(sorted(sets))} {plural} of "
        "disjoint seeds by `experiments.evaluate`, from the weights of the run before they were "
        "rounded."
    )


def _setting(found: Mapping[str, Any]) -> str:
    sampler = found["sampler"]
    return f"{sampler['name']}, NFE {sampler['nfe']}, guidance {sampler['guidance']:g}"


def _limitations(trained: Trained, start: str, said: Any, dtype: str) -> str:
    lines = []
    if size := trained.data.get("train_size"):
        before = f"those of `{_text(Path(start).name)}`, with whose weights its training began"
        lines.append(
            f"- It has learned from {size:,} examples{f' and {before},' if start else ' alone,'} "
            "and draws nothing but what these show, with their errors and biases."
        )
    about = trained.data
    shown = about.get("encoded", about)["image_shape"]  # decoded, of latents
    lines += [
        f"- Examples have the fixed shape {' x '.join(map(str, shown))}.",
        f"- The weights are rounded to {dtype}: a sample differs slightly from that of the run.",
        "- It is published for research and teaching, and was not tested for other uses.",
    ]
    lines += [f"- {said.limitations}"] if said.limitations else []
    return "\n".join(lines)


def _text(text: str) -> str:
    """A text of the run or the data without control characters and Markdown of its own."""
    lines = (printable(line) for line in str(text).splitlines())
    return "\n".join(re.sub(r"([<>`|\[\]])", r"\\\1", line) for line in lines)
