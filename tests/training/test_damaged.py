"""Damaged rows of metrics and checkpoints whose files are of another kind."""

from __future__ import annotations

import contextlib
import json
import os

import numpy as np
import pytest

from diffusion_jax.core.errors import UserError
from diffusion_jax.studies.few_step import methods
from diffusion_jax.training import checkpoint, metrics, restoring


def test_rows_of_other_types_are_no_rows_and_a_pipe_is_no_file_of_rows(tmp_path):

    whole = {
        "step": 3,
        "images": 12,
        "loss": 0.5,
        "eval_loss": None,
        "timing": {"images_per_s": 5.0},
        "loss_by_level": [0.1, None],
        "level_edges": [0.0, 1.0, 2.0],
        "anything": {"else": []},
    }
    spoilt = [
        whole | change
        for change in (
            {"step": "3"},
            {"images": None},
            {"loss": "x"},
            {"timing": []},
            {"timing": {"images_per_s": 0}},
            {"loss_by_level": {}},
            {"level_edges": [None]},
        )
    ]
    file = tmp_path / "metrics.jsonl"
    file.write_text(
        "\n".join(map(json.dumps, [whole, *spoilt, [], 3, whole])) + "\n" + "[" * 100_000 + "\n"
    )
    assert metrics.read_rows(file) == [whole, whole]
    assert methods.seconds(tmp_path) == 12 / 5
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(UserError, match="not a regular file"):
        metrics.read_rows(file)


def test_a_checkpoint_with_a_pipe_is_damaged_and_so_is_one_that_describes_other_things(
    tmp_path, capsys
):

    state = {"params": {"a": np.ones(3, np.float32)}}
    with contextlib.closing(checkpoint.Checkpointer(tmp_path)) as checkpoints:
        checkpoints.save(1, state, {})
        checkpoints.save(2, state, {"in_a_row": "x"})  # a digest alone does not make it right
    restored = restoring.restore_params(tmp_path)
    assert restored.step == 1 and 'in_a_row is "x", and must be' in capsys.readouterr().err
    file = next(
        path
        for path in (tmp_path / "1").rglob("*")
        if path.is_file() and path.name != "_CHECKPOINT_METADATA"
    )
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(UserError, match="not a regular file"):
        restoring.restore_params(tmp_path)
