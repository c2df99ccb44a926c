"""Compare families of generative models: one data set, equal parameters, equal training time.

python -m experiments.compare_families --config=configs/families.py:digits --workdir=runs/families

--config=configs/families.py:mnist with --config.data.path=FOLDER compares them on MNIST;
--families='vae;ddpm' --seeds=0 trains these two alone, from one seed.

Every family is trained in WORKDIR/NAME_SEED, an ordinary workdir that every other command takes,
with the first seed, and those of config.repeated with every seed. The number of steps that fits the
seconds is measured first and kept, so that running the same command again resumes. --others names
workdirs of trained models, such as those of experiments.few_step, which are measured too; their
training time does not include a teacher's. Writes families.html, which holds everything: the claims
of the textbook with the measurements that decide each, pictures and all numbers; and families.md,
.json, .png.
"""

from absl import flags

from experiments import cli, values

if __name__ == "__main__":
    where = "folder of all runs and results; running the same command again resumes"
    values.path_flag("workdir", None, where, required=True)
    flags.DEFINE_string("families", "", "families, with semicolons (default all of the config)")
    flags.DEFINE_string("seeds", "", "training seeds, with commas (default those of the config)")
    flags.DEFINE_string("others", "", "workdirs of trained models to measure too, with commas")
    cli.launch("diffusion_jax.studies.family_comparison:compare_families", config="file", short=())
