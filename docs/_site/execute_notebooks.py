"""Executes the notebooks of docs/notebooks/ and writes their outputs into them: `make notebooks`.

    python docs/_site/execute_notebooks.py                      # all of them
    python docs/_site/execute_notebooks.py 5_guidance           # one of them

The .ipynb files are the source: edit their cells, then run this. Pictures are stored with few
colors, so that they stay small in git. The last picture of the cell with the tag `figure` is also
written to docs/images/notebook_N.png, for the page docs/notebooks.md. A digest of the code is
stored with the outputs; tests/test_notebooks.py compares it with the code.
"""

from __future__ import annotations

import base64
import hashlib
import io
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image, ImageSequence

DOCS = Path(__file__).parent.parent
COLORS = 96  # of a picture


def main(names: list[str]) -> None:
    """Execute the notebooks of these names; all of them if there are none."""
    paths = sorted((DOCS / "notebooks").glob("*.ipynb"))
    unknown = {*names} - {path.stem for path in paths}
    if unknown:
        sys.exit(f"no notebook {sorted(unknown)}; there are {[path.stem for path in paths]}")
    for path in paths:
        if not names or path.stem in names:
            execute(path)


def execute(path: Path) -> None:
    """Execute one notebook in an empty folder and write it with its outputs.

    Raises:
      RuntimeError: if a cell writes to stderr, which a reader would see.
    """
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        client = NotebookClient(notebook, timeout=3600, resources=resources, record_timing=False)
        client.execute()
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                raise RuntimeError(f"{path.name}: a cell writes to stderr: {output['text']}")
            if "image/png" in output.get("data", {}):
                picture = shrunk(base64.b64decode(output["data"]["image/png"]))
                output["data"] = {"image/png": base64.b64encode(picture).decode()}
                output["metadata"] = {}
                if "figure" in cell.metadata.get("tags", []):
                    number = path.stem.partition("_")[0]
                    (DOCS / "images" / f"notebook_{number}.png").write_bytes(picture)
    code = "\n\0".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    notebook.metadata["code_sha256"] = hashlib.sha256(code.encode()).hexdigest()
    notebook.metadata["language_info"] = {"name": "python"}
    nbformat.write(notebook, path)
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB", flush=True)


def shrunk(png: bytes) -> bytes:
    """Return a PNG, which may be animated, with a palette of few colors."""
    picture = Image.open(io.BytesIO(png))
    frames, durations = [], []
    for frame in ImageSequence.Iterator(picture):
        frames.append(frame.convert("RGB"))
        durations.append(frame.info.get("duration"))
    width, height = picture.size
    few = [frames[0], frames[len(frames) // 2], frames[-1]] if len(frames) > 1 else frames
    sheet = Image.new("RGB", (width, len(few) * height))
    for i, frame in enumerate(few):
        sheet.paste(frame, (0, i * height))
    palette = sheet.quantize(COLORS, dither=Image.Dither.NONE)
    frames = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    entries, paper = palette.getpalette(), frames[0].getpixel((0, 0))
    entries[3 * paper : 3 * paper + 3] = sheet.getpixel((0, 0))  # the paper keeps its exact color
    for frame in frames:
        frame.putpalette(entries)
    how = {}
    if len(frames) > 1:
        how = {"save_all": True, "append_images": frames[1:], "duration": durations, "loop": 0}
    written = io.BytesIO()
    frames[0].save(written, "PNG", optimize=True, **how)
    return written.getvalue()


if __name__ == "__main__":
    main(sys.argv[1:])
