"""README.md and docs/: Python blocks run as pasted, and every command accepts its command lines."""

from __future__ import annotations

import functools
import json
import re
import shlex
import subprocess
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits
from diffusion_jax.assembly import components, train
from diffusion_jax.assembly.build import build
from diffusion_jax.assembly.experiment import assemble
from diffusion_jax.core.types import Prediction
from diffusion_jax.processes import gaussian, schedules
from diffusion_jax.samplers import ancestral, base, grids
from diffusion_jax.training import step
from tests import commands
from tests.experiments.small_runs import small

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHELL = re.compile(r"^```(?:bash|sh)\n(.*?)^```|^((?:    (?![-*|]).*\n)+)", re.M | re.S)
GUIDES = [ROOT / "docs" / f"{name}.md" for name in ("sample", "compare", "evaluate", "likelihood")]
PROSE = re.compile(r"`(?:python -m )?(experiments\.[a-z_]+ --[^`]*)`")


def line_of(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1


def commands_of(line: str) -> list[list[str]]:
    """The words of every `python -m experiments.NAME ...` of a line for the shell, variables being
    1.
    """
    lexer = shlex.shlex(re.sub(r"\$\{?\w+\}?", "1", line), posix=True, punctuation_chars=";&|<>")
    lexer.whitespace_split, lexer.commenters = True, "#"
    found, words = [], []
    for word in [*lexer, ";"]:
        if set(word) <= set(";&|<>"):
            found, words = [*found, words], []
        else:
            words.append(word)
    starts = [(words, words.index("-m")) for words in found if "-m" in words]
    return [words[i + 1 :] for words, i in starts if words[i + 1].startswith("experiments.")]


def typed(page: Path) -> list[tuple[int, list[str]]]:
    """(line number, words from experiments.NAME on) of every command in the blocks of a page."""
    text = page.read_text(encoding="utf-8")
    found = []
    for block in SHELL.finditer(text):
        first = line_of(text, block.start())
        for number, line in enumerate(
            re.sub(r"\\\n", "  ", block[0]).split("\n")
        ):  # a command may continue in the next line
            if "-m experiments." in line and "`" not in line:
                found += [(first + number, filled(words)) for words in commands_of(line)]
    return found


def filled(words: list[str]) -> list[str]:
    """The words with something in place of what the reader fills in: VARIANT, N, and `...` of
    a config or a workdir.
    """
    known = {
        "--config=...": "--config=configs/digits.py:vp",
        "--workdir=...": "--workdir=runs/a",
        "--step=N": "--step=1",
    }
    return [known.get(word, word.replace(":VARIANT", ":vp")) for word in words]


def quoted(page: Path) -> list[tuple[int, list[str]]]:
    """(line number, words from experiments.NAME on) of every command with flags within a text,
    which may leave --workdir out.
    """
    text = page.read_text(encoding="utf-8")
    return [
        (line_of(text, match.start()), filled(shlex.split(match[1].replace("\n", " "))))
        for match in PROSE.finditer(text)
    ]


WRONG = {  # what the parsers must say to lines that are wrong
    ("experiments.sample", "--workdir=runs/a", "--nun=3"): "'--nun'; did you mean '--num'",
    ("experiments.sample", "--num=3"): "--workdir is missing",
    (
        "experiments.train",
        "--config=configs/digits.py:vp",
        "--workdir=runs/a",
        "--config.sampler.name=ode.hun",
    ): "mean 'ode.heun'",
    (
        "experiments.train",
        "--config=configs/digits.py:vp",
        "--workdir=runs/a",
        "--config.sampler.nfe=0",
    ): "sampler.nfe=0",
}


@pytest.fixture(scope="module")
def mistakes() -> dict[tuple[str, ...], str | None]:
    """What the parser of its command says to every command line of all pages, words -> the mistake
    or None.
    """
    lines = {tuple(words) for page in PAGES for _, words in typed(page)} | set(WRONG)
    lines |= {tuple(with_workdir(words)) for page in PAGES for _, words in quoted(page)}
    lines_of_words = [[line[0].removeprefix("experiments."), *line[1:]] for line in sorted(lines)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.parse_commands"],
        cwd=ROOT,
        input=json.dumps(lines_of_words),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(sorted(lines), json.loads(done.stdout.splitlines()[-1]), strict=True))


def with_workdir(words: list[str]) -> list[str]:
    return (
        words
        if any(word.startswith(("--workdir", "--target", "--config=", "--parts")) for word in words)
        else [*words, "--workdir=runs/a"]
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_line_is_one_that_its_command_takes(page, mistakes):
    wrong = [
        f"{page.name}:{number}: {shlex.join(words)}: {mistakes[tuple(words)]}"
        for number, words in typed(page)
        if mistakes[tuple(words)]
    ]
    wrong += [
        f"{page.name}:{number}: {shlex.join(words)}: {said}"
        for number, words in quoted(page)
        if (said := mistakes[tuple(with_workdir(words))])
    ]
    assert not wrong, "\n".join(wrong)


def test_command_lines_are_found_and_wrong_ones_are_refused(tmp_path, mistakes):
    page = tmp_path / "page.md"
    page.write_text(
        """Text, `experiments.sample --num=3`.

```bash
for i in 0 1; do python -m experiments.train --config=configs/digits.py:vp \\
  --process_id=$i & done; wait   # python -m experiments.not_this
```

    python -m experiments.sample --prompt="a, b"
"""
    )
    assert [words for _, words in typed(page)] == [
        ["experiments.train", "--config=configs/digits.py:vp", "--process_id=1"],
        ["experiments.sample", "--prompt=a, b"],
    ]
    assert quoted(page) == [(1, ["experiments.sample", "--num=3"])]
    for page in PAGES:  # every line that begins with a command is among them
        begins = re.findall(
            r"^ *(?:\w+=\S+ )*python -m experiments\.", page.read_text(encoding="utf-8"), re.M
        )
        assert len(typed(page)) >= len(begins), page.name
    for line, said in WRONG.items():
        assert said in mistakes[line]


def test_every_target_of_make_that_a_page_names_exists():
    there = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {
        name
        for page in PAGES
        for name in re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(encoding="utf-8"), re.M)
    }
    assert named and named <= there, named - there


# what makes a command of the pages take seconds on a tiny model; all else is as written there
SMALLER = {
    "sample": ["--num=4"],
    "evaluate": ["--num=12", "--repeats=1"],
    "compare_samplers": ["--num=12", "--nfe=2,5"],
    "optimize_grid": [
        "--starts=4",
        "--num=10",
        "--solved=4",
        "--iterations=2",
        "--tries=1",
        "--polish=2",
    ],
    "statistics": ["--num=50"],
    "likelihood": ["--num=2", "--batch_size=2"],
}


@pytest.mark.long
def test_every_command_on_the_digits_model_runs(tmp_path):
    """The commands on runs/vp of README.md and of the guides, as written but for their size and the
    classifier, which takes minutes to train.
    """
    config = small(digits.get_config("vp")).lock()
    assert train.train(config, str(tmp_path / "vp"))
    images = pasted("def draw", page="sample")["draw"](str(tmp_path / "vp"), [3, 7])
    assert images.shape == (2, 8, 8, 1)
    lines = [
        words
        for page in (ROOT / "README.md", *GUIDES)
        for _, words in typed(page)
        if "--workdir=runs/vp" in words and words[0].removeprefix("experiments.") in SMALLER
    ]
    assert {words[0].removeprefix("experiments.") for words in lines} == {*SMALLER}
    for command, *words in lines:
        if any(re.match("--features=.*inception", word) for word in words):  # a download
            continue
        own = {
            "runs/vp": str(tmp_path / "vp"),
            "=digits.npz": f"={tmp_path}/digits.npz",
            "classifier": "thumbnails",
        }
        words = [
            functools.reduce(lambda word, old: word.replace(old, own[old]), own, word)
            for word in words
        ]
        name = command.removeprefix("experiments.")
        done = commands.run(name, *words, *SMALLER[name])
        assert done.returncode == 0, f"{shlex.join([command, *words])}\n{done.stdout}{done.stderr}"


# ---- Python
def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """(line number, text) of every fenced block of a language."""
    text = page.read_text(encoding="utf-8")
    return [
        (line_of(text, match.start()) + 1, match[1])
        for match in re.finditer(rf"^```{language}\n(.*?)^```", text, re.M | re.S)
    ]


def pasted(what: str, module: str = "pasted", page: str = "extending") -> dict:
    """The names that the block of a page that contains `what` defines, run as it stands in a module
    of this name.
    """
    page = ROOT / "docs" / f"{page}.md"
    (code,) = (code for _, code in blocks(page, "python") if what in code)
    names = {"__name__": module}
    exec(compile(code, page.name, "exec", dont_inherit=True), names)
    return names


def quick(code: str) -> str:
    """The code with fewer training steps than the 2,000 of README.md's example."""
    return code.replace("2_000", "20")


def test_every_block_of_python_runs_as_pasted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some write a data set
    found = [(page.name, number, code) for page in PAGES for number, code in blocks(page, "python")]
    assert len(found) >= 6
    for name, number, code in found:
        if code.startswith("def soft_min_snr"):  # an excerpt, whole in docs/extending.md
            continue
        names = {"__name__": f"pasted_{number}"}
        try:
            exec(compile(quick(code), f"{name}:{number}", "exec", dont_inherit=True), names)
        except Exception as error:
            error.add_note(f"in {name}:{number}")
            raise


def test_the_weighting_of_the_readme_is_that_of_the_page():
    (excerpt,) = (
        code for _, code in blocks(ROOT / "README.md", "python") if "soft_min_snr" in code
    )
    (whole,) = (code for _, code in blocks(ROOT / "docs/extending.md", "python") if excerpt in code)
    names = {}
    exec(compile(whole, "extending.md", "exec", dont_inherit=True), names)
    t = jnp.array([0.1, 0.5, 0.9])
    snr = jnp.exp(gaussian.logsnr(schedules.VP(), t))
    np.testing.assert_allclose(names["soft_min_snr"]()(schedules.VP(), t), 4 / (snr + 4), rtol=1e-5)


@pytest.mark.long
def test_the_library_example_learns_the_two_moons(capsys):
    """README.md's example as it stands: the samples of all three samplers lie on the data."""
    (code,) = (code for _, code in blocks(ROOT / "README.md", "python") if "make_moons" in code)
    exec(compile(code, "README.md", "exec", dont_inherit=True), {"__name__": "pasted"})
    distances = [float(line) for line in capsys.readouterr().out.split()]
    assert len(distances) == 3 and max(distances) < 0.05, distances


def test_the_front_page_is_short_and_animations_are_small():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 160
    assert not [p for p in (ROOT / "docs").rglob("*.gif") if p.stat().st_size >= 1_000_000]


def test_links_between_pages_lead_somewhere():
    """Every relative link and picture of every page exists, and so does the heading it names."""
    wrong = []
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if target.startswith(("http:", "https:")):
                continue
            file, _, heading = target.partition("#")
            there = (page.parent / file).resolve() if file else page
            if not there.exists():
                wrong.append(f"{page.name}: {target}")
            elif heading and heading not in anchors(there):
                wrong.append(f"{page.name}: {target}; there are {sorted(anchors(there))}")
    assert not wrong, "\n".join(wrong)


def test_the_tables_of_shipped_models_quote_their_cards():
    """docs/guides/publishing.md has a row for each folder of pretrained/, README.md for three."""
    pages = ("README.md", "docs/guides/publishing.md")
    text = "".join((ROOT / page).read_text(encoding="utf-8") for page in pages)
    rows = re.findall(r"^\| \[?`(\w+)`(?:\]\((.*?)\))?(.*±.*)$", text, re.M)
    linked = [name for name, link, _ in rows if link]
    shipped = [card.parent.name for card in (ROOT / "pretrained").glob("*/README.md")]
    assert sorted(linked) == sorted(shipped) and len(rows) == len(shipped) + 3
    for name, link, row in rows:
        assert link in ("", f"../../pretrained/{name}/README.md")
        card = (ROOT / "pretrained" / name / "README.md").read_text(encoding="utf-8")
        numbers = re.findall(r"[\d,]+ parameters|[\d.]+ ± [\d.]+", row)
        assert len(numbers) >= 2 and all(number in card for number in numbers), row


def anchors(page: Path) -> set[str]:
    """The names that the site gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    plain = (re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings)
    return {re.sub(r"[-\s]+", "-", heading) for heading in plain}


def test_the_process_of_the_page_is_a_member_of_its_family():
    page = pasted("class LinearLogSNR", schedules.__name__)["LinearLogSNR"]
    family = components.PROCESSES._replace(own=(*components.PROCESSES.own, page))
    process = build(family, "schedules.LinearLogSNR(lam_max=12.0)")
    t = jnp.linspace(0, 1, 9)
    np.testing.assert_allclose(gaussian.logsnr(process, t), 12 - 22 * t, rtol=1e-5, atol=1e-5)


def test_the_sampler_of_the_page_is_ddim():
    page = pasted("def my_ddim", ancestral.__name__)["my_ddim"]
    family = components.SAMPLERS._replace(own=(*components.SAMPLERS.own, page))
    process, keys = schedules.VP(), jax.random.split(jax.random.key(0), 3)
    x, ts = base.start(process, keys, (3, 2)), grids.uniform(process, 4)

    def denoise(x, t, cond=None):
        return Prediction(0.3 * x, (x - process.alpha(t) * 0.3 * x) / process.sigma(t))

    for eta in (0.0, 0.7):
        mine, theirs = (
            base.sample(
                build(family, f"ancestral.{name}({eta=})"),
                denoise,
                process,
                keys,
                x,
                ts,
            ).x0
            for name in ("my_ddim", "ddim")
        )
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)


def test_the_network_of_the_page_is_trained_by_its_config(monkeypatch):
    """Its shapes, under the objective of the digits, by the config file that the page shows; no new
    code but these two blocks.
    """
    module = types.ModuleType("diffusion_jax.models.convnet")
    vars(module).update(pasted("class ConvNet", module.__name__))
    family = components.MODELS._replace(own=(*components.MODELS.own, module.ConvNet))
    monkeypatch.setattr(components, "MODELS", family)
    config = pasted("convnet.ConvNet")["get_config"]()
    assert config.model.to_dict() == {"name": "convnet.ConvNet", "width": 48, "blocks": 4}
    experiment = assemble(config, (8, 8, 1), 10)
    params = jax.eval_shape(lambda key: experiment.kind.init(experiment, key), jax.random.key(0))
    batch = {"image": jnp.zeros((4, 8, 8, 1)), "label": jnp.zeros(4, jnp.int32)}
    now = step.Now(0, {})
    losses, _ = jax.eval_shape(
        lambda p: experiment.kind.loss(experiment)(
            p, batch, jax.random.split(jax.random.key(0), 4), now
        ),
        params,
    )
    assert losses.shape == (4,)
