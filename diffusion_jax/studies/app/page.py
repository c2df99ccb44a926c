"""The local page: its layout, and what its buttons do. Everything is drawn by drawing.py."""

from __future__ import annotations

import html
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from diffusion_jax.studies.app import inpainting, requests
from diffusion_jax.studies.app.drawing import InteractiveModel
from diffusion_jax.studies.app.parts import (
    ALL,
    MISTAKE,
    Settings,
    command_field,
    condition_field,
    event,
    guarded,
    picture_field,
    requested,
    status_line,
)

PROPOSED = ("ancestral.ddpm", "ode.euler", "few_step.jump")  # second samplers
FIRST = "A sampler takes longer the first time, while its program is compiled."
PROMPT_FIRST = "Type a prompt on the left, then press Generate."
FOLLOWED = (
    "The first image from noise to data, at these noise levels &sigma;/&alpha;: x<sub>t</sub> "
    "above, and below it the predicted x<sub>0</sub>"
)
DECODED = ", both decoded from latents (noise in the latents looks like torn images)"
FEW = 8  # evaluations that a few-step model is offered


def build(gr: ModuleType, model: InteractiveModel, folder: Path) -> Any:
    """Lay out the page of a model.

    Args:
      gr: the module gradio.
      model: what draws.
      folder: where files that the page offers are written.

    Returns:
      The gradio Blocks.
    """
    title = f"{model.workdir} - diffusion_jax"
    hourly = (3600, 3600)  # what is older is deleted
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=hourly) as page:
        gr.HTML(_heading(model), elem_id="heading")
        images = gr.State(None, time_to_live=3600)
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                settings = _settings(gr, model)
            with gr.Column(scale=3, min_width=480), gr.Tabs():
                with gr.Tab("Images", id="images"):
                    begin = _images_tab(gr, model, settings, images)
                if len(requests.samplers(model.experiment)) > 1:
                    with gr.Tab("Two samplers", id="two"):
                        _two_samplers_tab(gr, model, settings)
                if model.can_inpaint:
                    with gr.Tab("Inpaint", id="inpaint"):
                        inpainting.tab(gr, model, settings, images, folder)
        if not model.experiment.encoder:  # which needs a prompt first
            begin(page.load)
    return page


def _heading(model: InteractiveModel) -> str:
    experiment, trained = model.experiment, model.trained
    encoded = trained.data.get("encoded")  # what the latents of a model of latents encode
    height, width = (encoded or trained.data)["image_shape"][:2]
    source = f"latents of {encoded['data']}" if encoded else experiment.data.name
    kind = experiment.kind.name.partition(" ")[2]
    facts = f"{kind} of {source}, {height} x {width} pixels, "
    facts += f"step {trained.step:,}, weights {trained.weights}"
    return f"<h1>{html.escape(model.workdir)}</h1><p>{html.escape(facts)}</p>"


def _settings(gr: ModuleType, model: InteractiveModel) -> Settings:
    """The fields of all settings, in the order of the page."""
    own, experiment = model.request(), model.experiment
    fields = {"condition": condition_field(gr, model, ALL)}
    if experiment.kind.denoises:
        samplers = requests.samplers(experiment)
        most = requests.MOST_EVALUATIONS if experiment.kind.has_flow else FEW
        label = "Evaluations of the network (NFE)"
        fields["sampler"] = gr.Dropdown(
            samplers, value=own.sampler, label="Sampler", allow_custom_value=True, elem_id="sampler"
        )
        fields["nfe"] = gr.Slider(
            1, max(most, own.nfe), own.nfe, step=1, label=label, elem_id="nfe"
        )
    if requests.guidable(experiment):
        label = "Guidance (1 is none)"
        fields["guidance"] = gr.Slider(
            0, 10, own.guidance, step=0.1, label=label, elem_id="guidance"
        )
    with gr.Row():
        fields["seed"] = gr.Number(0, label="Seed", precision=0, min_width=90, elem_id="seed")
        count = "Images" if not experiment.encoder else "Images of each"
        fields["num"] = gr.Number(
            _first_number(model), label=count, precision=0, min_width=90, elem_id="num"
        )
    if experiment.kind.denoises:
        fields["grid"] = gr.Dropdown(
            requests.grids(experiment),
            value=own.grid,
            label="Grid of times",
            allow_custom_value=True,
            elem_id="grid",
        )
    return Settings(**fields)


def _first_number(model: InteractiveModel) -> int:
    """The number of images of the first picture: some of each class, or of each prompt."""
    classes = model.experiment.num_classes
    if model.experiment.encoder:
        return 8
    return 3 * classes if 1 < classes <= 10 else 16


def _images_tab(
    gr: ModuleType, model: InteractiveModel, settings: Settings, images: Any
) -> Callable[[Callable], None]:
    """Lay out the tab; returns the function that lets an event draw what the button draws."""
    with gr.Row(elem_classes="action"):
        button = gr.Button("Generate", variant="primary", elem_id="generate")
        first = PROMPT_FIRST if model.experiment.encoder else FIRST
        status = gr.HTML(f"<p class='done'>{first}</p>", elem_id="status")
    outputs = [images, picture_field(gr, "", "picture", 327), status]
    strip = None
    if model.experiment.kind.denoises:
        gr.HTML(f"<p>{FOLLOWED}{DECODED if model.trained.data.get('encoded') else ''}</p>")
        strip = picture_field(gr, "", "trajectory", 182)
    outputs.append(command_field(gr, "command"))

    @guarded(gr, len(outputs), 2)
    def draw(*values: Any) -> tuple:
        drawn = model.draw(requested(model, settings, values))
        return drawn.images, drawn.picture, status_line(drawn), drawn.command

    def follow(message: str, *values: Any) -> Any:
        if MISTAKE in message:  # which this would meet again
            return gr.skip()
        return model.trajectory(requested(model, settings, values))

    def begin(on: Callable) -> None:
        drawing = on(draw, settings.inputs, outputs, **event())
        if strip is not None:
            drawing.then(follow, [status, *settings.inputs], strip, **event())

    begin(button.click)
    return begin


def _two_samplers_tab(gr: ModuleType, model: InteractiveModel, settings: Settings) -> None:
    known = requests.samplers(model.experiment)
    other = next(name for name in (*PROPOSED, *known) if name in known[1:])
    with gr.Row(elem_classes="action"):
        button = gr.Button("Draw both", variant="primary", elem_id="both")
        second = gr.Dropdown(
            known,
            value=other,
            label="Second sampler, from the same seeds",
            allow_custom_value=True,
            elem_id="second",
        )
    outputs = [gr.HTML("", elem_id="both-status")]
    with gr.Row():
        for number in (1, 2):
            with gr.Column(min_width=200):
                outputs.append(gr.HTML("", elem_id=f"status-{number}", min_height=84))
                outputs.append(picture_field(gr, "", f"picture-{number}", 260))
                outputs.append(command_field(gr, f"command-{number}"))

    @guarded(gr, len(outputs), 0)
    def draw(sampler: str, *values: Any) -> tuple:
        request, found = requested(model, settings, values), []
        for name in (request.sampler, str(sampler or "")):
            drawn = model.draw(request._replace(sampler=name))
            found += [f"<b>{html.escape(name)}</b>{status_line(drawn)}"]
            found += [drawn.picture, drawn.command]
        return "", *found

    button.click(draw, [second, *settings.inputs], outputs, **event())
