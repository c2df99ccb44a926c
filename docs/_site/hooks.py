"""Hooks of the documentation site (mkdocs.yml): front page, notebooks, API reference, and links.

The pages under docs/ are also read as plain Markdown in the repository, where links to the sources
work. The site does not contain the sources, so such links become plain text there.
"""

from __future__ import annotations

import base64
import inspect
import json
import re
from pathlib import Path

from mkdocs.structure.files import File

import diffusion_jax

ROOT = Path(__file__).parent.parent.parent
PACKAGE = ROOT / "diffusion_jax"
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")

# The order of the chapters in the reference: from the foundations up, as in docs/design.md.
CHAPTERS = (
    "core",
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
    folder = PACKAGE / chapter
    files = folder.rglob("*.py")
    parts = [file.relative_to(ROOT).with_suffix("").parts for file in sorted(files)]
    return [".".join(part) for part in parts if not part[-1].startswith("_")]


def page_of(module: str) -> str:
    """The path of a module's page: diffusion_jax.samplers.ode -> api/samplers/ode.md."""
    return "api/" + "/".join(module.split(".")[1:]) + ".md"


def notebook_page(path: Path) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and its pictures by their file names."""
    parts, pictures = [], {}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            if "text" in output:
                parts.append(f"```text\n{''.join(output['text']).rstrip()}\n```")
            if "image/png" in output.get("data", {}):
                name = f"{path.stem}_{len(pictures) + 1}.png"
                pictures[name] = base64.b64decode(output["data"]["image/png"])
                parts.append(f"![figure {len(pictures)}]({name})")
    return "\n\n".join(parts) + "\n", pictures


def on_config(config):
    """Add the notebooks and the API reference, a page for every module, to the navigation."""
    (notebooks,) = (entry["Notebooks"] for entry in config.nav if "Notebooks" in entry)
    notebooks += [f"notebooks/{path.stem}.md" for path in NOTEBOOKS]
    unknown = {path.parent.name for path in PACKAGE.glob("*/__init__.py")} ^ {*CHAPTERS}
    if unknown:
        raise ValueError(f"docs/_site/hooks.py: CHAPTERS and the package differ in {unknown}")
    chapters = [
        {chapter: [{module.rpartition(".")[2]: page_of(module)} for module in modules(chapter)]}
        for chapter in CHAPTERS
    ]
    config.nav.append({"API reference": [{"diffusion_jax": "api/diffusion_jax.md"}, *chapters]})
    return config


def on_files(files, config):
    """Generate the front page, the pages of the notebooks, and those of the API reference."""
    front = (ROOT / "README.md").read_text(encoding="utf-8").replace("](docs/", "](")
    files.append(File.generated(config, "index.md", content=front))
    for path in NOTEBOOKS:
        content, pictures = notebook_page(path)
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=content))
        for name, picture in pictures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=picture))
    names = "\n".join(f"- `{name}`" for name in diffusion_jax.__all__)
    first = f"# diffusion_jax\n\n{inspect.getdoc(diffusion_jax)}\n\n{names}\n"
    files.append(File.generated(config, "api/diffusion_jax.md", content=first))
    for chapter in CHAPTERS:
        for module in modules(chapter):
            entry = f"# {module.rpartition('.')[2]}\n\n::: {module}\n"
            files.append(File.generated(config, page_of(module), content=entry))
    return files


def on_page_markdown(markdown, page, config, files):
    """Turn links to files that the site does not contain into plain text."""
    folder = Path(page.file.src_uri).parent

    def replaced(match: re.Match) -> str:
        image, text, target = match.groups()
        path = target.partition("#")[0]
        if path == "../README.md":
            return f"[{text}](index.md)"
        if path.endswith(".ipynb"):  # the site has a page of it
            return f"[{text}]({path.removesuffix('.ipynb')}.md)"
        inside = not path or ":" in path or files.get_file_from_path((folder / path).as_posix())
        return match[0] if image or inside else text

    return LINK.sub(replaced, markdown)
