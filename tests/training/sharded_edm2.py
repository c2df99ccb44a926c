"""EDM2's network on one device and on eight with all axes, as a program of test_parallel.py:

python tests/training/sharded_edm2.py FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from diffusion_jax.training import placement
from tests.training import topologies

NETWORK = {
    "name": "edm2.EDM2UNet",
    "width": 16,
    "multipliers": (1,),
    "blocks": 1,
    "attention": (),
    "head_width": 4,
}


def main(folder: Path) -> None:
    """Write the parameters, averages, metrics and images of each, and the shapes of the shards."""
    placement.FSDP_FROM = topologies.STATE_FROM
    topologies.NETWORKS["edm2"] = NETWORK
    for name in ("one device", "2 data x 2 fsdp x 2 tensor"):
        ready = topologies.Ready("edm2", *topologies.TOPOLOGIES[name])
        now, numbers = ready.advance(ready.begin(), 0, topologies.STEPS)
        np.savez(folder / f"edm2, {name}.npz", **ready.results(now, numbers))
        (folder / f"edm2, {name}.json").write_text(json.dumps(ready.shards(now)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
