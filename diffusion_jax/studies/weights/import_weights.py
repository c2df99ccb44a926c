"""Published weights as a workdir, which sample, evaluate, edit and the other commands take."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from diffusion_jax.assembly import (
    autoencoders,
    config_files,
    experiment,
    latent,
    workdir,
)
from diffusion_jax.assembly.components import network as default_network
from diffusion_jax.assembly.experiment import Experiment
from diffusion_jax.core import files, reading
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Params
from diffusion_jax.data import Dataset
from diffusion_jax.data.latents import Encoded
from diffusion_jax.pretrained import (
    diffusers_networks,
    edm_files,
    layouts,
    networks,
    published,
    schedulers,
    weight_files,
)
from diffusion_jax.studies import own_network

# The classes of networks that can be read (--from) and written (--to), by their publisher.
BOTH_WAYS = {
    "diffusers": ("UNet2DModel", "AutoencoderKL"),
    "dit": ("DiT",),
    "sit": ("SiT",),
}
# those that can be read alone: files of tensors
SOURCES = BOTH_WAYS | {
    "diffusers": (*BOTH_WAYS["diffusers"], "DiTTransformer2DModel"),
    "score_sde": ("NCSNpp",),
    "lightningdit": ("LightningDiT",),
    "guided_diffusion": ("guided_diffusion.UNetModel",),
    "improved_diffusion": ("improved_diffusion.UNetModel",),
    "consistency_models": ("consistency_models.UNetModel",),
}
# likewise: .pkl files, which say what they hold
PICKLES = {"edm": ("SongUNet", "DhariwalUNet"), "edm2": ("EDM2",)}

DEFAULTS = "configs/_imported.py"  # the config of a run whose weights were not trained here


def import_weights(
    *, from_: str, path: str, out: str, data: str = "folder", autoencoder: str = ""
) -> None:
    """Make a workdir of published weights.

    Args:
      from_: who published them, a key of SOURCES or PICKLES.
      path: the file of weights, its folder, or the folder of a pipeline.
      out: the workdir to make.
      data: config.data.name of the data set that the network was trained on.
      autoencoder: for a network of latents, the workdir of its imported autoencoder.

    Raises:
      UserError: for weights that do not fit, or a workdir that holds a model.
    """
    root = to_workdir(from_, path, out, data, autoencoder)
    print(f"{root}: ready for experiments.sample, evaluate and edit")


def to_workdir(
    source: str, path: str | Path, out: str | Path, dataset: str = "folder", autoencoder: str = ""
) -> Path:
    """Make a workdir of published weights.

    Args:
      source: who published them, a key of SOURCES or PICKLES.
      path: the file of weights, its folder, or the folder of a pipeline.
      out: the workdir to make.
      dataset: config.data.name of the data set that the network was trained on.
      autoencoder: for a network of latents, the workdir of its imported autoencoder; '' otherwise.

    Returns:
      The workdir.

    Raises:
      UserError: if `out` holds a model already, and as `import_weights`.
    """
    file = weight_files.find(Path(path))
    found = _described_by_pickle(source, file) if source in PICKLES else described(source, file)
    scheduler = {} if found.settings else weight_files.scheduler_beside(file)
    own = found.latents if source in PICKLES else {}
    return write_workdir(found, file, out, scheduler, dataset, autoencoder, own)


def write_workdir(
    found: Found,
    file: Path,
    out: str | Path,
    scheduler: Mapping[str, Any],
    dataset: str = "folder",
    autoencoder: str = "",
    latents: Mapping[str, Any] = MappingProxyType({}),
    params: Params | None = None,
) -> Path:
    """Write the workdir of a network.

    Args:
      found: the network.
      file: the file of its weights.
      out: the workdir to make.
      scheduler: the content of scheduler_config.json; {} takes the defaults.
      dataset: config.data.name of the data set that the network was trained on.
      autoencoder: for a network of latents, the workdir of its imported autoencoder; '' otherwise.
      latents: how the network normalizes latents; {} where the autoencoder's config says so.
      params: what `fit` returns; None calls it.

    Returns:
      The workdir.

    Raises:
      UserError: if `out` holds a model already, and for weights that do not fit.
    """
    shape, classes = found.shape, found.options["num_classes"]
    unseen = Dataset(dataset, None, None, shape, classes, tuple(map(str, range(classes))))
    imported = {"class": found.name, "file": file.name, "sha256": weight_files.sha256(file)}
    imported |= {"latents": found.latents}
    config = _config_of(found, scheduler, dataset, autoencoder)
    params = fit(found, scheduler, dataset) if params is None else params
    if autoencoder:
        unseen = unseen._replace(encoded=_encoded_by(autoencoder, unseen, latents))

    return own_network.save(out, config, unseen, params, imported)


def fit(found: Found, scheduler: Mapping[str, Any], dataset: str = "folder") -> Params:
    """Make the parameters of a run of the tensors of a network.

    Args:
      found: the network.
      scheduler: the content of scheduler_config.json; {} takes the defaults.
      dataset: config.data.name.

    Raises:
      UserError: with the names of the tensors that do not fit.
    """
    config = _config_of(found, scheduler, dataset)
    model = experiment.assemble(config, found.shape, found.options["num_classes"])
    return fitted(networks.network(found.name), model, found.tensors)


def _config_of(
    found: Found, scheduler: Mapping[str, Any], dataset: str, autoencoder: str = ""
) -> ConfigDict:
    given = ("num_classes", "extra_channels")  # what the data determine
    options = {key: value for key, value in found.options.items() if key not in given}
    classes, network = found.options["num_classes"], networks.network(found.name)
    return run_config(
        network,
        options,
        found.shape,
        classes,
        dict(scheduler),
        dataset,
        autoencoder,
        found.settings,
    )


class Found(NamedTuple):
    """What a file of weights holds.

    Attributes:
      name: the class of the network.
      options: options of our network, with num_classes.
      shape: (H, W, C) of an example.
      tensors: the published arrays by their names.
      latents: the keys of SCALE that it states.
      settings: config keys that it determines, {key: value}; {} where a scheduler does.
    """

    name: str
    options: dict[str, Any]
    shape: tuple[int, ...]
    tensors: dict[str, np.ndarray]
    latents: dict[str, Any]
    settings: Mapping[str, Any] = MappingProxyType({})


def described(source: str, file: Path) -> Found:
    """Read a file of tensors and the config.json next to it.

    Args:
      source: who published it, a key of SOURCES.
      file: the file of weights.

    Raises:
      UserError: for a network that ours cannot represent.
    """
    beside = file.with_name("config.json")
    if source == "diffusers" and not beside.exists():
        raise UserError(
            f"{file.name} has no config.json next to it, which says what network it is; "
            "--from=diffusers takes a folder with both"
        )
    config = files.load_json(beside, reading.table()) if beside.exists() else {}
    name = _class_of(source, config)
    network = networks.network(name)
    stored = weight_files.read(file)
    with published.fitting(f"'{file}'"):
        tensors = reading.once((diffusers_networks.modern(key), a) for key, a in stored.items())
        tensors = network.averages(tensors)
        config = network.described(tensors) | published.known_config(network, config, file)
        options, shape = published.read_config(network, config)
        latents = {key: config[key] for key in published.SCALE if key in config}
        config = network.defaults | config
        tensors = network.prepared(tensors, config)
        tensors = published.without_fixed(network, tensors, options, shape)
        return Found(name, options, shape, tensors, latents, network.settings(config))


def _described_by_pickle(source: str, file: Path) -> Found:
    """Read a .pkl of EDM or EDM2.

    Args:
      source: a key of PICKLES.
      file: the file of weights.

    Raises:
      UserError: for a network that ours cannot represent.
    """
    found = edm_files.load(file.read_bytes())
    if found.name not in PICKLES[source]:
        others = {one for names in PICKLES.values() for one in names}
        remedy = next((key for key, names in PICKLES.items() if found.name in names), "edm")
        raise UserError(
            f"{file.name} holds a {found.name}; --from={source} takes "
            f"{' or '.join(PICKLES[source])}"
            + (f", use --from={remedy}" if found.name in others else "")
        )
    network = networks.network(found.name)
    with published.fitting(f"'{file}'"):
        options, shape = published.read_config(network, found.config, file.name)
    return Found(found.name, options, shape, found.tensors, found.latents, found.settings)


def _class_of(source: str, config: dict[str, Any]) -> str:
    """Name the class of network that a config.json describes.

    Args:
      source: who published it, a key of SOURCES. Only diffusers names the class in its config.json;
        the others have one class.
      config: the content of config.json.

    Raises:
      UserError: for a class that --from does not have.
    """
    name = config.get("_class_name", "") if source == "diffusers" else SOURCES[source][0]
    if name not in SOURCES[source]:
        raise UserError(
            f"config.json has _class_name={name}; --from={source} takes "
            f"{' or '.join(SOURCES[source])}"
        )
    return name


def _encoded_by(
    autoencoder: str, unseen: Dataset, latents: Mapping[str, Any] = MappingProxyType({})
) -> Encoded:
    """The description of a data set of latents that an imported autoencoder makes.

    Args:
      autoencoder: the workdir of the autoencoder.
      unseen: the data set, without its images.
      latents: how the network normalizes them; {} where the autoencoder's config says so.

    Raises:
      UserError: for an autoencoder of other latents, or one that was trained here.
    """
    trained = workdir.load(autoencoder, workdir.saved_config(autoencoder))
    codec, shape = (
        autoencoders.codec(trained.experiment, trained.params),
        trained.experiment.model.latent_shape,
    )
    if tuple(shape) != tuple(unseen.image_shape):
        made = f"makes latents {tuple(shape)} of images {tuple(codec.image_shape)}"
        raise UserError(
            f"--autoencoder={autoencoder} {made}, and the network is for "
            f"{tuple(unseen.image_shape)}; import it again with another sample_size in its "
            "config.json, or another"
        )
    rule = reading.record({}, {"imported": reading.record({"latents": diffusers_networks.LATENTS})})
    imported = files.load_json(Path(autoencoder) / "provenance.json", rule).get("imported")
    if imported is None:
        raise UserError(
            f"--autoencoder={autoencoder} was trained here, so no published network was "
            "trained on its latents"
        )
    moments = diffusers_networks.shift_and_scale(latents or imported["latents"], shape[-1])
    about = codec.image_shape, unseen.name, unseen.num_classes, unseen.class_names
    return Encoded(latent.digest(codec.params), *about, *moments)


def run_config(
    network: published.Published,
    options: dict[str, Any],
    shape: tuple[int, ...],
    classes: int,
    scheduler: dict[str, Any],
    dataset: str,
    autoencoder: str = "",
    settings: Mapping[str, Any] = MappingProxyType({}),
) -> ConfigDict:
    """The config of a run that has this network, under the convention it was trained with.

    Args:
      network: the published network.
      options: options of config.model.
      shape: (H, W, C) of its images or latents.
      classes: number of classes; 0 for an unconditional network.
      scheduler: the content of scheduler_config.json; {} takes the defaults.
      dataset: config.data.name.
      autoencoder: the workdir of the autoencoder, for a network of latents.
      settings: config keys that the file of weights determines, {key: value}.
    """
    convention = schedulers.read_scheduler(scheduler)
    config = config_files.load_config(DEFAULTS).unlock()
    config.data.update(name=dataset, image_size=shape[0], channels=shape[2], num_classes=classes)
    config.model = default_network(network.model, **options)
    config.update(
        process=convention.process,
        parameterization=convention.parameterization,
        objective=convention.objective,
    )
    config.conditional = classes > 0
    if network.subtree == "autoencoder":
        config.objective = "autoencoding.reconstruction(perceptual=0.0)"
    config.ema.halflives = ()
    # latents, which have no bounds, have neither one nor three channels
    clip = "static" if scheduler.get("clip_sample", shape[2] in (1, 3)) else "none"
    clip = "dynamic" if scheduler.get("thresholding") else clip
    config.sampler.update(grid=f"trailing(steps={convention.steps})", clip=clip)
    if settings:
        config.sampler.grid = "auto"  # unless the settings name one
        config.update_from_flattened_dict(settings)
    if autoencoder:
        config.data.name, config.sampler.clip = "latents", "none"  # latents have no bounds
        config.latent = ConfigDict({"autoencoder": autoencoder, "recipe": ""})
    return config.lock()


def fitted(
    network: published.Published, model: Experiment, tensors: dict[str, np.ndarray]
) -> Params:
    """The parameters of a run with this network, made of published tensors.

    Args:
      network: the published network.
      model: the experiment of the run.
      tensors: the published arrays by their names.

    Raises:
      UserError: with the names of the tensors that do not fit.
    """
    with published.fitting(model.specs.model):
        template = jax.eval_shape(lambda key: model.kind.init(model, key), jax.random.key(0))
    own = template[network.subtree] if network.subtree else template
    shapes = {path: leaf.shape for path, leaf in layouts.flat(own).items()}
    options = model.options | {"side": model.shape[0]}
    found = layouts.to_ours(layouts.table(network, options, shapes), tensors, shapes)
    params = jax.tree.unflatten(jax.tree.structure(own), [found[path] for path in shapes])
    return {network.subtree: params} if network.subtree else params
