"""Compare families of generative models: one data set, equal parameters, the same images seen.

python -m experiments.compare_families --config=configs/families.py:digits --workdir=runs/families
python -m experiments.compare_families --config=configs/families.py:fashion_mnist \
    --config.data.path=FOLDER --workdir=runs/f_fashion --jobs=2

The first takes minutes; the second takes hours, as all families are trained until they improve no
longer. With ':fast' (fashion_mnist:fast) each sees a fifteenth of the images. --families='vae;ddpm'
--seeds=0 trains these two alone, from one seed.

Every family is trained in WORKDIR/NAME_SEED, an ordinary workdir that every other command takes,
with the first seed, and those of config.repeated with every seed, and is measured at several points
of its training. Running the same command again resumes, also after kill -9. --jobs trains so many
families at a time, each in a process on a core of its own; with --jobs=1 they use all cores one
after the other. --others names workdirs of trained models, such as those of experiments.few_step,
which are measured too; their training time does not include a teacher's. Writes families.html,
which holds everything: the claims of the textbook with the measurements that decide each, pictures
and all numbers; and families.md, .json, .png and a figure for each claim.
"""

from absl import flags

from experiments import cli, values

if __name__ == "__main__":
    where = "folder of all runs and results; running the same command again resumes"
    values.path_flag("workdir", None, where, required=True)
    flags.DEFINE_string("families", "", "families, with semicolons (default all of the config)")
    flags.DEFINE_string("seeds", "", "training seeds, with commas (default those of the config)")
    flags.DEFINE_string("others", "", "workdirs of trained models to measure too, with commas")
    values.integer_flag("jobs", 1, "number of families at a time, each on its own core", 1, 1024)
    values.path_flag(
        "figures", "", "copy the figures to this beginning of a path, as docs/images/families"
    )
    cli.launch(
        "diffusion_jax.studies.families.comparison:compare_families", config="file", short=()
    )
