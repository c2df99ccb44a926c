"""Published weights as a workdir."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

import jax

from configs import base
from diffusion_jax import data, files, reading
from diffusion_jax.assembly import autoencoders, experiment, latent, workdir
from diffusion_jax.assembly.kinds import kind
from diffusion_jax.data.latents import Encoded
from diffusion_jax.errors import UserError
from diffusion_jax.pretrained import (
    diffusers_networks,
    layouts,
    networks,
    published,
    safetensors,
    schedulers,
    torchfile,
)
from diffusion_jax.training import checkpoint

SOURCES = {
    "diffusers": ("UNet2DModel", "AutoencoderKL"),
    "dit": ("DiT",),
}  # --from and --to: which classes

FILES = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.bin",
    "model.safetensors",
    "model.pt",
)


def import_weights(
    source: str, path: str, out: str, dataset: str = "folder", autoencoder: str = ""
) -> Path:
    """Make a workdir of the weights at `path`, a file, its folder or a pipeline's; returns it.
    UserError if they do not fit.
    """
    file = find(Path(path))
    beside = file.with_name("config.json")
    config = (
        files.load_json(beside, reading.table()) if source == "diffusers" or beside.exists() else {}
    )
    name = class_of(source, config)
    network = networks.network(name)
    tensors = {diffusers_networks.modern(key): tensor for key, tensor in read(file).items()}
    options, shape = published.read_config(network, network.described(tensors) | config)
    tensors = published.without_fixed(network, tensors, options, shape)
    classes = options.pop("num_classes")
    unseen = data.Dataset(dataset, None, None, shape, classes, tuple(map(str, range(classes))))
    imported = {"class": name, "file": file.name, "sha256": sha256(file)}
    imported |= {"latents": {key: config[key] for key in published.SCALE if key in config}}
    config = run_config(
        network, options, shape, classes, scheduler_beside(file), dataset, autoencoder
    )
    params = fitted(network, experiment.assemble(config, shape, classes), tensors)
    unseen = unseen._replace(encoded=encoded_by(autoencoder, unseen)) if autoencoder else unseen

    with workdir.locked(out), workdir.one_line(out):
        if checkpoint.latest_step(Path(out) / "checkpoints") is not None:
            raise UserError(f"--out={out} holds a model already; give another folder")
        root = workdir.prepare(out, config, unseen)
        record = files.load_json(root / "provenance.json") | {"imported": imported}
        files.save_json(root / "provenance.json", record)
        with contextlib.closing(checkpoint.open_checkpoints(root / "checkpoints")) as checkpoints:
            checkpoints.save(0, {"params": params}, record)
    return root


def find(path: Path) -> Path:
    """The file of weights: this one, or that of this folder or of its unet/. UserError where there
    is none.
    """
    for candidate in [path, *(folder / name for folder in (path, path / "unet") for name in FILES)]:
        if candidate.is_file():
            return candidate
    raise UserError(
        f"--path={path} has no weights: neither {', '.join(FILES[:-1])} nor {FILES[-1]}"
    )


def read(file: Path) -> dict:
    """{name: array} of a safetensors or torch file."""
    if file.suffix == ".safetensors":
        return safetensors.load_file(file)
    return torchfile.load(file.read_bytes())


def class_of(source: str, config: dict) -> str:
    """The class of network that a config.json is of. UserError for one that --from does not have."""
    name = config.get("_class_name", "") if source == "diffusers" else SOURCES[source][0]
    if name not in SOURCES[source]:
        raise UserError(
            f"config.json has _class_name={name}; --from={source} takes {' or '.join(SOURCES[source])}"
        )
    return name


def scheduler_beside(file: Path) -> dict:
    """The scheduler_config.json in the same folder, or in scheduler/ of the pipeline; {} if there
    is none.
    """
    places = (
        file.parent / "scheduler_config.json",
        file.parent.parent / "scheduler" / "scheduler_config.json",
    )
    return next(
        (files.load_json(place, reading.table()) for place in places if place.is_file()), {}
    )


def sha256(file: Path) -> str:
    """The hash of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def encoded_by(autoencoder: str, unseen):
    """What a data set of latents says of the imported autoencoder that makes them. UserError for
    one of other latents.
    """
    trained = workdir.load(autoencoder, workdir.saved_config(autoencoder))
    codec, shape = (
        autoencoders.codec(trained.experiment, trained.params),
        trained.experiment.model.latent_shape,
    )
    if tuple(shape) != tuple(unseen.image_shape):
        made = f"makes latents {tuple(shape)} of images {tuple(codec.image_shape)}"
        raise UserError(
            f"--autoencoder={autoencoder} {made}, and the network is for {tuple(unseen.image_shape)}; "
            "import it again with another sample_size in its config.json, or another"
        )
    rule = reading.record({}, {"imported": reading.record({"latents": diffusers_networks.LATENTS})})
    told = files.load_json(Path(autoencoder) / "provenance.json", rule).get("imported")
    if told is None:
        raise UserError(
            f"--autoencoder={autoencoder} was trained here, so no published network knows its latents"
        )
    moments = diffusers_networks.shift_and_scale(told["latents"], shape[-1])
    about = codec.image_shape, unseen.name, unseen.num_classes, unseen.class_names
    return Encoded(latent.digest(codec.params), *about, *moments)


def run_config(
    network,
    options: dict,
    shape: tuple,
    classes: int,
    scheduler: dict,
    dataset: str,
    autoencoder: str = "",
):
    """The config of a run that would have such a network, under the convention it was trained with."""
    told = schedulers.read_scheduler(scheduler)
    config = base.base()
    config.data.update(name=dataset, image_size=shape[0], channels=shape[2], num_classes=classes)
    config.model = base.network(network.model, **options)
    config.update(
        process=told.process, parameterization=told.parameterization, objective=told.objective
    )
    config.conditional = classes > 0
    if network.subtree == "autoencoder":
        config.objective = "autoencoding.reconstruction(perceptual=0.0)"
    config.ema.halflives = ()
    clip = (
        "static" if scheduler.get("clip_sample", shape[2] in (1, 3)) else "none"
    )  # latents have no bounds
    clip = "dynamic" if scheduler.get("thresholding") else clip
    config.sampler.update(grid=f"trailing(steps={told.steps})", clip=clip)
    if autoencoder:
        config = base.latents(config)
        config.latent.autoencoder = autoencoder
    return config.lock()


def fitted(network, built, tensors: dict):
    """The parameters of a run with this network, of their tensors. UserError with the names of
    those that do not fit.
    """
    try:
        template = jax.eval_shape(lambda key: kind.init_params(built, key), jax.random.key(0))
    except (
        ArithmeticError,
        AssertionError,
        LookupError,
        TypeError,
        ValueError,
    ) as error:  # for sizes that do not go together
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"their config describes no network that can be built: {why}") from error
    own = template[network.subtree] if network.subtree else template
    shapes = {path: leaf.shape for path, leaf in layouts.flat(own).items()}
    found = layouts.to_ours(
        layouts.table(network, built.config.model.to_dict(), shapes), tensors, shapes
    )
    params = jax.tree.unflatten(jax.tree.structure(own), [found[path] for path in shapes])
    return {network.subtree: params} if network.subtree else params
