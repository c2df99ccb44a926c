"""Samples of a trained model, written to files."""

from __future__ import annotations

import numpy as np

from diffusion_jax.assembly import conditions
from diffusion_jax.errors import UserError


def _asked(built, chosen: list[int], prompts: list[str], count: int) -> tuple:
    """(labels (count,), or none; condition): of the chosen labels, by default all in turn, or of
    prompts, an equal share each.
    """
    if prompts and chosen:
        raise UserError("--labels and --prompt together: ask for one of them")
    if prompts:
        return np.zeros(0, int), conditions.prompt_cond(
            built, np.repeat(prompts, count // len(prompts)).tolist()
        )
    if built.encoder and not chosen:
        raise UserError(
            "this model draws what a caption says: give one, or several, by --prompt='...'"
        )
    chosen = chosen or list(range(built.num_classes))
    chosen = np.resize(chosen, count) if chosen else np.zeros(0, int)
    return chosen, conditions.cond_for(built, chosen)
