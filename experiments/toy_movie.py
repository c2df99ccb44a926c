"""Animate points in the plane from noise to data, under several processes and samplers.

python -m experiments.toy_movie
python -m experiments.toy_movie --target=checkerboard --processes='VP;EDM;Cosine' --nfe=24
python -m experiments.toy_movie --samplers='ddim;dpmpp_2m@karras;euler_maruyama' --num=400

The denoiser of an analytic target is exact, so nothing is trained. A row is a process and a column
a sampler; the density of the noised target is exact, and the particles are drawn on it. Writes
NAME.gif, and NAME.png with the samples and some of their paths. `experiments.compare_samplers
--list` prints all targets, processes, samplers and grids.
"""

from absl import flags

from experiments import cli, values

if __name__ == "__main__":
    flags.DEFINE_string(
        "target", "gmm8", "analytic target in the plane, such as checkerboard or 'gmm(modes=5)'"
    )
    flags.DEFINE_string(
        "processes", "VP;VE;RectifiedFlow", "processes separated by ';', one in each row"
    )
    flags.DEFINE_string(
        "samplers",
        "ddim;heun;ddpm",
        "samplers separated by ';', one in each column, each with @grid if it needs one",
    )
    values.integer_flag("nfe", 32, "evaluations of the denoiser for each particle", 1, 1000)
    values.integer_flag("num", 200, "number of particles in each panel", 1, 10_000)
    values.integer_flag("seed", 0, "seed of the first particle", 0, 2**31)
    values.integer_flag("side", 150, "pixels of a panel", 32, 1000)
    values.integer_flag(
        "tail", 4, "number of steps whose path is drawn behind some particles", 0, 100
    )
    flags.DEFINE_float("fps", 10.0, "frames in a second", lower_bound=1, upper_bound=50)
    values.path_flag(
        "out", "", "files to write, without the ending (default runs/toy_movie_TARGET)"
    )
    cli.launch("diffusion_jax.studies.toy_movie:toy_movie", config="none")
