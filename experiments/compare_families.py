"""Why diffusion rather than a VAE? Every family on one data set, with as many parameters and as
many seconds to train.

python -m experiments.compare_families --config=configs/families.py:digits --workdir=runs/families
python -m experiments.compare_families --config=configs/families.py:mnist --config.data.path=FOLDER --workdir=runs/f_mnist
python -m experiments.compare_families --config=configs/families.py:digits --workdir=runs/a --families='vae;ddpm' --seeds=0
python -m experiments.compare_families --config=configs/families.py:digits --workdir=runs/families --others=runs/few_step/ect

Every family is trained in WORKDIR/NAME_SEED, an ordinary workdir which every other command takes,
from the first seed, and those of config.repeated from every seed. How many steps its seconds buy is
measured first, and kept, so that the same command goes on where it was stopped. --others: workdirs
that are there, as those of experiments.few_step, measured beside them; their seconds are their own,
not a teacher's. Writes families.html, which holds everything: the claims of the textbook with what
was measured of each, pictures, all numbers; and families.md, .json, .png.
"""

from __future__ import annotations

from absl import flags

from diffusion_jax import parsing
from diffusion_jax.studies import family_comparison
from experiments import cli, values


def main(config) -> None:
    FLAGS = flags.FLAGS
    print(
        family_comparison.compare(
            config,
            FLAGS.workdir,
            FLAGS.families,
            FLAGS.seeds,
            parsing.paths("others", FLAGS.others),
        )
    )
    print(f"{FLAGS.workdir}/families.html holds all of this, with pictures")


if __name__ == "__main__":
    values.path_flag(
        "workdir", None, "where everything goes; the same command goes on", required=True
    )
    flags.DEFINE_string("families", "", "with semicolons; by default all of the config")
    flags.DEFINE_string("seeds", "", "with commas; by default those of the config")
    flags.DEFINE_string("others", "", "trained workdirs that are measured beside them, with commas")
    cli.launch(main, config="file", short=())
