"""The tab of the local page in which a part of an image is painted over and drawn anew."""

from __future__ import annotations

import base64
import io
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from diffusion_jax.assembly import components
from diffusion_jax.assembly.build import members
from diffusion_jax.core.errors import UserError
from diffusion_jax.data import transforms
from diffusion_jax.report import pictures
from diffusion_jax.studies.app import requests
from diffusion_jax.studies.app.drawing import InteractiveModel, save_mask
from diffusion_jax.studies.app.parts import (
    NONE,
    Settings,
    command_field,
    condition_field,
    event,
    guarded,
    page_file,
    picture_field,
    requested,
    status_line,
)

SAMPLER = "ancestral.ddpm"  # noise in every step joins the drawn part to the known one
METHOD = "repaint(resample=5)"  # the best PSNR in docs/inverse.md
BUDGET = 100
STEPS = (
    "Click an image or upload one, paint over the part to fill in, then press Inpaint. "
    "Guidance and seed are those on the left."
)
UPLOADS = [".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"]
READ_MASK = """(...given) => {
  const canvas = document.querySelector('#painter canvas');
  return [...given.slice(0, -1), canvas && canvas.mask ? canvas.mask() : ''];
}"""


def tab(
    gr: ModuleType, model: InteractiveModel, settings: Settings, images: Any, folder: Path
) -> None:
    """Lay out the tab.

    Args:
      gr: the module gradio.
      model: what draws.
      settings: the fields that all tabs share, of which guidance and seed are used.
      images: the state with the images that were drawn.
      folder: where the files of the command line are written.
    """
    source = gr.State(None, time_to_live=3600)
    gr.HTML(f"<p>{STEPS}</p>")
    with gr.Row():
        with gr.Column(scale=2, min_width=240):
            painter = gr.HTML(
                "",
                html_template=page_file("painter.html"),
                css_template=page_file("painter.css"),
                js_on_load=page_file("painter.js"),
                elem_id="painter",
                brush=max(1, round(model.experiment.shape[0] / 7)),
            )
            upload = gr.UploadButton(
                "Upload a picture", file_types=UPLOADS, size="sm", elem_id="upload"
            )
        with gr.Column(scale=3, min_width=300):
            gallery = _gallery(gr)
            own = _fields(gr, model, settings)
            button = gr.Button("Inpaint", variant="primary", elem_id="inpaint-button")
    status = gr.HTML("", elem_id="inpaint-status")
    result = picture_field(gr, "The known part, and results", "result", 172)
    command = command_field(gr, "inpaint-command")
    files = gr.File(label="Files of this command", interactive=False, height=90, elem_id="files")
    images.change(_thumbnails, images, gallery, api_visibility="private")
    _choosing(gr, model, images, (gallery, upload), [source, painter, status])
    mask, outputs = gr.Textbox(visible=False), [result, status, command, files]

    @guarded(gr, len(outputs), 1)
    def draw(image: np.ndarray | None, *values: Any) -> tuple:
        if image is None:
            raise UserError("choose an image first: click one that was drawn, or upload a picture")
        unknown = unknown_pixels(values[-1], image.shape[:2])
        request = requested(model, own, values[:-1])._replace(grid="auto")
        drawn = model.inpaint(request, image, unknown)
        written = _files(image, unknown, folder)
        return drawn.picture, status_line(drawn), drawn.command, written

    button.click(draw, [source, *own.inputs, mask], outputs, js=READ_MASK, **event())


def _gallery(gr: ModuleType) -> Any:
    """Make the field of the images that were drawn, one of which is clicked."""
    return gr.Gallery(
        label="Images",
        show_label=False,
        height=140,
        allow_preview=False,
        format="png",
        interactive=False,
        object_fit="contain",
        buttons=[],
        elem_id="gallery",
    )


def _fields(gr: ModuleType, model: InteractiveModel, settings: Settings) -> Settings:
    """The tab's own fields, with the guidance and the seed of all tabs."""
    methods = dict.fromkeys([METHOD, "pigdm(symmetric=True)", *members(components.METHODS)])
    samplers = requests.samplers(model.experiment)
    most = requests.MOST_EVALUATIONS
    condition = condition_field(gr, model, NONE)
    with gr.Row():
        num = gr.Slider(
            1, requests.MOST_DRAWS, 4, step=1, label="Results", min_width=200, elem_id="draws"
        )
        nfe = gr.Slider(1, most, BUDGET, step=1, label="NFE", min_width=200, elem_id="inpaint-nfe")
    with gr.Row():
        method = gr.Dropdown(
            [*methods],
            value=METHOD,
            label="Method",
            allow_custom_value=True,
            min_width=200,
            elem_id="method",
        )
        sampler = gr.Dropdown(
            samplers,
            value=SAMPLER,
            label="Sampler",
            allow_custom_value=True,
            min_width=200,
            elem_id="inpaint-sampler",
        )
    shared = {"guidance": settings.guidance, "seed": settings.seed}
    return Settings(condition, sampler, nfe, num=num, method=method, **shared)


def _choosing(
    gr: ModuleType, model: InteractiveModel, images: Any, sources: tuple[Any, Any], outputs: list
) -> None:
    """Choose an image of the gallery by a click, or one of the user's own by an upload."""
    gallery, upload = sources
    options = {"api_visibility": "private"}  # in no queue behind drawings

    def chosen(drawn: np.ndarray, click: gr.SelectData) -> tuple:
        return drawn[click.index], image_url(drawn[click.index]), ""

    @guarded(gr, len(outputs), 2)
    def uploaded(file: str | None) -> tuple:
        image = model.read_image(str(file))
        return image, image_url(image), ""

    chosen.__annotations__["click"] = gr.SelectData  # by which gradio knows the parameter
    gallery.select(chosen, images, outputs, **options)
    upload.upload(uploaded, upload, outputs, **options)


def _thumbnails(images: np.ndarray | None) -> list[Image.Image]:
    """The images as large as the gallery shows them, with every pixel as it is."""
    if images is None:
        return []
    return [pictures.image_grid(image[None], 1) for image in images]


def _files(image: np.ndarray, unknown: np.ndarray, folder: Path) -> list[str]:
    """Write image.png and mask.png, as the command line names them."""
    place = tempfile.mkdtemp(dir=folder)
    path = Path(place) / "image.png"
    pictures.save(transforms.from_array(image), path)
    return [str(path), save_mask(unknown, place)]


def image_url(image: np.ndarray) -> str:
    """Return an image as a URL that holds its data.

    Args:
      image: (H, W, C) uint8.
    """
    data = io.BytesIO()
    transforms.from_array(image).save(data, "PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def unknown_pixels(mask: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Read the mask that the page sends.

    Args:
      mask: a character for each pixel in rows, 1 where the image is drawn anew, else 0.
      shape: (H, W).

    Returns:
      (H, W) bool.

    Raises:
      UserError: for anything else, and where nothing is painted.
    """
    mask = mask if isinstance(mask, str) else ""
    if len(mask) != shape[0] * shape[1] or set(mask) - {"0", "1"}:
        raise UserError("the mask does not fit the image: choose the image again, and paint on it")
    unknown = (np.frombuffer(mask.encode(), np.uint8) == ord("1")).reshape(shape)
    if not unknown.any():
        raise UserError("the mask is empty: paint over the part to fill in")
    if unknown.all():
        raise UserError("the mask covers the whole image: leave a part of it as it is")
    return unknown
