"""CLIP as a text encoder: of one or two folders of Hugging Face, as Stable Diffusion has them.

    FOLDER/text_encoder/    config.json and model.safetensors of a CLIPTextModel
    FOLDER/tokenizer/       tokenizer.json, or vocab.json and merges.txt
    FOLDER/text_encoder_2/  a second encoder (XL), whose states stand beside those of the first
    FOLDER/tokenizer_2/     its tokenizer
    FOLDER/empty.npz        the entries that mean "no caption", which importing writes

Nothing in these files is executed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from diffusion_jax.core import npz, reading
from diffusion_jax.core.errors import UserError, need_ranges
from diffusion_jax.core.types import Params
from diffusion_jax.models import clip_text
from diffusion_jax.models.clip_text import ClipText, ClipTokenizer
from diffusion_jax.models.text import Encoder, GivenStates, Weights
from diffusion_jax.pretrained import layouts, published, weight_files

PARTS = (("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2"))
WEIGHTS = ("model.safetensors", "model.fp16.safetensors", "pytorch_model.bin")
TOKENIZER = (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
EMPTY = "empty.npz"
BATCH = 8  # texts in one pass

_COUNT = reading.integer(1, 2**20)
_RULE = reading.record(
    {},
    dict.fromkeys(
        ("vocab_size", "hidden_size", "intermediate_size", "max_position_embeddings"), _COUNT
    )
    | {
        "model_type": reading.one_of("clip_text_model"),
        "num_hidden_layers": reading.integer(1, 256),
        "num_attention_heads": reading.integer(1, 1024),
        "hidden_act": reading.one_of(*clip_text.ACTIVATIONS),
        "layer_norm_eps": reading.number(1e-12, 1),
        "use_attention_mask": reading.one_of(False),
    },
)
_DEFAULTS = {
    "vocab_size": 49_408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "max_position_embeddings": 77,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
_WORDS = {
    "qkv": "self_attn.q_proj self_attn.k_proj self_attn.v_proj",
    "project": "self_attn.out_proj",
    "norm_1": "layer_norm1",
    "norm_2": "layer_norm2",
    "mlp_in": "mlp.fc1",
    "mlp_out": "mlp.fc2",
}


class ClipPart(NamedTuple):
    """A text encoder of a folder.

    Attributes:
      network: the transformer.
      params: its parameters, on the host.
      tokenizer: its tokenizer.
      config: the content of config.json.
      tensors: the tensors of the file.
    """

    network: ClipText
    params: Params
    tokenizer: ClipTokenizer
    config: dict[str, Any]
    tensors: dict[str, np.ndarray]


def read(folder: Path, skip: int = 0, normalized: bool = True) -> tuple[ClipPart, ...]:
    """Read the text encoders of a folder.

    Args:
      folder: a folder with the parts that the head of this module lists.
      skip: see ClipText.
      normalized: see ClipText.

    Raises:
      UserError: for a folder without them, and for files that are damaged or do not fit.
    """
    if not (folder / PARTS[0][0]).is_dir():
        raise UserError(f"'{folder}' has no folder {PARTS[0][0]}, the text encoder; name another")
    there = [names for names in PARTS if (folder / names[0]).is_dir()]
    return tuple(
        _read_part(folder / part, folder / tokens, skip, normalized) for part, tokens in there
    )


def _read_part(folder: Path, tokens: Path, skip: int, normalized: bool) -> ClipPart:
    own = reading.json_file(folder / "config.json", _RULE)
    config, tensors = _DEFAULTS | own, weight_files.read_whole(folder, WEIGHTS)
    with published.fitting(f"'{folder}'"):
        named = reading.once((name.removeprefix("text_model."), a) for name, a in tensors.items())
    named.pop("embeddings.position_ids", None)  # 0, 1, 2, ... in old files
    projection = len(np.atleast_1d(named.get("text_projection.weight", ())))
    network = ClipText(
        config["vocab_size"],
        config["max_position_embeddings"],
        config["hidden_size"],
        config["num_hidden_layers"],
        config["num_attention_heads"],
        config["intermediate_size"],
        config["hidden_act"],
        config["layer_norm_eps"],
        projection,
        skip,
        normalized,
    )
    if network.width % network.heads or skip >= network.depth:
        raise UserError(
            f"'{folder / 'config.json'}' has hidden_size={network.width}, num_attention_heads="
            f"{network.heads} and num_hidden_layers={network.depth}, which do not go together with "
            f"skip={skip}"
        )
    found = {name: reading.content(tokens / name) for name in TOKENIZER if (tokens / name).exists()}
    if "tokenizer.json" not in found and not {"vocab.json", "merges.txt"} <= found.keys():
        raise UserError(f"'{tokens}' has neither tokenizer.json nor vocab.json and merges.txt")
    tokenizer = clip_text.tokenizer(found, str(tokens))
    if tokenizer.size > network.vocabulary:
        raise UserError(
            f"'{tokens}' has {tokenizer.size} tokens, and '{folder}' knows {network.vocabulary}"
        )
    return ClipPart(network, _params(network, named, folder), tokenizer, own, tensors)


def _params(network: ClipText, tensors: dict[str, np.ndarray], folder: Path) -> Params:
    ids, ends = np.zeros((1, 1), np.int32), np.zeros(1, np.int32)
    template = jax.eval_shape(network.init, jax.random.key(0), ids, ends)["params"]
    shapes = {path: leaf.shape for path, leaf in layouts.flat(template).items()}
    try:
        found = layouts.to_ours({path: _source(path) for path in shapes}, tensors, shapes)
    except UserError as error:
        raise UserError(f"'{folder}': {error}") from error
    return jax.tree.unflatten(jax.tree.structure(template), [found[path] for path in shapes])


def _source(path: str) -> layouts.TensorSource:
    """The tensors of theirs of which one of our parameters consists."""
    whole = {
        "words": "embeddings.token_embedding.weight",
        "places": "embeddings.position_embedding.weight",
        "projection/kernel": "text_projection.weight",
        "last_norm/scale": "final_layer_norm.weight",
        "last_norm/bias": "final_layer_norm.bias",
    }
    layout = layouts.KERNEL if path.endswith("kernel") else layouts.SAME
    if path in whole:
        return layouts.TensorSource((whole[path],), layout)
    layer, word, leaf = path.split("/")
    number, end = layer.removeprefix("layer_"), layouts.LEAVES[leaf]
    names = (f"encoder.layers.{number}.{name}.{end}" for name in _WORDS[word].split(" "))
    return layouts.TensorSource(tuple(names), layout)


# ---- the encoder
def clip(
    max_length: int,
    weights: Weights | None = None,
    *,
    width: int = 768,
    pooled: int = 0,
    sizes: tuple[int, ...] = (),
    skip: int = 0,
    normalized: bool = True,
    folder: str = "",
) -> Encoder:
    """The frozen text encoder of CLIP, or two of them, as Stable Diffusion has them.

    The entries are 'tokens' (B, max_length, width), the states of a layer, of two encoders side by
    side; 'pooled' (B, pooled), the projected vector of the last encoder; and 'sizes' (B, 6), the
    same for every caption. All are float32. "No caption" is what empty.npz of the folder holds.

    Args:
      max_length: largest number of tokens, with the two that begin and end a text.
      weights: not used; every encoder takes them.
      width: size of a state: 768 in Stable Diffusion 1, 1024 in 2, 2048 in XL.
      pooled: size of the pooled vector, 1280 in XL; 0 is none.
      sizes: height and width of the original image, top and left of the crop, and height and width
        of the image (Podell et al. 2023, section 2.2); () is none.
      skip: layers that are left out at the end: 1 in XL.
      normalized: whether the states are normalized by the last norm; False in XL.
      folder: config.text.folder, where the files are; '' is for plans, without captions.

    Returns:
      The encoder. Its functions raise UserError for a folder without encoders of these sizes, and
      if the library tokenizers is not installed.

    Raises:
      UserError: if a number is out of range.
    """
    need_ranges("clip", width=(width, 1, 2**16), pooled=(pooled, 0, 2**16), skip=(skip, 0, 255))
    if len(sizes) not in (0, 6):
        raise UserError(f"clip(sizes={sizes}): six numbers, such as (1024, 1024, 0, 0, 1024, 1024)")
    entries = {"tokens": jax.ShapeDtypeStruct((max_length, width), np.float32)}
    entries |= {"pooled": jax.ShapeDtypeStruct((pooled,), np.float32)} if pooled else {}
    entries |= {"sizes": jax.ShapeDtypeStruct((6,), np.float32)} if sizes else {}
    model = _Clip(Path(folder).expanduser() if folder else None, entries, sizes, skip, normalized)
    null = model.null if folder else None
    return Encoder(model.encode, model.count, entries, GivenStates(), max_length, null=null)


class FolderEncoder:
    """Text encoders of a folder, which are read when they are first used.

    A subclass has `_encode`, which maps distinct captions to the entries.
    """

    def __init__(self, folder: Path | None, entries: dict[str, jax.ShapeDtypeStruct]) -> None:
        """Keep what a config says.

        Args:
          folder: where the files are; None is for plans, without captions.
          entries: the shape and type of each entry of a caption.
        """
        self.folder, self.entries = folder, entries

    def encode(self, captions: Sequence[str]) -> dict[str, np.ndarray]:
        """Encode captions, each different one once.

        Args:
          captions: B texts.

        Returns:
          The entries, (B, ...) each.
        """
        distinct = list(dict.fromkeys(captions))
        place = {caption: i for i, caption in enumerate(distinct)}
        rows = [place[caption] for caption in captions]
        return {name: value[rows] for name, value in self._encode(distinct).items()}

    def _encode(self, captions: list[str]) -> dict[str, np.ndarray]:
        raise NotImplementedError

    def null(self) -> dict[str, np.ndarray]:
        """Return the entries of "no caption", which empty.npz of the folder holds."""
        return self._null

    @functools.cached_property
    def _null(self) -> dict[str, np.ndarray]:
        specs = {name: npz.ArraySpec("f", one.shape) for name, one in self.entries.items()}
        try:
            return npz.load(self.folder / EMPTY, specs)
        except UserError as error:
            raise UserError(f"config.text.folder: {error}; import the model again") from error


class _Clip(FolderEncoder):
    def __init__(
        self,
        folder: Path | None,
        entries: dict[str, jax.ShapeDtypeStruct],
        sizes: tuple[int, ...],
        skip: int,
        normalized: bool,
    ) -> None:
        super().__init__(folder, entries)
        self.sizes, self.how = sizes, (skip, normalized)

    @functools.cached_property
    def parts(self) -> tuple[ClipPart, ...]:
        if self.folder is None:
            raise UserError(
                "config.text.folder is empty; name the folder of the text encoders of CLIP, which "
                "experiments.import_weights --from=stable_diffusion writes"
            )
        found = read(self.folder, *self.how)
        width = sum(part.network.width for part in found)
        positions = min(part.network.positions for part in found)
        length, wanted = self.entries["tokens"].shape
        if width != wanted or length > positions:
            raise UserError(
                f"config.text.folder={self.folder} has states of {width} numbers and {positions} "
                f"tokens, and the model reads {wanted} and {length}; name that of the model"
            )
        return found

    @functools.cached_property
    def runs(self) -> tuple[Callable[..., Any], ...]:
        return tuple(jax.jit(applied(part.network)) for part in self.parts)

    def count(self, caption: str) -> int:
        return max(len(part.tokenizer.encode([caption])[0]) for part in self.parts)

    def _encode(self, captions: list[str]) -> dict[str, np.ndarray]:
        length = self.entries["tokens"].shape[0]
        padded = captions + [""] * (-len(captions) % BATCH)
        made = [states_of(part, run, padded, length) for part, run in zip(self.parts, self.runs)]
        tokens = np.concatenate([one.states for one in made], axis=-1)
        found = {"tokens": tokens, "pooled": made[-1].pooled}
        found["sizes"] = np.tile(np.float32(self.sizes), (len(padded), 1))
        return {name: found[name][: len(captions)] for name in self.entries}


def states_of(
    part: ClipPart, run: Callable[..., Any], captions: Sequence[str], length: int
) -> clip_text.ClipStates:
    """Run an encoder of CLIP on captions, BATCH at a time.

    Args:
      part: the encoder.
      run: its network, `applied` and compiled.
      captions: B texts, a multiple of BATCH.
      length: number of tokens, L.

    Returns:
      states (B, L, width) and pooled (B, projection).
    """
    ids, ends = part.tokenizer.ids(captions, length)
    blocks = [
        run(part.params, ids[i : i + BATCH], ends[i : i + BATCH])
        for i in range(0, len(captions), BATCH)
    ]
    return jax.tree.map(lambda *parts: np.concatenate(parts), *blocks)


def applied(network: ClipText) -> Callable[..., clip_text.ClipStates]:
    """Return the network as a function (params, ids (B, L), ends (B,)) -> ClipStates.

    Args:
      network: a text encoder of CLIP.
    """

    def run(params: Params, ids: np.ndarray, ends: np.ndarray) -> clip_text.ClipStates:
        return network.apply({"params": params}, ids, ends)

    return run


# The members of the family, which a config may name.
ENCODERS = (clip,)
