"""A trained network in the format of those that publish such: the way back of experiments.import_weights.

python -m experiments.export_weights --workdir=WORKDIR --to=diffusers --path=FOLDER [--config.sampler.ema=50k]

Writes config.json and diffusion_pytorch_model.safetensors (--to=dit: model.safetensors) of the weights that sample would use,
and scheduler_config.json where diffusers has such a process. Which networks can go is said in docs/weights.md.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from diffusion_jax.errors import UserError, printable
from experiments import cli
from experiments.import_weights import SOURCES


def export_weights(config, workdir: str, to: str, path: str) -> Path:
    """Write the network of a workdir to the folder `path`; returns the file. UserError for a network that they do not have."""
    import numpy as np

    from configs import base
    from diffusion_jax import convert, provenance, reading
    from diffusion_jax import workdir as folder
    from diffusion_jax.evaluation import safetensors

    name = class_for(to, config.model.name)
    network = convert.published(name)
    trained = folder.load(workdir, config)
    built, params = trained.experiment, trained.params[network.under] if network.under else trained.params
    if built.encoder:
        raise UserError(f"config.text.encoder={config.text.encoder}: {name} reads no captions; this cannot be exported")
    options = base.network(config.model.name).to_dict() | config.model.to_dict() | {"num_classes": built.num_classes}
    params = convert.unstacked({path: np.asarray(leaf) for path, leaf in convert.flat(params).items()})
    shapes = {path: leaf.shape for path, leaf in params.items()}
    described = convert.write_config(network, options, built.shape, shapes)
    rule = reading.record({}, {"imported": reading.record({"latents": convert.LATENTS})})
    described |= provenance.load_json(Path(workdir) / "provenance.json", rule).get("imported", {}).get("latents", {})
    tensors = convert.to_theirs(convert.table(network, options, shapes), params) | network.fixed(options, built.shape)
    file = Path(path) / ("diffusion_pytorch_model.safetensors" if to == "diffusers" else "model.safetensors")
    safetensors.save(file, tensors)
    provenance.save_json(file.with_name("config.json"), described)
    if to == "diffusers" and (told := scheduler(built)):
        provenance.save_json(file.with_name("scheduler_config.json"), told)
    return file


def class_for(to: str, model: str) -> str:
    """Their class for config.model.name; UserError where --to has none."""
    from diffusion_jax import convert

    names = {convert.published(name).model: name for name in SOURCES[to]}
    if model not in names:
        raise UserError(f"config.model.name={model} has no counterpart in --to={to}, which has {' and '.join(names)}")
    return names[model]


def scheduler(built) -> dict | None:
    """The scheduler_config.json under which the network means there what it means here; None if diffusers has none."""
    import numpy as np

    from diffusion_jax import convert, experiment

    if experiment.is_autoencoder(built):
        return None
    betas = getattr(built.process, "betas", ())
    steps = np.arange(len(betas))
    t, x = np.float32((steps + 1) / max(len(betas), 1)), np.ones(len(betas), np.float32)
    x_in, c_noise = built.parameterization.encode(built.process, x, t)
    alpha, sigma = built.process.alpha(t), built.process.sigma(t)
    pairs = {"epsilon": (0 * x, x), "v_prediction": (-sigma, alpha), "sample": (x, 0 * x)}
    found = np.stack(built.parameterization.coefficients(built.process, t))
    fitting = [name for name, pair in pairs.items() if np.allclose(np.stack(pair), found, atol=1e-4)]
    if not len(betas) or not fitting or not np.allclose(x_in, x) or not np.allclose(1000 * c_noise, steps, atol=0.01):
        return None
    return convert.write_scheduler(betas, fitting[0], built.config.sampler.clip != "none")


def main(config) -> None:
    FLAGS = flags.FLAGS
    file = export_weights(config, FLAGS.workdir, FLAGS.to, FLAGS.path)
    print(f"{file.parent}: {', '.join(sorted(printable(entry.name) for entry in file.parent.iterdir()))}")


if __name__ == "__main__":
    cli.path_flag("workdir", None, "the folder of a trained model", required=True)
    flags.DEFINE_enum("to", None, list(SOURCES), "in whose format", required=True)
    cli.path_flag("path", None, "the folder to write to", required=True)
    cli.launch(main, config="workdir")
