"""Rows of metrics: sums that survive a checkpoint, TensorBoard events, and lines of progress."""

from __future__ import annotations

import io
import json

import numpy as np
from tensorboardX.proto.event_pb2 import Event

from diffusion_jax.core import progress
from diffusion_jax.training import metrics


def test_tally_survives_json_bit_for_bit():
    rng = np.random.default_rng(0)
    calls = [
        {
            "loss": rng.normal(size=3).astype(np.float32),
            "loss_by_level": {
                "edges": np.tile(np.float32([0, 1, 2]), (3, 1)),
                "sum": rng.normal(size=(3, 2)),
                "count": np.float32([[1, 0]] * 3),
            },
        }
        for _ in range(4)
    ]
    straight = broken = metrics.empty_tally()
    for call in calls:
        straight, broken = (
            metrics.add(straight, call),
            metrics.add(json.loads(json.dumps(broken)), call),
        )
    assert metrics.row(straight) == metrics.row(broken)
    np.testing.assert_allclose(
        metrics.row(straight)["loss"], np.mean([call["loss"] for call in calls]), rtol=1e-6
    )
    assert metrics.row(straight)["loss_by_level"][1] is None  # no example there


def events_of(folder):
    """What TensorBoard reads: records of a length (8 bytes, and 4 of a checksum), a message, and a
    checksum (4).
    """

    (file,) = (folder / "tensorboard").iterdir()
    raw, at, found = file.read_bytes(), 0, []
    while at < len(raw):
        length = int.from_bytes(raw[at : at + 8], "little")
        found.append(Event.FromString(raw[at + 12 : at + 12 + length]))
        at += length + 16
    return [(event.step, value) for event in found for value in event.summary.value]


def test_tensorboard_has_the_config_the_loss_by_level_and_the_time_of_a_step(tmp_path):
    writer = metrics.open_writer(tmp_path)
    writer.text(0, "config", "    {'seed': 3}")
    levels = {"loss_by_level": [0.5, None, 0.25], "level_edges": [-4.0, -1.0, 1.0, 4.0]}
    writer.row(10, {"loss": 0.4, **levels}, {"seconds": 2.0, "seconds_per_step": 0.125})
    writer.row(10, {f"eval_{key}": value for key, value in levels.items()})
    writer.close()
    found = {value.tag: (step, value.simple_value) for step, value in events_of(tmp_path)}
    assert found["loss_by_level/00_log-SNR_-4.0_to_-1.0"] == (10, 0.5) and found[
        "eval_loss_by_level/02_log-SNR_1.0_to_4.0"
    ] == (10, 0.25)
    assert found["seconds_per_step"] == (10, 0.125) and not any("01_log" in tag for tag in found)
    (config,) = (value for _, value in events_of(tmp_path) if value.tag.startswith("config"))
    assert (
        config.tensor.string_val[0] == b"    {'seed': 3}"
        and config.metadata.plugin_data.plugin_name == "text"
    )


def test_reopened_rows_are_cut_after_the_restored_step(tmp_path):
    writer = metrics.open_writer(tmp_path)
    for at in (10, 20, 30):
        writer.row(at, {"loss": at / 3, "bad": float("nan")}, {"seconds": 1.0})
    writer.images(30, "samples", np.zeros((2, 4, 4, 1), np.uint8))
    writer.close()
    assert any(p.stat().st_size > 300 for p in (tmp_path / "tensorboard").iterdir())
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"step": 40, "lo')  # killed in the middle of a row
    metrics.open_writer(tmp_path, start_step=20, names=()).close()
    assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:2])
    assert metrics.read_rows(path)[0] == {
        "step": 10,
        "loss": 10 / 3,
        "bad": None,
        "timing": {"seconds": 1.0},
    }
    metrics.open_writer(tmp_path, names=()).close()  # a fresh start
    assert path.read_bytes() == b""


def test_progress_is_plain_lines_where_stderr_is_no_terminal():
    stream = io.StringIO()
    bar = progress.training_progress(100, stream=stream, seconds_between_lines=1e9)
    bar.update(50, 0.5, 1234.4)
    bar.update(100, 0.25, 1234.4)
    bar.close()
    first, last = (
        "step 50/100, loss 0.5000, 1234 images/s\n",
        "step 100/100, loss 0.2500, 1234 images/s, 0:00 left\n",
    )
    assert stream.getvalue() == first + last  # the first step is shown at once: compiling is over
