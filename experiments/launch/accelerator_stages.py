"""The parts of accelerator_check.sh that are no commands: environment, data, and the report.

The script calls it as `python experiments/launch/accelerator_stages.py PART ...`, with PYTHONPATH
set to the clone. A stage NAME of the script leaves its output in WORK/NAME.out, its numbers in
WORK/NAME.json, and a line in WORK/stages.jsonl; `report` makes one page of what is there.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import subprocess
import zipfile
from collections.abc import Callable, Mapping
from configparser import ConfigParser
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np
from packaging.requirements import Requirement
from PIL import Image

from diffusion_jax.core import files, npz, provenance
from diffusion_jax.core.errors import UserError
from diffusion_jax.planning import devices
from diffusion_jax.report.tables import markdown_table
from diffusion_jax.training import metrics

ROOT = Path(__file__).parents[2]
SMI = "name,driver_version,memory.total,clocks.sm,clocks.mem,power.limit"
SHAPE, CLASSES = (32, 32, 3), 10  # of CIFAR-10
PACKED = {  # an .npz of JPEG files: bytes, where each file begins and ends, classes, held out
    "jpg": npz.ArraySpec("u", (None,)),
    "offsets": npz.ArraySpec("iu", (None,)),
    "label": npz.ArraySpec("iu", (None,)),
    "is_test": npz.ArraySpec("biu", (None,)),
}
OUTCOMES = "PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS"
# lines of pytest: 'tests/a.py::test PASSED', or of a worker '[gw0] [ 12%] PASSED tests/a.py::test'
OUTCOME = re.compile(
    rf"^(?:\[gw\d+\] \[ *\d+%\] (?P<first>{OUTCOMES}) )?(?P<file>tests/\S+?)::(?P<test>\S+)"
    rf"(?(first)| (?P<last>{OUTCOMES})\b)",
    re.M,
)


# ---- environment
def environment(work: Path) -> str:
    """Describe software and devices, and list the requirements that are not met.

    Args:
      work: the folder of the stages; environment.json is written there.

    Returns:
      A table in Markdown.
    """
    facts = provenance.provenance()
    facts["gpu"] = nvidia_smi()
    facts["unmet"] = unmet_requirements()
    facts["memory"] = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    files.save_json(work / "environment.json", facts)
    chip = devices.chip_of(facts["devices"]["kind"])
    rows = {
        "device": f"{facts['devices']['count']} x {facts['devices']['kind']}",
        "its memory, GiB": facts["memory"] and round(facts["memory"] / 2**30, 1),
        "its peak, bfloat16 TFLOP/s": chip and chip.flops / 1e12,
        "nvidia-smi": facts["gpu"] or "not there",
        "CPU": f"{facts['cpu']['cores']} cores, {facts['cpu']['model']}",
        "commit": facts["commit"] or "unknown (no git)",
        "date": facts["date"],
        **facts["versions"],
        "requirements that are not met": ", ".join(facts["unmet"]) or "none",
    }
    return _table(rows)


def nvidia_smi() -> str | None:
    """What nvidia-smi says about the GPUs; None where there is none."""
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={SMI}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=30,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip().replace("\n", "; ") or None


def unmet_requirements() -> list[str]:
    """The requirements of the package that are missing here or have another version."""
    parser = ConfigParser()
    parser.read(ROOT / "setup.cfg")
    wanted = map(Requirement, parser["options"]["install_requires"].split())
    return [text for each in wanted if (text := _unmet(each))]


def _unmet(wanted: Requirement) -> str:
    try:
        found = metadata.version(wanted.name)
    except metadata.PackageNotFoundError:
        return f"{wanted} (missing)"
    return "" if wanted.specifier.contains(found, prereleases=True) else f"{wanted} ({found})"


# ---- data
def data(work: Path, path: str, tiny: bool) -> str:
    """Find or make the images to train on.

    Args:
      work: the folder of the stages; data.json is written there, with the config keys of the data.
      path: a folder of images, an .npz that the package reads, or an .npz of JPEG files (arrays
        jpg, offsets, label, is_test); '' makes pictures.
      tiny: make few.

    Returns:
      A sentence about the data.

    Raises:
      UserError: if the path does not exist.
    """
    source = Path(path).expanduser()
    if path and not source.exists():
        raise UserError(f"--data={path} does not exist; give a folder of images, or an .npz")
    name, place, about = "npz", work / "data.npz", f"{path}, JPEG files, unpacked"
    if not path:
        made = _synthetic(256 if tiny else 50_000)
        npz.save(place, made)
        about = (
            f"SYNTHETIC pictures ({len(made['x_train']):,} of 32 x 32 x 3 in 10 classes), as no "
            "--data was given: times are those of CIFAR-10, scores say nothing about quality on it"
        )
    elif source.is_dir():
        name, place, about = "folder", source, f"the folder {path}"
    elif zipfile.is_zipfile(source) and "jpg.npy" in zipfile.ZipFile(source).namelist():
        npz.save(place, _unpacked(npz.load(source, PACKED)))
    else:
        place, about = source, path
    keys = {"name": name, "path": str(place.absolute()), "image_size": 32, "channels": 3}
    files.save_json(work / "data.json", {"keys": keys, "about": about, "synthetic": not path})
    return f"Data: {about}.\n"


def flags_of_data(work: Path) -> str:
    """The flags of a command for the data that `data` found, one a line.

    Args:
      work: the folder of the stages.
    """
    keys = json.loads((work / "data.json").read_text())["keys"]
    return "".join(f"--config.data.{key}={value}\n" for key, value in keys.items())


def _synthetic(count: int) -> dict[str, np.ndarray]:
    """Smooth pictures, a wave with noise in ten directions, with the arrays of a data set."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]] * (2 * np.pi / SHAPE[0])

    def some(number: int) -> tuple[np.ndarray, np.ndarray]:
        labels = rng.integers(CLASSES, size=number)
        angle = labels * (np.pi / CLASSES) + rng.normal(0, 0.05, number)
        phase = rng.uniform(0, 2 * np.pi, (number, SHAPE[2]))
        wave = (
            np.cos(angle)[:, None, None] * rows + np.sin(angle)[:, None, None] * columns
        ).astype(np.float32) * 2
        image = 127.5 + 100 * np.sin(wave[..., None] + phase[:, None, None].astype(np.float32))
        return np.clip(image, 0, 255).astype(np.uint8), labels.astype(np.int32)

    (x_train, y_train), (x_test, y_test) = some(count), some(max(count // 5, 64))
    return {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}


def _unpacked(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The pictures of JPEG files that follow each other in one array of bytes."""
    whole, ends = arrays["jpg"].tobytes(), arrays["offsets"]
    pictures = [
        np.asarray(Image.open(io.BytesIO(whole[a:b])).convert("RGB"))
        for a, b in zip(ends[:-1], ends[1:])
    ]
    images, labels = np.stack(pictures), arrays["label"].astype(np.int32)
    test = arrays["is_test"].astype(bool)
    return {
        "x_train": images[~test],
        "y_train": labels[~test],
        "x_test": images[test],
        "y_test": labels[test],
    }


# ---- report
def report(work: Path, out: Path) -> None:
    """Write report.md and report.json of all stages so far.

    Args:
      work: the folder of the stages.
      out: the folder of the results.
    """
    lines = (work / "stages.jsonl").read_text().splitlines()
    stages = [json.loads(line) for line in lines if line]
    parts, numbers = [], {}
    for stage in stages:
        name = stage["stage"]
        body, found = READERS.get(name, _plain)(work, name)
        body = re.sub(r"^#", "##", body, flags=re.M)  # below the heading of the stage
        numbers[name] = stage | {"numbers": found}
        parts.append(f"## {name}: {stage['result']}\n\n{body.strip() or 'No output.'}\n")
    columns = {"stage": "stage", "result": "result", "seconds": "seconds", "limit": "limit, s"}
    summary = markdown_table(stages, columns)
    files.save_text(out / "report.md", "\n".join(["# Check of an accelerator\n", summary, *parts]))
    files.save_json(out / "report.json", numbers)


def _plain(work: Path, name: str) -> tuple[str, Any]:
    """A stage whose output is Markdown: (its output, its numbers)."""
    output, numbers = work / f"{name}.out", work / f"{name}.json"
    text = output.read_text(errors="replace") if output.is_file() else ""
    return (
        text.replace(f"{numbers}\n", ""),  # a command ends with the file that it wrote
        json.loads(numbers.read_text()) if numbers.is_file() else None,
    )


def _of_benchmark(work: Path, name: str) -> tuple[str, Any]:
    """The tables of a benchmark; of one that was cut, which prints none, those that it kept."""
    body, numbers = _plain(work, name)
    if not body and numbers:
        kept = [(part, found) for part, found in numbers.items() if "rows" in (found or ())]
        for part, found in kept:
            rows = [{k: v for k, v in row.items() if k != "seconds"} for row in found["rows"]]
            body += f"## {part}\n\n{found['facts']}\n\n{markdown_table(rows, [*rows[0]])}\n\n"
    return body, numbers


def _of_tests(work: Path, name: str) -> tuple[str, Any]:
    """The results of the tests that ran, also if the others had no time."""
    text, _ = _plain(work, name)
    found = [(m["file"], m["test"], m["first"] or m["last"]) for m in OUTCOME.finditer(text)]
    outcomes = sorted({outcome for _, _, outcome in found})
    rows = [
        {"file": file}
        | {o: sum(f == file and outcome == o for f, _, outcome in found) for o in outcomes}
        for file in sorted({file for file, _, _ in found})
    ]
    failed = [f"{f}::{test}" for f, test, o in found if o in ("FAILED", "ERROR")]
    lines = "".join(f"\n- failed: `{test}`" for test in failed)
    headings = {"file": "file"} | {o: o.lower() for o in outcomes}
    body = markdown_table(rows, headings) + lines if rows else "No test ended."
    return body, {"tests": [f"{f}::{test} {o}" for f, test, o in found], "failed": failed}


def _of_training(work: Path, name: str) -> tuple[str, Any]:
    """How far training came, by the rows of its metrics."""
    path = work / "run" / "metrics.jsonl"
    rows = [row for row in metrics.read_rows(path) if "loss" in row] if path.is_file() else []
    if not rows:
        return "No row of metrics was written.", None
    speed = [rate for row in rows if (rate := row["timing"].get("images_per_s"))]
    numbers = {
        "steps": rows[-1]["step"],
        "first loss": rows[0]["loss"],
        "last loss": rows[-1]["loss"],
        "images/s, median": median(speed) if speed else None,
    }
    _, about = _plain(work, "data")
    note = f"\nData: {about['about']}.\n" if about else ""
    return _table(numbers) + note, numbers


def _of_evaluation(work: Path, name: str) -> tuple[str, Any]:
    """The scores, with the words that keep them from being read as what they are not."""
    body, numbers = _plain(work, name)
    _, about = _plain(work, "data")
    notes = ["Only the distance of Inception features is FID. The reference is the data's own."]
    if about and about["synthetic"]:
        notes.append("The data are SYNTHETIC: no score here is one of CIFAR-10.")
    return f"{body}\n{' '.join(notes)}\n" if body else "", numbers


Reader = Callable[[Path, str], tuple[str, Any]]
READERS: dict[str, Reader] = {
    "tests": _of_tests,
    "benchmark": _of_benchmark,
    "transformer": _of_benchmark,
    "peers": _of_benchmark,
    "training": _of_training,
    "evaluation": _of_evaluation,
}


def _table(rows: Mapping[str, Any]) -> str:
    """A table of two columns, what and its value."""
    pairs = [{"what": what, "value": value} for what, value in rows.items()]
    return markdown_table(pairs, {"what": "what", "value": "value"})


def main() -> None:
    """Run one part, and print what it says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("environment", "data", "data-flags", "report"))
    parser.add_argument("--work", type=Path, required=True, help="folder of the stages")
    parser.add_argument("--out", type=Path, help="folder of the results")
    parser.add_argument("--data", default="", help="images to train on")
    parser.add_argument("--tiny", action="store_true", help="few pictures")
    given = parser.parse_args()
    if given.part == "environment":
        print(environment(given.work))
    elif given.part == "data":
        print(data(given.work, given.data, given.tiny))
    elif given.part == "data-flags":
        print(flags_of_data(given.work), end="")
    else:
        report(given.work, given.out)


if __name__ == "__main__":
    main()
