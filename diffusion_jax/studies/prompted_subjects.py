"""A model of captions as a subject of comparisons, without data: the distance to its own flow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from diffusion_jax.assembly import denoiser
from diffusion_jax.assembly.workdir import Trained
from diffusion_jax.evaluation.estimators import Measurements
from diffusion_jax.evaluation.judge import Judge
from diffusion_jax.evaluation.samples import Kept
from diffusion_jax.report import media
from diffusion_jax.studies import subjects
from diffusion_jax.studies.subject import Judging, Subject


def of_prompts(
    trained: Trained,
    prompts: Sequence[str],
    seeds: Sequence[int],
    name: str,
    *,
    solved: int = 64,
    mesh: jax.sharding.Mesh | None = None,
) -> Subject:
    """A trained model of captions whose samples are not judged against data.

    Args:
      trained: the model.
      prompts: captions in turn.
      seeds: one for each sample.
      name: its name in titles.
      solved: how many of the seeds are solved exactly.
      mesh: the devices that draw; None for one device.

    Raises:
      UserError: for a model without captions, and for captions that it cannot read.
    """
    model = trained.experiment
    denoiser.need_denoiser(model)
    cond = model.conditions.of_prompts(np.resize(prompts, len(seeds)).tolist())
    shown, none = media.media_of(model.shape, model.normalization), np.zeros((0, *model.shape))
    judged = Judge(_counted, _nothing, {})
    picture = subjects.picture_of(shown, none)
    judging = Judging(judged, None, {}, none, picture, subjects.SHOWN)
    about = {"prompts": list(prompts)}
    return subjects.subject_of(trained, seeds, name, cond, judging, about, solved, mesh)


def _counted(samples: np.ndarray, labels: Any = None) -> dict[str, np.ndarray]:
    """What is kept of samples that are not judged: a row for each."""
    return {"drawn": np.ones(len(samples), bool)}


def _nothing(kept: Kept, *, grouped: bool = True) -> Measurements:
    """The scores of samples that are not judged."""
    return {}
