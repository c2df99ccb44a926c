"""The memory of the devices of this machine."""

from __future__ import annotations

import os
from pathlib import Path

import jax


def device_memory() -> int | None:
    """Memory of the first device in bytes; for a CPU that of the machine, or of the container.

    Returns:
      None where it is not known.
    """
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("bytes_limit")
    try:
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # not a POSIX system
        return None
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(machine, int(text)) if text.isdigit() else machine
