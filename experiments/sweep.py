r"""Find the best settings over any config keys: sampling keys of a trained model, training keys.

python -m experiments.sweep --workdir=runs/a --over='sampler.name=[ddim, dpmpp_2m, heun]' \
    --over='sampler.guidance=1:4:0.5' --over='sampler.nfe=[5, 10, 20, 50]'
python -m experiments.sweep --config=configs/digits.py:vp --out=runs/rates \
    --over='optimizer.learning_rate=1e-4:1e-2:log5' --over='sampler.ema=["", params]'

All cells draw the same seeds. By successive halving, the default, most cells get few images. Every
combination of training keys is a run of its own in OUT/runs/. Writes sweep.md, .csv, .json, .png
and .html: a table, the Pareto front of quality against NFE and time, and the best settings as
commands to paste. Measured cells are kept in OUT/cells/. docs/sweep.md says more.
"""

from absl import flags

from experiments import cli, values

if __name__ == "__main__":
    values.path_flag("workdir", None, "folder of a trained model")
    flags.DEFINE_multi_string(
        "over",
        [],
        "config key and its values: KEY=[A, B], KEY=START:STOP:STEP or KEY=START:STOP:logCOUNT",
    )
    flags.DEFINE_string(
        "search",
        "halving()",
        "grid(), random(cells=20, seed=0), or halving(share=0.2), which draws at most that share "
        "of the grid's images",
    )
    flags.DEFINE_string(
        "for_each",
        "",
        "keys, with commas, for each of whose values the best cell is found (default sampler.nfe, "
        "if it varies)",
    )
    images = "number of images of a cell that is fully measured"
    values.judge_flags(1000, images, standard="accuracy,frechet")
    flags.DEFINE_string("metric", "frechet", "score that is optimized")
    rungs = "rungs in which weak training runs are stopped early; 1 trains all runs to their end"
    values.integer_flag("training_rungs", 1, rungs, 1, 10)
    values.path_flag("out", "", "folder of the sweep (default WORKDIR/sweep)", stored=values.FOLDER)
    where = "do all work here, or write jobs for SLURM, with a script that submits them"
    flags.DEFINE_enum("launch", "local", ["local", "slurm"], where)
    flags.DEFINE_bool("submit", False, "submit the jobs of --launch=slurm")
    flags.DEFINE_string("job", "", "the one job of OUT/jobs.txt to do")
    study = "diffusion_jax.studies.sweep.command:sweep"
    cli.launch(study, config="either", overridden="asked", spec="config_file")
