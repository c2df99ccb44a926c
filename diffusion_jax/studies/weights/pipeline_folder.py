"""What the folders of diffusers' pipelines have in common: configs, weights, autoencoder and texts.

WORKDIR               the network
WORKDIR/autoencoder   its autoencoder, a workdir of its own (config.latent.autoencoder)
WORKDIR/text          its text encoders and tokenizers (config.text.folder)
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.assembly import components, locking
from diffusion_jax.assembly.build import build
from diffusion_jax.core import files, npz, reading
from diffusion_jax.core.errors import UserError
from diffusion_jax.pretrained import clip_encoder, safetensors, weight_files, weights
from diffusion_jax.studies.weights import import_weights as single
from diffusion_jax.training import restoring

WEIGHTS = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
    "diffusion_pytorch_model.bin",
)
TEXT, AUTOENCODER = "text", "autoencoder"  # folders of the workdir


class TextPart(NamedTuple):
    """A text encoder of a folder, as it is written.

    Attributes:
      folder: the name of its folder.
      tokens: the name of its tokenizer's folder.
      tokenizer: the names that the tokenizer's files may have.
      config: the content of config.json.
      tensors: the tensors of the weights.
    """

    folder: str
    tokens: str
    tokenizer: Sequence[str]
    config: Mapping[str, Any]
    tensors: Mapping[str, np.ndarray]


def need_new(out: str | Path) -> None:
    """Check that a workdir holds no model.

    Args:
      out: the workdir to make.

    Raises:
      UserError: if it holds one.
    """
    if restoring.latest_step(Path(out) / "checkpoints") is not None:
        raise UserError(f"--out={out} holds a model already; give another folder")


def config_of(path: Path, name: str, rule: reading.Rule, source: str) -> dict[str, Any]:
    """Read a JSON file of a pipeline.

    Args:
      path: the folder of the pipeline.
      name: the file in it.
      rule: what it may hold.
      source: --from, for messages.

    Raises:
      UserError: for a file that is missing or damaged.
    """
    if not (path / name).is_file():
        parts = f"{'unet' if source == 'stable_diffusion' else 'transformer'}/"
        raise UserError(
            f"--path={path} has no {name}; --from={source} takes a folder of diffusers with "
            f"model_index.json, {parts}, vae/, text_encoder/, tokenizer/ and scheduler/"
        )
    return reading.json_file(path / name, rule)


def autoencoder(path: Path, latent: tuple[int, ...], source: str) -> tuple[single.Found, Path]:
    """Read the autoencoder of a pipeline, for images whose latents have the network's shape.

    Args:
      path: the folder of the pipeline.
      latent: (H, W, C) of the network's inputs.
      source: --from, for messages.

    Returns:
      (the autoencoder, the file of its weights).

    Raises:
      UserError: for another network, or one of other latents.
    """
    config_of(path, "vae/config.json", reading.table(), source)
    file = weight_files.whole(path / "vae", WEIGHTS)
    found = single.described("diffusers", file)
    if found.name != "AutoencoderKL" or found.options["latent_channels"] != latent[-1]:
        raise UserError(
            f"'{path / 'vae/config.json'}' is of a {found.name} with latent_channels="
            f"{found.options.get('latent_channels')}; it must be an AutoencoderKL with {latent[-1]}"
        )
    factor = 2 ** (len(found.options["multipliers"]) - 1)
    side = factor * latent[0]
    return found._replace(shape=(side, side, found.shape[-1])), file


def write(
    network: single.Found,
    file: Path,
    codec: tuple[single.Found, Path],
    out: str | Path,
    scheduler: Mapping[str, Any],
    write_text: Callable[[Path], None],
    dataset: str,
) -> Path:
    """Make the workdir of a pipeline.

    Args:
      network: the network, with its settings.
      file: the file of its weights.
      codec: what `autoencoder` returns.
      out: the workdir to make.
      scheduler: the content of scheduler_config.json; {} where the settings say it all.
      write_text: writes the text encoders into a folder.
      dataset: config.data.name of images to compare samples with.

    Returns:
      The workdir.

    Raises:
      UserError: for weights that do not fit, before anything is written.
    """
    params = single.fit(network, scheduler)
    decoding = single.fit(codec[0], {}, dataset)
    root, text = Path(out), Path(out) / TEXT
    with locking.locked(out), locking.one_line(out):
        print(f"{text}: writing the text encoders", file=sys.stderr)
        write_text(text)
        print(f"{root / AUTOENCODER}: writing the autoencoder", file=sys.stderr)
        inner = single.write_workdir(*codec, root / AUTOENCODER, {}, dataset, params=decoding)
    print(f"{root}: writing the network", file=sys.stderr)
    found = network._replace(settings={**network.settings, "text.folder": str(text)})
    return single.write_workdir(found, file, out, scheduler, dataset, str(inner), params=params)


def write_text(
    path: Path,
    text: Path,
    parts: Sequence[TextPart],
    settings: Mapping[str, Any],
    zeros: Sequence[str] = (),
) -> None:
    """Write the text encoders, their tokenizers, and the entries that mean "no caption".

    Args:
      path: the folder of the pipeline.
      text: the folder to write into.
      parts: the text encoders.
      settings: the config keys, of which text.encoder and text.max_length are used.
      zeros: the entries that are zeros for "no caption"; the others are those of the empty text.
    """
    for part in parts:
        files.save_json(text / part.folder / "config.json", part.config)
        safetensors.save(text / part.folder / clip_encoder.WEIGHTS[0], _storable(part.tensors))
        for name in part.tokenizer:
            if (path / part.tokens / name).is_file():
                with files.atomic_path(text / part.tokens / name) as temporary:
                    temporary.write_bytes(reading.content(path / part.tokens / name))
    spec, length = settings["text.encoder"], settings["text.max_length"]
    encoder = build(components.ENCODERS, spec, length, weights.load, folder=str(text))
    entries = {name: value[0] for name, value in encoder.encode([""]).items()}
    entries |= {name: np.zeros_like(entries[name]) for name in zeros}
    npz.save(text / clip_encoder.EMPTY, entries)


def _storable(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors in types that numpy has."""
    return {
        name: np.float32(value) if value.dtype.kind == "V" else value
        for name, value in tensors.items()
    }
