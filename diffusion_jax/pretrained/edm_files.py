"""The .pkl files of EDM and EDM2, read as data: tensors and constructor arguments.

Such a file is a pickle of objects that carry the text of their own program, which the authors' code
executes when it loads them. Here the pickle is interpreted (pickles.py): the text is skipped, and
an object is the dictionary of its state, of which the arguments of its constructor, its parameters,
buffers and modules are used. The object 'ema' is the network with its preconditioning, which says
what the network was trained to predict:

    VPPrecond       eps, at the time (M - 1) t of the VP SDE        (Karras et al. 2022, table 1)
    VEPrecond       -eps, at log(sigma / 2) of the VE SDE
    iDDPMPrecond    eps and its variance, at the step of the cosine chain
    EDMPrecond      EDM's F, at log(sigma) / 4
    Precond         likewise, of EDM2
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.core import reading
from diffusion_jax.core.errors import UserError, unknown
from diffusion_jax.pretrained import pickles, torchfile
from diffusion_jax.pretrained.pickles import Made, Name

OBJECT = Name("torch_utils.persistence", "_reconstruct_persistent_obj")
BYTES = Name("torch.storage", "_load_from_bytes")
PARAMETERS = {
    Name("torch._utils", "_rebuild_parameter"),
    Name("torch._utils", "_rebuild_parameter_with_state"),
}
DICTS = {Name("collections", "OrderedDict"), Name("dnnlib.util", "EasyDict")}
# what these files hold besides: settings of torch's modules and small arrays, which are not used
OTHERS = re.compile(
    r"torch\.(device|Size|float16|float32|float64|bfloat16|strided|contiguous_format)"
    r"|torch\.nn\.modules\.[a-z_.]+\.[A-Z]\w*|numpy\.(dtype|ndarray)|_codecs\.encode"
    r"|numpy\._?core\.multiarray\.(scalar|_reconstruct)|(builtins|__builtin__)\.set"
)
DEPTH, OBJECTS, LONGEST = 16, 100_000, 1000  # modules, tensors and modules, letters of a name

# arguments of the preconditionings, which are not those of the network, with their defaults
_COMMON = {"use_fp16": False}
PRECONDITIONS = {
    "VPPrecond": _COMMON | {"beta_d": 19.9, "beta_min": 0.1, "M": 1000, "epsilon_t": 1e-5},
    "VEPrecond": _COMMON | {"sigma_min": 0.02, "sigma_max": 100},
    "iDDPMPrecond": _COMMON | {"C_1": 0.001, "C_2": 0.008, "M": 1000},
    "EDMPrecond": _COMMON | {"sigma_min": 0, "sigma_max": math.inf, "sigma_data": 0.5},
    "Precond": _COMMON | {"sigma_data": 0.5},
}
_MODELS = {"VPPrecond": "SongUNet", "VEPrecond": "SongUNet"}  # the others: DhariwalUNet
_POSITIVE = reading.number(1e-6, 1e6)
_RULE = reading.record(
    {},
    {
        "use_fp16": reading.boolean(),
        "beta_d": _POSITIVE,
        "beta_min": _POSITIVE,
        "M": reading.integer(2, 100_000),
        "epsilon_t": reading.number(1e-9, 0.5),
        "sigma_min": reading.number(0, 1e6),
        "sigma_max": reading.number(1e-6, math.inf, finite=False),
        "C_1": reading.one_of(0.001),
        "C_2": reading.one_of(0.008),
        "sigma_data": _POSITIVE,
    },
)
_CHANNELS = reading.items(reading.number(), 1, 64)
_LATENTS = reading.record(
    {"raw_mean": _CHANNELS, "raw_std": _CHANNELS, "final_mean": reading.one_of(0)},
    {"final_std": _POSITIVE, "batch_size": reading.anything, "vae_name": reading.text()},
)


class EdmFile(NamedTuple):
    """A network of EDM or EDM2.

    Attributes:
      name: the class of the network: 'SongUNet', 'DhariwalUNet' or 'EDM2'.
      config: the arguments of its constructor.
      tensors: its parameters and learned frequencies, by their names in the network.
      settings: what the preconditioning means here, {config key: value}.
      latents: for a network of latents, the keys of a config.json that normalize them; {} for one
        of pixels.
    """

    name: str
    config: dict[str, Any]
    tensors: dict[str, np.ndarray]
    settings: dict[str, Any]
    latents: dict[str, Any]


def load(data: bytes) -> EdmFile:
    """Read a file of EDM or EDM2.

    Args:
      data: the bytes of the .pkl file.

    Returns:
      Its network 'ema', as data.

    Raises:
      UserError: for bytes that are not such a file, and for one whose pickle names anything that
        such a file does not need.
    """
    try:
        value, _ = pickles.read(data, 0, _allowed)
        content = _dictionary(value) if _is_dictionary(value) else {"ema": value}
        if "ema" not in content:
            raise UserError("this .pkl has no 'ema'; give one of the published networks")
        return _network(content["ema"], content.get("encoder"), len(data))
    except UserError:
        raise
    except Exception as error:  # damaged files raise many types; the cause stays attached
        raise UserError(
            f"not a .pkl of EDM that can be read ({type(error).__name__}: {error}); download it "
            "again"
        ) from error


def _allowed(name: Name) -> None:
    """Raise UserError for a name that no file of EDM needs."""
    known = {OBJECT, BYTES} | PARAMETERS | DICTS | torchfile.TENSOR
    named = f"{name.module}.{name.name}"
    if name not in known and not OTHERS.fullmatch(named):
        raise UserError(
            f"this .pkl names {named:.200}, which no network of EDM needs; it is not read"
        )


def _network(ema: Any, encoder: Any, size: int) -> EdmFile:
    precond, state = _object(ema)
    given = dict(zip(("img_resolution", "img_channels", "label_dim"), _plain(state["_init_args"])))
    given |= _plain(state["_init_kwargs"])
    if precond not in PRECONDITIONS:
        raise unknown("preconditioning", precond, PRECONDITIONS)
    defaults = PRECONDITIONS[precond]
    about = defaults | {key: value for key, value in given.items() if key in defaults}
    config = {key: value for key, value in given.items() if key not in defaults}
    reading.check(about, _RULE, precond)
    name = config.pop("model_type", _MODELS.get(precond, "DhariwalUNet"))
    prefix = "unet." if precond == "Precond" else "model."
    if precond == "Precond":
        name = "EDM2"
    elif name not in ("SongUNet", "DhariwalUNet"):
        raise unknown("model_type", str(name), ("SongUNet", "DhariwalUNet"))
    else:
        channels = config.pop("img_channels", None)
        double = 2 if precond == "iDDPMPrecond" and isinstance(channels, int) else 1
        config |= {"in_channels": channels, "out_channels": channels and channels * double}
    dropped = config.pop("label_dropout", 0)
    reading.check(dropped, reading.number(0, 1), "label_dropout")
    tensors = reading.once(
        (key.removeprefix(prefix), tensor)
        for key, tensor in _Tensors(size).of(ema)
        if not key.endswith("resample_filter") and key != "u"
    )
    if precond == "VEPrecond":  # it predicts -eps, and the last layers are linear
        tensors = {
            key: -tensor if re.search(r"(aux_conv|out_conv)\.(weight|bias)$", key) else tensor
            for key, tensor in tensors.items()
        }
    settings = _SETTINGS[precond](about) | {"label_dropout": float(dropped), "sampler.clip": "none"}
    return EdmFile(name, config, tensors, settings, _latents(encoder))


# ---- what the preconditionings mean
def _vp(about: Mapping) -> dict[str, Any]:
    low, steps = float(about["beta_min"]), float(about["M"] - 1)
    times = f"beta_max={low + about['beta_d']!r}, t_min={float(about['epsilon_t'])!r}"
    return {
        "process": f"schedules.VP(beta_min={low!r}, {times})",
        "parameterization": f"eps(noise_input='time', input_scale=False, time_scale={steps!r})",
        "objective": "denoising.dsm()",
    }


def _ve(about: Mapping) -> dict[str, Any]:
    low, high = float(about["sigma_min"]), float(about["sigma_max"])
    if not 0 < low < high < math.inf:
        raise UserError(
            f"VEPrecond has sigma_min={low:g} and sigma_max={high:g}; download it again"
        )
    scale, shift = math.log(high / low), math.log(low / 2)
    inputs = f"noise_input='time', input_scale=False, time_scale={scale!r}, time_shift={shift!r}"
    return {
        "process": f"schedules.VE(sigma_min={low!r}, sigma_max={high!r})",
        "parameterization": f"eps({inputs})",
        "objective": "denoising.dsm()",
    }


def _iddpm(about: Mapping) -> dict[str, Any]:
    steps = about["M"]
    inputs = f"noise_input='time', input_scale=False, time_scale={float(steps)!r}, time_shift=-1.0"
    return {
        "process": f"discrete.ddpm('cosine', {steps})",
        "parameterization": f"eps({inputs})",
        "objective": f"learned_variance.hybrid(steps={steps})",
        "sampler.grid": f"trailing(steps={steps})",
    }


def _edm(about: Mapping) -> dict[str, Any]:
    sigma_data = float(about["sigma_data"])
    return {
        "process": "schedules.EDM()",
        "parameterization": f"edm(sigma_data={sigma_data!r})",
        "objective": f"denoising.edm(sigma_data={sigma_data!r})",
        "sampler.name": "ode.edm_heun",
        "sampler.grid": "karras",
        "sampler.nfe": 35,  # 18 steps, theirs for CIFAR-10
    }


def _edm2(about: Mapping) -> dict[str, Any]:
    objective = f"uncertainty.edm2(sigma_data={float(about['sigma_data'])!r})"
    return _edm(about) | {"objective": objective, "sampler.nfe": 63}  # 32 steps


_SETTINGS = {
    "VPPrecond": _vp,
    "VEPrecond": _ve,
    "iDDPMPrecond": _iddpm,
    "EDMPrecond": _edm,
    "Precond": _edm2,
}


def _latents(encoder: Any) -> dict[str, Any]:
    """The normalization of latents, as an AutoencoderKL's config.json writes it; {} for pixels."""
    if encoder is None or _object(encoder)[0] != "StabilityVAEEncoder":
        return {}
    found = {
        "raw_mean": [5.81, 3.25, 0.12, -2.15],
        "raw_std": [4.17, 4.62, 3.71, 3.28],
        "final_mean": 0,
        "final_std": 0.5,
    } | _plain(_object(encoder)[1]["_init_kwargs"])
    reading.check(found, _LATENTS, "StabilityVAEEncoder")
    return {
        "latents_mean": [float(one) for one in found["raw_mean"]],
        "latents_std": [float(one) for one in found["raw_std"]],
        "scaling_factor": float(found["final_std"]),
    }


# ---- objects
def _object(value: Any) -> tuple[str, dict]:
    """Return (class, state) of a persistent object; UserError for anything else."""
    about = value.args[0] if isinstance(value, Made) and value.name == OBJECT else None
    if not isinstance(about, dict) or not isinstance(about.get("class_name"), str):
        raise UserError(
            "an object of this .pkl is not one of EDM's networks, and nothing else is read from a "
            ".pkl; save the state dict of another network alone (docs/guides/weights.md)"
        )
    return about["class_name"], _dictionary(about["state"])


def _is_dictionary(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, Made) and value.name in DICTS)


def _dictionary(value: Any) -> dict:
    if not _is_dictionary(value):
        raise UserError("a part of this .pkl is not a dictionary; it is not read")
    return value if isinstance(value, dict) else value.items


def _plain(value: Any) -> Any:
    """The arguments of a constructor as numbers, texts, lists and dictionaries.

    A list of lists of the same lists is short in a pickle and endless to copy: no more than OBJECTS
    values are visited.
    """
    left = OBJECTS

    def of(value: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if left >= 0 and (value is None or isinstance(value, (bool, int, float))):
            return value
        if left >= 0 and isinstance(value, str) and len(value) <= LONGEST:
            return value
        if left >= 0 and depth < 4 and isinstance(value, (list, tuple)):
            return [of(one, depth + 1) for one in value]
        if left >= 0 and depth < 4 and _is_dictionary(value):
            return {str(key): of(one, depth + 1) for key, one in _dictionary(value).items()}
        raise UserError("an argument of a constructor in this .pkl is not a number; it is not read")

    return of(value, 0)


class _Tensors:
    """Walk a module of a file of `size` bytes for its parameters and buffers.

    There are no more than OBJECTS of them, and together at most twice as many bytes as the file
    has, so that tensors that share their numbers can be copied.
    """

    def __init__(self, size: int) -> None:
        self.left, self.bytes = OBJECTS, 2 * size

    def of(self, module: Any, path: str = "", depth: int = 0):
        """Yield (dotted name, array) of each tensor."""
        self.left -= 1
        if depth > DEPTH or self.left < 0 or len(path) > LONGEST:
            raise UserError(
                "this .pkl refers to itself or is nested too deep to be a network; it is not read"
            )
        state = self._state(module)
        for kind in ("_parameters", "_buffers"):
            for key, value in _dictionary(state.get(kind, {})).items():
                if value is not None:
                    self.left -= 1
                    self.bytes -= (tensor := _tensor(value)).nbytes
                    if self.bytes < 0:
                        raise UserError(
                            "the tensors of this .pkl unpack to more than twice its size; it is "
                            "not read"
                        )
                    yield f"{path}{key}", tensor
        for key, value in _dictionary(state.get("_modules", {})).items():
            if value is not None:
                yield from self.of(value, f"{path}{key}.", depth + 1)

    def _state(self, module: Any) -> dict:
        if isinstance(module, Made) and module.name == OBJECT:
            return _object(module)[1]
        if isinstance(module, Made) and module.name.module.startswith("torch.nn.modules."):
            return _dictionary(module.state)
        raise UserError("a module of this .pkl is not one of EDM's; it is not read")


def _tensor(value: Any) -> np.ndarray:
    if isinstance(value, Made) and value.name in PARAMETERS:
        value = value.args[0]
    if not isinstance(value, Made) or value.name not in torchfile.TENSOR:
        raise UserError("a parameter of this .pkl is not a tensor; it is not read")
    stored, offset, shape, stride = value.args[:4]
    if not isinstance(stored, Made) or stored.name != BYTES or type(stored.args[0]) is not bytes:
        raise UserError("a tensor of this .pkl does not consist of a storage; it is not read")
    return torchfile.view(torchfile.storage(stored.args[0]), offset, shape, stride)
