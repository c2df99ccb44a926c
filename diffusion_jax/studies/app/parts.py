"""Parts of the local page that its tabs share: fields, requests, messages, events."""

from __future__ import annotations

import functools
import html
import traceback
from collections.abc import Callable, Sequence
from importlib import resources
from types import ModuleType
from typing import Any, NamedTuple

from diffusion_jax.core.errors import UserError
from diffusion_jax.studies.app.drawing import Drawn, InteractiveModel
from diffusion_jax.studies.app.requests import DrawingRequest

MISTAKE = "class='mistake'"  # how a message about a mistake is recognized
ALL, NONE = "all classes", "no class"  # the first choice of a class


class Settings(NamedTuple):
    """The fields of a request; None for those that the model does not have.

    The names are those of `DrawingRequest`, but for `condition`: the classes or the prompts.
    """

    condition: Any = None
    sampler: Any = None
    nfe: Any = None
    guidance: Any = None
    seed: Any = None
    num: Any = None
    grid: Any = None
    method: Any = None

    @property
    def inputs(self) -> list[Any]:
        """The fields that there are."""
        return [field for field in self if field is not None]


def requested(model: InteractiveModel, settings: Settings, values: Sequence[Any]) -> DrawingRequest:
    """The request that the values of some fields mean.

    Args:
      model: what draws.
      settings: the fields.
      values: what they hold, in the order of `settings.inputs`.

    Raises:
      UserError: where a prompt is needed and there is none; an inpainting needs none.
    """
    names = [name for name, field in settings._asdict().items() if field is not None]
    given: dict[str, Any] = dict(zip(names, values))
    condition = str(given.pop("condition", None) or "").strip()
    if model.experiment.encoder:
        lines = (line.strip() for line in condition.splitlines())
        given["prompts"] = tuple(line for line in lines if line)
        if not given["prompts"] and settings.method is None:
            raise UserError("type a prompt first: describe an image in each line")
    else:
        given["labels"] = "" if condition in (ALL, NONE) else condition
    texts = {name: str(given[name] or "") for name in ("sampler", "grid", "method") & given.keys()}
    return model.request()._replace(**given | texts)


# ---- fields
def condition_field(gr: ModuleType, model: InteractiveModel, nothing: str) -> Any:
    """Make the field of the class or the prompts; None for an unconditional model.

    Args:
      gr: the module gradio.
      model: what draws.
      nothing: ALL, or NONE in an inpainting.
    """
    many = nothing == ALL
    if model.experiment.encoder:
        label = "Prompts, one a line" if many else "Prompt"
        hint = "describe an image"
        name = "prompts" if many else "prompt-of-image"
        return gr.Textbox("", label=label, lines=2, placeholder=hint, elem_id=name)
    if not model.experiment.num_classes:
        return None
    names = model.classes or [str(i) for i in range(model.experiment.num_classes)]
    some = ",".join(sorted(names, key=len)[:2])
    return gr.Dropdown(
        [nothing, *names, *(["any"] if many else [])],
        value=nothing,
        label=f"Class, or several such as {some}" if many else "Class of the image",
        allow_custom_value=True,
        elem_id="class" if many else "class-of-image",
    )


def picture_field(gr: ModuleType, label: str, name: str, height: int) -> Any:
    """Make a field that shows a picture.

    Args:
      gr: the module gradio.
      label: its label; '' for none.
      name: its id in the page.
      height: in pixels of the screen.
    """
    buttons = ["download", "fullscreen"]
    return gr.Image(
        label=label,
        show_label=bool(label),
        format="png",
        height=height,
        interactive=False,
        buttons=buttons,
        elem_id=name,
        elem_classes="picture",
    )


def command_field(gr: ModuleType, name: str) -> Any:
    """Make a field that shows a command line.

    Args:
      gr: the module gradio.
      name: its id in the page.
    """
    return gr.Textbox(
        label="The same on the command line",
        lines=2,
        interactive=False,
        buttons=["copy"],
        elem_id=name,
        elem_classes="command",
    )


def page_file(name: str) -> str:
    """Read a file of the page.

    Args:
      name: the name of a file in studies/app/templates.
    """
    folder = resources.files("diffusion_jax.studies.app") / "templates"
    return (folder / name).read_text(encoding="utf-8")


# ---- events
def event() -> dict[str, Any]:
    """The options of an event: one drawing at a time, and no documented endpoint."""
    return {"concurrency_id": "draw", "concurrency_limit": 1, "api_visibility": "private"}


def guarded(gr: ModuleType, answers: int, message: int) -> Callable[..., Any]:
    """Make a decorator by which a mistake becomes a message in the page; the rest stays as it is.

    Args:
      gr: the module gradio.
      answers: number of outputs of the function.
      message: which of them is the message.
    """

    def decorate(function: Callable[..., tuple]) -> Callable[..., tuple]:
        @functools.wraps(function)
        def run(*given: Any) -> tuple:
            try:
                return function(*given)
            except UserError as error:
                said = str(error)
            except Exception as error:
                traceback.print_exc()
                said = f"this failed ({type(error).__name__}); the terminal has the details"
            left = [gr.skip() for _ in range(answers)]
            left[message] = f"<p {MISTAKE} role='alert'>{html.escape(said)}</p>"
            return tuple(left)

        return run

    return decorate


def status_line(drawn: Drawn) -> str:
    """Say what a drawing took, as HTML.

    Args:
      drawn: the result.
    """
    count = drawn.evaluations
    spent = "as many evaluations as the tolerance needs" if count is None else f"{count} evaluation"
    spent += "s each" if count and count > 1 else ""
    compiled = f" (and {drawn.compilation:.1f} s to compile, once)" if drawn.compilation else ""
    count = len(drawn.images)
    images = "1 image" if count == 1 else f"{count} images"
    return f"<p class='done'>{images} in {drawn.seconds:.2f} s{compiled}, {spent}</p>"
