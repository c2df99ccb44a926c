"""A network of one's own with weights from elsewhere, as a workdir that every command takes.

docs/guides/weights.md shows how it is used.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from diffusion_jax.assembly import experiment, locking, workdir
from diffusion_jax.core import files
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Params
from diffusion_jax.data import Dataset
from diffusion_jax.pretrained import layouts
from diffusion_jax.pretrained.published import Layout
from diffusion_jax.training import checkpoint, restoring


def to_workdir(
    config: ConfigDict,
    tensors: Mapping[str, np.ndarray],
    names: Mapping[str, str],
    out: str | Path,
    *,
    shape: tuple[int, ...],
    classes: int = 0,
    unused: Iterable[str] = (),
    orders: Mapping[str, Layout] = MappingProxyType({}),
) -> Path:
    """Make a workdir of the config of a network and of tensors by other names.

    Args:
      config: the config of the run, whose config.model names the network.
      tensors: the tensors of torch, {name: array}, such as `torchfile.load` returns.
      names: {path of a parameter here: name of the tensor}, such as {'last/kernel': 'out.weight'}.
        The axes of kernels are brought into our order: (out, in) to (in, out), and those of
        convolutions (out, in, N_1, ...) to (N_1, ..., in, out).
      out: the workdir to make.
      shape: (N_1, ..., N_d, C) of an example.
      classes: number of classes; 0 for an unconditional network.
      unused: names of tensors that are no parameters, such as tables of betas.
      orders: {the end of a path: the order of its axes}, where that is another one.

    Returns:
      The workdir.

    Raises:
      UserError: with the names of the tensors and parameters that do not fit, and if `out` holds a
        model already.
    """
    unused = set(unused)
    if absent := sorted(unused - tensors.keys()):
        raise UserError(f"unused={', '.join(absent)}: the file has no such tensors")
    run = experiment.assemble(config, shape, classes)
    template = jax.eval_shape(lambda key: run.kind.init(run, key), jax.random.key(0))
    shapes = {path: leaf.shape for path, leaf in layouts.flat(template).items()}
    table = layouts.named(names, shapes, orders)
    kept = {name: tensor for name, tensor in tensors.items() if name not in unused}
    found = layouts.to_ours(table, kept, shapes)
    params = jax.tree.unflatten(jax.tree.structure(template), [found[path] for path in shapes])
    unseen = Dataset(
        config.data.name, None, None, tuple(shape), classes, tuple(map(str, range(classes)))
    )
    return save(out, config, unseen, params, {"class": config.model.name})


def save(
    out: str | Path,
    config: ConfigDict,
    unseen: Dataset,
    params: Params,
    imported: Mapping[str, Any],
) -> Path:
    """Write a workdir with one checkpoint, of parameters that were not trained here.

    Args:
      out: the workdir to make.
      config: the config of the run.
      unseen: its data set, without its examples.
      params: the parameters of the run.
      imported: what provenance.json says of their origin.

    Returns:
      The workdir.

    Raises:
      UserError: if `out` holds a model already.
    """
    with locking.locked(out), locking.one_line(out):
        if restoring.latest_step(Path(out) / "checkpoints") is not None:
            raise UserError(f"--out={out} holds a model already; give another folder")
        root = workdir.prepare(out, config, unseen)
        record = files.load_json(root / "provenance.json") | {"imported": dict(imported)}
        files.save_json(root / "provenance.json", record)
        with contextlib.closing(checkpoint.Checkpointer(root / "checkpoints")) as checkpoints:
            checkpoints.save(0, {"params": params}, record)
    return root
