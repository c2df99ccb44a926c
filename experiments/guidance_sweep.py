"""How much guidance, and which? Fidelity against diversity over the scale, for several guidances,
from the same seeds.

python -m experiments.guidance_sweep --workdir=runs/a --guides='cfg(); interval(high=2.0); autoguidance(step=300)' --num=1000
python -m experiments.guidance_sweep --mixture --out=docs/images/guidance_mixture.png

Writes guidance_sweep.md, .json, .png and _strips.png into the workdir. Finished cells are kept in
guidance_sweep/ there, and not made again. A guide is compiled once for all scales. --mixture draws
the same for a mixture whose denoisers are exact.
"""

from __future__ import annotations

import sys
from pathlib import Path

from absl import flags

from diffusion_jax import parsing
from diffusion_jax.errors import UserError
from diffusion_jax.studies import guidance_sweep
from experiments import cli, values


def main(config) -> None:

    FLAGS = flags.FLAGS
    scales = guidance_sweep.scales_of(FLAGS.scales)
    if FLAGS.mixture:
        path = parsing.output("out", FLAGS.out, ".png")[".png"]
        guidance_sweep.on_mixture(scales, path)
        print(path)
        return
    guides = [part.strip() for part in FLAGS.guides.split(";") if part.strip()]
    if not guides:
        raise UserError(
            f"--guides is empty; name some, separated by ';', such as '{guidance_sweep.GUIDES}'"
        )
    text = guidance_sweep.on_model(
        config, Path(FLAGS.workdir), guides, scales, FLAGS.num, FLAGS.features
    )
    print(
        f"{text}\n{Path(FLAGS.workdir) / 'guidance_sweep.png'} and guidance_sweep_strips.png show it",
        file=sys.stdout,
    )


if __name__ == "__main__":
    values.path_flag("workdir", None, "the folder of a trained model")
    flags.DEFINE_string("scales", "0,0.5,1,1.5,2,3,4,6", "of guidance, with commas; 1: none")
    flags.DEFINE_string(
        "guides", guidance_sweep.GUIDES, "separated by ';'; see diffusion_jax/denoisers/guides.py"
    )
    values.integer_flag("num", 1000, "images in each cell", 10, 1_000_000)
    flags.DEFINE_string(
        "features",
        "",
        "features of the images, with commas, as in experiments.evaluate; the figure shows the first",
    )
    flags.DEFINE_bool(
        "mixture", False, "instead of a model, the picture of a mixture with exact denoisers"
    )
    values.path_flag("out", "guidance_mixture.png", "where --mixture writes")
    cli.launch(main, config="workdir", without=("mixture",), short=("sampler", "nfe"))
