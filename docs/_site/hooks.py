"""Hooks of the documentation site (mkdocs.yml): its front page, its API reference, and its links.

The pages under docs/ are also read as plain Markdown in the repository, where links to the sources
work. The site does not contain the sources, so such links become plain text there.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent.parent
PACKAGE = ROOT / "diffusion_jax"
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")

# The order of the chapters in the reference: from the foundations up, as in docs/design.md.
CHAPTERS = (
    "foundations",
    "processes",
    "denoisers",
    "objectives",
    "samplers",
    "likelihood",
    "targets",
    "inverse",
    "models",
    "pretrained",
    "data",
    "training",
    "evaluation",
    "report",
    "planning",
    "assembly",
    "studies",
)


def modules(chapter: str) -> list[str]:
    """The public modules of a chapter, by their dotted names."""
    folder = PACKAGE if chapter == "foundations" else PACKAGE / chapter
    files = folder.glob("*.py") if chapter == "foundations" else folder.rglob("*.py")
    parts = [file.relative_to(ROOT).with_suffix("").parts for file in sorted(files)]
    return [".".join(part) for part in parts if not part[-1].startswith("_")]


def reference(chapter: str) -> str:
    """The page of a chapter: its summary, and an mkdocstrings entry for every public module."""
    entries = "\n\n".join(f"::: {module}" for module in modules(chapter))
    package = "diffusion_jax" if chapter == "foundations" else f"diffusion_jax.{chapter}"
    return f"# {chapter}\n\nThe public modules of `{package}`.\n\n{entries}\n"


def on_config(config):
    """Add the API reference to the navigation."""
    unknown = {path.parent.name for path in PACKAGE.glob("*/__init__.py")} ^ {*CHAPTERS[1:]}
    if unknown:
        raise ValueError(f"docs/_site/hooks.py: CHAPTERS and the package differ in {unknown}")
    pages = [{chapter: f"api/{chapter}.md"} for chapter in CHAPTERS]
    config.nav.append({"API reference": pages})
    return config


def on_files(files, config):
    """Generate the front page from README.md, and the pages of the API reference."""
    front = (ROOT / "README.md").read_text(encoding="utf-8").replace("](docs/", "](")
    files.append(File.generated(config, "index.md", content=front))
    for chapter in CHAPTERS:
        files.append(File.generated(config, f"api/{chapter}.md", content=reference(chapter)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Turn links to files that the site does not contain into plain text."""
    folder = Path(page.file.src_uri).parent

    def replaced(match: re.Match) -> str:
        image, text, target = match.groups()
        path = target.partition("#")[0]
        if path == "../README.md":
            return f"[{text}](index.md)"
        inside = not path or ":" in path or files.get_file_from_path((folder / path).as_posix())
        return match[0] if image or inside else text

    return LINK.sub(replaced, markdown)
