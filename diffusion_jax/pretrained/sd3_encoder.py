"""The text encoders of Stable Diffusion 3: two of CLIP and one of T5, of a folder of Hugging Face.

    FOLDER/text_encoder/, tokenizer/, text_encoder_2/, tokenizer_2/    see clip_encoder.py
    FOLDER/text_encoder_3/  config.json and model.safetensors of a T5EncoderModel
    FOLDER/tokenizer_3/     tokenizer.json
    FOLDER/empty.npz        the entries that mean "no caption", which importing writes

The states of both encoders of CLIP stand side by side, filled up with zeros to the width of T5's,
which follow (Esser et al. 2024, section 4). Without text_encoder_3 zeros are in their place, as in
the authors' pipeline. Nothing in these files is executed.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from diffusion_jax.core import reading
from diffusion_jax.core.errors import UserError, need_ranges
from diffusion_jax.core.types import Array, Params
from diffusion_jax.models import t5
from diffusion_jax.models.t5 import T5Encoder, T5Tokenizer
from diffusion_jax.models.text import Encoder, GivenStates, Weights
from diffusion_jax.pretrained import clip_encoder, layouts, published, weight_files
from diffusion_jax.pretrained.clip_encoder import ClipPart

T5_PART = ("text_encoder_3", "tokenizer_3")
TOKENIZER = "tokenizer.json"
T5_LENGTH = 256  # states of T5, in the authors' pipeline

_COUNT = reading.integer(1, 2**20)
_RULE = reading.record(
    dict.fromkeys(("vocab_size", "d_model", "d_kv", "d_ff", "num_heads"), _COUNT)
    | {"num_layers": reading.integer(1, 256), "feed_forward_proj": reading.one_of("gated-gelu")},
    {
        "model_type": reading.one_of("t5"),
        "relative_attention_num_buckets": reading.integer(4, 1024),
        "relative_attention_max_distance": reading.integer(8, 2**20),
        "layer_norm_epsilon": reading.number(1e-12, 1),
    },
)
_DEFAULTS = {
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
}
_WORDS = {
    "norm_1": "layer.0.layer_norm",
    "qkv": "layer.0.SelfAttention.q layer.0.SelfAttention.k layer.0.SelfAttention.v",
    "project": "layer.0.SelfAttention.o",
    "norm_2": "layer.1.layer_norm",
    "mlp_in": "layer.1.DenseReluDense.wi_0 layer.1.DenseReluDense.wi_1",
    "mlp_out": "layer.1.DenseReluDense.wo",
}


class T5Part(NamedTuple):
    """The encoder of T5 of a folder; the attributes are those of clip_encoder.ClipPart."""

    network: T5Encoder
    params: Params
    tokenizer: T5Tokenizer
    config: dict[str, Any]
    tensors: dict[str, np.ndarray]


class Parts(NamedTuple):
    """The text encoders of a folder.

    Attributes:
      clip: those of CLIP.
      t5: that of T5; None where the folder has none.
    """

    clip: tuple[ClipPart, ...]
    t5: T5Part | None


def read(folder: Path) -> Parts:
    """Read the text encoders of a folder.

    Args:
      folder: a folder with the parts that the head of this module lists.

    Raises:
      UserError: for a folder without them, and for files that are damaged or do not fit.
    """
    there = (folder / T5_PART[0]).is_dir()
    return Parts(
        clip_encoder.read(folder, skip=1, normalized=False),
        _read_t5(*(folder / part for part in T5_PART)) if there else None,
    )


def _read_t5(folder: Path, tokens: Path) -> T5Part:
    own = reading.json_file(folder / "config.json", _RULE)
    config, tensors = _DEFAULTS | own, weight_files.read_whole(folder, clip_encoder.WEIGHTS)
    if config["relative_attention_max_distance"] <= config["relative_attention_num_buckets"] // 4:
        raise UserError(
            f"'{folder / 'config.json'}' has relative_attention_max_distance="
            f"{config['relative_attention_max_distance']}, which is too small for "
            f"{config['relative_attention_num_buckets']} buckets"
        )
    names = ("vocab_size", "d_model", "num_layers", "num_heads", "d_kv", "d_ff")
    network = T5Encoder(*(config[name] for name in (*names, *_DEFAULTS)))
    if not (tokens / TOKENIZER).exists():
        raise UserError(f"'{tokens}' has no {TOKENIZER}; save it with a fast tokenizer")
    tokenizer = t5.tokenizer(reading.content(tokens / TOKENIZER), str(tokens))
    if tokenizer.size > network.vocabulary:
        raise UserError(
            f"'{tokens}' has {tokenizer.size} tokens, and '{folder}' knows {network.vocabulary}"
        )
    return T5Part(network, _params(network, tensors, folder), tokenizer, own, tensors)


def _params(network: T5Encoder, tensors: dict[str, np.ndarray], folder: Path) -> Params:
    named = dict(tensors)
    words = named.pop("encoder.embed_tokens.weight", None)  # the same as shared.weight
    if words is not None:
        named.setdefault("shared.weight", words)
    ids = np.zeros((1, 1), np.int32)
    template = jax.eval_shape(network.init, jax.random.key(0), ids)["params"]
    shapes = {path: leaf.shape for path, leaf in layouts.flat(template).items()}
    with published.fitting(f"'{folder}'"):
        try:
            found = layouts.to_ours({path: _source(path) for path in shapes}, named, shapes)
        except UserError as error:
            raise UserError(f"'{folder}': {error}") from error
    return jax.tree.unflatten(jax.tree.structure(template), [found[path] for path in shapes])


def _source(path: str) -> layouts.TensorSource:
    """The tensors of theirs of which one of our parameters consists."""
    first = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    whole = {
        "words": "shared.weight",
        "distances": first,
        "last_norm/scale": "encoder.final_layer_norm.weight",
    }
    layout = layouts.KERNEL if path.endswith("kernel") else layouts.SAME
    if path in whole:
        return layouts.TensorSource((whole[path],), layout)
    layer, word, _ = path.split("/")
    number = layer.removeprefix("layer_")
    names = (f"encoder.block.{number}.{name}.weight" for name in _WORDS[word].split(" "))
    return layouts.TensorSource(tuple(names), layout)


# ---- the encoder
def sd3(
    max_length: int,
    weights: Weights | None = None,
    *,
    width: int = 4096,
    pooled: int = 2048,
    t5_length: int = T5_LENGTH,
    folder: str = "",
) -> Encoder:
    """The frozen text encoders of Stable Diffusion 3.

    The entries are 'tokens' (B, max_length + t5_length, width), the states of both encoders of CLIP
    side by side and then those of T5; and 'pooled' (B, pooled), the projected vectors of CLIP's.
    Both are float32. "No caption" is what empty.npz of the folder holds.

    Args:
      max_length: largest number of tokens of CLIP, with the two that begin and end a text.
      weights: not used; every encoder takes them.
      width: size of a state.
      pooled: size of the pooled vector.
      t5_length: largest number of tokens of T5.
      folder: config.text.folder, where the files are; '' is for plans, without captions.

    Returns:
      The encoder. Its functions raise UserError for a folder without encoders of these sizes, and
      if the library tokenizers is not installed.

    Raises:
      UserError: if a number is out of range.
    """
    need_ranges(
        "sd3", width=(width, 1, 2**16), pooled=(pooled, 1, 2**16), t5_length=(t5_length, 1, 4096)
    )
    entries = {
        "tokens": jax.ShapeDtypeStruct((max_length + t5_length, width), np.float32),
        "pooled": jax.ShapeDtypeStruct((pooled,), np.float32),
    }
    model = _SD3(Path(folder).expanduser() if folder else None, entries, max_length)
    null = model.null if folder else None
    return Encoder(model.encode, model.count, entries, GivenStates(), max_length, null=null)


class _SD3(clip_encoder.FolderEncoder):
    def __init__(
        self, folder: Path | None, entries: dict[str, jax.ShapeDtypeStruct], length: int
    ) -> None:
        super().__init__(folder, entries)
        self.length = length

    @functools.cached_property
    def parts(self) -> Parts:
        if self.folder is None:
            raise UserError(
                "config.text.folder is empty; name the folder of the text encoders, which "
                "experiments.import_weights --from=sd3 writes"
            )
        found = read(self.folder)
        wanted = self.entries["tokens"].shape[1], self.entries["pooled"].shape[0]
        check_sizes(f"config.text.folder={self.folder}", found, wanted)
        if self.length > (most := min(part.network.positions for part in found.clip)):
            raise UserError(
                f"config.text.max_length={self.length}: CLIP of {self.folder} reads {most} tokens"
            )
        return found

    def count(self, caption: str) -> int:
        return max(len(part.tokenizer.encode([caption])[0]) for part in self.parts.clip)

    def _encode(self, captions: list[str]) -> dict[str, np.ndarray]:
        batch = clip_encoder.BATCH
        padded = captions + [""] * (-len(captions) % batch)
        length, width = self.entries["tokens"].shape
        tokens, pooled, at = np.zeros((len(padded), length, width), np.float32), [], 0
        for part, run in zip(self.parts.clip, self._clip_runs):
            made = clip_encoder.states_of(part, run, padded, self.length)
            stop = at + part.network.width
            tokens[:, : self.length, at:stop] = made.states
            pooled.append(made.pooled)
            at = stop
        if last := self.parts.t5:
            ids = last.tokenizer.ids(padded, length - self.length)
            for i in range(0, len(padded), batch):
                rows = slice(i, i + batch)
                tokens[rows, self.length :] = self._t5_run(last.params, ids[rows])
        found = {"tokens": tokens, "pooled": np.concatenate(pooled, axis=-1)}
        return {name: value[: len(captions)] for name, value in found.items()}

    @functools.cached_property
    def _clip_runs(self) -> tuple[Any, ...]:
        return tuple(jax.jit(clip_encoder.applied(part.network)) for part in self.parts.clip)

    @functools.cached_property
    def _t5_run(self) -> Any:
        network = self.parts.t5.network

        def run(params: Params, ids: Array) -> Array:
            return network.apply({"params": params}, ids)

        return jax.jit(run)


def check_sizes(what: str, parts: Parts, wanted: tuple[int, int]) -> None:
    """Check that the text encoders make what a network receives.

    Args:
      what: the folder, for the message.
      parts: the text encoders.
      wanted: sizes of a state and of the pooled vector.

    Raises:
      UserError: for other sizes.
    """
    width = sum(part.network.width for part in parts.clip)
    pooled = sum(part.network.projection for part in parts.clip)
    last = parts.t5.network.width if parts.t5 else wanted[0]
    if len(parts.clip) != 2 or width > wanted[0] or (last, pooled) != tuple(wanted):
        raise UserError(
            f"{what}: the {len(parts.clip)} text encoders of CLIP make states of {width} numbers "
            f"and a pooled vector of {pooled}, T5 states of {last}, and the network receives "
            f"{wanted[0]} and {wanted[1]}; the folder is of several models, or incomplete"
        )


# The members of the family, which a config may name.
ENCODERS = (sd3,)
