"""Compare samplers for a model at several budgets: samplers x grids x NFE, from the same seeds.

python -m experiments.compare_samplers --workdir=runs/a --samplers='ddim;dpmpp_2m@karras' --nfe=5,10
python -m experiments.compare_samplers --workdir=runs/a --nfe=1,2,4,50 --others=runs/cd,runs/imf
python -m experiments.compare_samplers --workdir=runs/sd --prompt="a red cat" --nfe=10,20,50
python -m experiments.compare_samplers --target=gmm8 --process='schedules.EDM()'
python -m experiments.compare_samplers --list

--target compares on an analytic target, which needs no training. --others adds trained models of
the same data. --list prints every sampler, grid, target and process.

Writes compare.html, which holds everything, and compare.png, compare_strips.png, compare.md and
compare.json. A sampler is a spec, followed by @grid if it uses another grid than the config's.
Every finished cell is kept in the folder compare/, where the same command finds it again. All
budgets of a sampler run in one compiled program.

The error of a deterministic sampler is the RMS difference per dimension between its x0 and the
exact solution from the same noise. For a target that is an adaptive float64 solve, and the samplers
run in float64 too; for a model it is a fine solve of the network's own ODE, whose own error the
page states.
"""

from absl import flags

from experiments import cli, values

if __name__ == "__main__":
    values.path_flag("workdir", None, "folder of a trained model")
    flags.DEFINE_string(
        "target",
        None,
        "analytic target instead of a model: gmm8, 'gmm(modes=20, dim=16)', checkerboard, ...",
    )
    flags.DEFINE_string("process", "schedules.VP()", "process of --target (a model has its own)")
    flags.DEFINE_string(
        "samplers", "", "specs separated by ';', each with @grid if it needs one (default a dozen)"
    )
    flags.DEFINE_string(
        "others",
        "",
        "workdirs of other models of the same data, with commas, each by its config's sampler",
    )
    flags.DEFINE_multi_string(
        "prompt", [], "caption, for a model of captions; used in turn, without data to compare with"
    )
    count = "number of samples in each cell (default 200, 8 with --prompt, 2000 of a target)"
    values.judge_flags(None, count, least=2, standard="accuracy,frechet")
    flags.DEFINE_string("nfe", "5,10,20,50", "budgets of network evaluations, with commas")
    flags.DEFINE_string("seeds", "", "seeds instead of --num, such as 1000-1199")
    noise = "noise instead of the config's; brownian is one path for all budgets"
    flags.DEFINE_enum("noise", None, ["independent", "brownian"], noise)
    out = "folder to write to (default the workdir, or runs/compare_TARGET)"
    values.path_flag("out", "", out, stored=values.FOLDER)
    flags.DEFINE_bool("fresh", False, "run every cell again")
    flags.DEFINE_bool("list", False, "print every sampler, grid, target and process, and stop")
    study = "diffusion_jax.studies.samplers.comparison"
    other = {"list": f"{study}:print_listing", "target": f"{study}:compare_on_target"}
    cli.launch(f"{study}:compare_samplers", config="workdir", instead=other, short=("guidance",))
