"""Train and compare few-step methods on one data set: consistency models, MeanFlow, and a teacher.

python -m experiments.few_step --workdir=runs/few_step
python -m experiments.few_step --workdir=runs/few_step --methods=cd,ect --num=1000 --search
python -m experiments.few_step --workdir=runs/b --recipe=configs/mnist_few_step.py --images=FOLDER

Trains the teacher (unless --teacher names one) and every method by the recipe's config, each in a
folder of its own, and judges their images at --nfe evaluations; the teacher's also at
--teacher_nfe. Writes few_step.md (method x evaluations: recognized, Fréchet distance, training
seconds), .json, .png (quality against evaluations) and _grid.png (the same seeds by every model).
Models and cells that are finished are found again by the same command. --search also places the
times of each method by the Fréchet distance.
"""

from absl import flags

from experiments import cli, values

if __name__ == "__main__":
    where = "folder of all models and results; running the same command again resumes"
    values.path_flag("workdir", None, where, required=True)
    recipe = "config file whose variants are the methods, and teacher"
    values.path_flag("recipe", "configs/digits_few_step.py", recipe)
    flags.DEFINE_string("size", "", "size of a recipe that has several: light or full")
    values.path_flag("images", "", "config.data.path (default the recipe's, or that of --teacher)")
    flags.DEFINE_string(
        "methods", "cd,ct,ict,ect,sct,scd,meanflow,imf", "variants of the recipe, with commas"
    )
    values.path_flag(
        "teacher", "", "workdir of a trained diffusion model (default: train the recipe's)"
    )
    flags.DEFINE_string("nfe", "1,2,4", "budgets of network evaluations, with commas")
    values.integer_flag(
        "teacher_nfe", 50, "further budget of the diffusion model, in evaluations", 1, 10_000
    )
    sampler = "sampler of the diffusion model, which must also run in few steps"
    flags.DEFINE_string("teacher_sampler", "ancestral.ddim", sampler)
    num = "number of images to judge in each cell"
    values.judge_flags(500, num, standard="accuracy,frechet")
    values.integer_flag("steps", 0, "steps of every training (default the recipe's)", 0, 10**9)
    flags.DEFINE_bool("search", False, "also place each method's times by the Fréchet distance")
    flags.DEFINE_multi_string(
        "override",
        [],
        "config key and value of every training, such as data.name=table; may be given repeatedly",
    )
    cli.launch("diffusion_jax.studies.few_step.methods:few_step", config="none")
