"""A card of the plan in words."""

from __future__ import annotations

from typing import Any

from diffusion_jax.planning.cards import gib


def describe(card: dict[str, Any]) -> str:
    """Write a card of the plan in words, a line for each fact.

    Args:
      card: the card, as `cards.card` makes it: sizes in bytes, times in seconds.
    """
    mesh = " x ".join(f"{axis} {size}" for axis, size in card["mesh"].items())
    lines = {
        "network": f"{card['model']}, {card['parameters']:,} parameters, "
        f"examples {tuple(card['shape'])}",
        "devices": f"{card['devices']} x {card['chip']} ({card['topology']}), mesh {mesh}",
        "a step": f"batch {card['batch_size']}, accumulate {card['accumulate']}, "
        f"remat {card['remat']}; {card['steps_per_call']} steps per call",
        "FLOPs per step": f"{si(card['flops'])}, the model's {si(card['model_flops'])}",
        "state": f"{gib(card['state_bytes'])} in all, "
        f"{gib(card['state_bytes_per_device'])} on a device",
    }
    if memory := card["memory"]:
        lines["HBM per device"] = ", ".join(f"{name} {gib(size)}" for name, size in memory.items())
        kinds = (
            f"{kind['count']:g} {name} of {gib(kind['bytes'])}"
            for name, kind in card["collectives"].items()
        )
        lines["collectives"] = "; ".join(kinds) or "none"
        lines["memory traffic"] = f"{gib(card['traffic'])} per step and device"
    if card["compile_seconds"]:
        lines["compiled in"] = (
            f"{card['compile_seconds']:.0f} s, after {card['trace_seconds']:.0f} s of tracing"
        )
    if bound := card["roofline"]:
        parts = ", ".join(
            f"{name} {1e3 * bound[name]:.3g} ms" for name in ("compute", "memory", "collectives")
        )
        lines["roofline"] = (
            f"a step takes at least {1e3 * bound['step']:.3g} ms, bound by {bound['bound_by']} "
            f"({parts}): at most {bound['images_per_second']:,.0f} images/s, MFU {bound['mfu']:.0%}"
        )
    size = f"{gib(card['hbm'])} of HBM" if card["hbm"] else "memory of unknown size"
    no = f"NO, not in {size}: {card['refused'] or 'too much in all'}"
    lines["fits"] = {True: f"yes, in {size}", None: f"not known ({size})"}.get(card["fits"], no)
    return "\n".join(f"{name + ':':<16}{line}" for name, line in lines.items())


def si(value: float) -> str:
    """Write a number of floating-point operations in words, such as '1.5 TFLOP'.

    Args:
      value: the number.
    """
    exponent = next((e for e in (15, 12, 9, 6) if value >= 10**e), 0)
    return f"{value / 10**exponent:.3g} {({15: 'P', 12: 'T', 9: 'G', 6: 'M', 0: ''})[exponent]}FLOP"
