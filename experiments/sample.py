"""Draw images from a trained model: WORKDIR/samples.npz (uint8) and samples.png. One seed is one image, always the same.

python -m experiments.sample --workdir=runs/a --num=64 --labels=0,1,2 --config.sampler.name=ode.edm_heun --seeds=0-63
"""

from __future__ import annotations

import sys
from pathlib import Path

from absl import flags

from experiments import cli

def main(config) -> None:
    import numpy as np

    from diffusion_jax import data, experiment, plotting
    from diffusion_jax import workdir as folder
    from diffusion_jax.evaluation import generate
    from diffusion_jax.training import distributed

    FLAGS = flags.FLAGS
    seeds = generate.parse_seeds(FLAGS.seeds) if FLAGS.seeds else list(range(FLAGS.num))
    mesh = experiment.sampling_mesh(config)
    trained = folder.load(FLAGS.workdir, config, mesh)
    built = trained.experiment
    labels = cli.integers("labels", FLAGS.labels) or list(range(built.num_classes))
    labels = np.resize(labels, len(seeds)) if labels else np.zeros(0, int)
    cond = experiment.cond_for(built, labels)
    chosen = experiment.plan(built)
    print(f"{FLAGS.workdir}: step {trained.step}, weights {trained.weights}, {config.sampler.name} on grid {config.sampler.grid}, "
          f"{experiment.evaluations(chosen) or 'as its tolerance asks:'} evaluations per image", file=sys.stderr)  # fmt: skip

    images = generate.generate(experiment.sample_with(built, trained.params, chosen, mesh), generate.seeds_to_keys(seeds), cond,
                               batch_size=min(config.sampler.batch_size, len(seeds)),
                               finish=generate.to_uint8 if experiment.is_image(built) else np.asarray)  # fmt: skip
    if not distributed.first():
        return
    out = Path(FLAGS.out or Path(FLAGS.workdir) / "samples")
    generate.save_npz(out.with_suffix(".npz"), images, labels=labels if len(labels) else None, seeds=seeds)
    if experiment.is_image(built):
        columns = min(10, len(seeds))
        plotting.save(plotting.image_grid(images, columns), out.with_suffix(".png"))
    else:
        real = data.arrays(experiment.dataset(config).train, limit=len(images))["image"]
        plotting.points(real, {"samples": images}, out.with_suffix(".png"))
    print(f"{len(images)} images: {out.with_suffix('.npz')}, {out.with_suffix('.png')}")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "the folder of a trained model", required=True)
    flags.DEFINE_integer("num", 64, "how many images; with --seeds, those decide", lower_bound=1)
    flags.DEFINE_string("seeds", "", "one image per seed, such as 0-63,100; by default 0 to num - 1")
    flags.DEFINE_string("labels", "", "classes to draw in turn, such as 0,1,2; by default all of them")
    flags.DEFINE_string("out", "", "where to write, without the ending; by default WORKDIR/samples")
    cli.launch(main, config="workdir")
