"""The rule of a card that experiments.plan has written to a file."""

from __future__ import annotations

from typing import Any

from diffusion_jax.core import reading

_SIZE, _NUMBER = reading.number(0), reading.number()

_CARD = reading.record(  # of a card in a file that experiments.plan wrote
    {
        "topology": reading.text(),
        "chip": reading.text(),
        "model": reading.text(),
        "remat": reading.text(),
        "devices": reading.integer(1),
        "mesh": reading.table(reading.integer(1)),
        "shape": reading.items(reading.integer(1)),
        "batch_size": reading.integer(1),
        "parameters": _SIZE,
        "state_bytes": _SIZE,
        "state_bytes_per_device": _SIZE,
        "accumulate": reading.integer(1),
        "steps_per_call": reading.integer(1),
        "flops": _SIZE,
        "model_flops": _SIZE,
        "trace_seconds": _SIZE,
        "fits": reading.one_of(True, False, None),
        "hbm": reading.optional(_SIZE),
        "refused": reading.optional(reading.text()),
        "memory": reading.optional(reading.table(_NUMBER)),
        "traffic": reading.optional(_SIZE),
        "collectives": reading.optional(
            reading.table(reading.record({"count": _NUMBER, "bytes": _NUMBER}))
        ),
        "compile_seconds": reading.optional(_SIZE),
        "roofline": reading.optional(
            reading.record(
                {"bound_by": reading.text()}
                | dict.fromkeys(
                    ("step", "compute", "memory", "collectives", "images_per_second", "mfu"),
                    _NUMBER,
                )
            )
        ),
    }
)


def rule(value: Any, place: str) -> None:
    """The rule of a card in a file: what the compiler says is there together or not at all.

    Args:
      value: the card.
      place: where it stands, for errors.

    Raises:
      reading.Mismatch: for anything else.
    """
    _CARD(value, place)
    if value["memory"] and None in (value["traffic"], value["collectives"]):
        raise reading.Mismatch(f"{place or 'the card'} has only a part of the compiler's report")
