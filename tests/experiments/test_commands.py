"""The command line as a user types it: flags, config, overrides, short forms, paths, --help; one
line for every mistake.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from diffusion_jax import parsing
from diffusion_jax.assembly import components, config_files
from diffusion_jax.assembly.build import Family, build, members, resolved
from diffusion_jax.errors import UserError, nearest
from diffusion_jax.processes import schedules
from diffusion_jax.studies import few_step_methods
from experiments import session, usage

ROOT = Path(__file__).parents[2]
FILE = "--config=configs/digits.py:vp"
RUN = "--workdir=run"


# One process parses all command lines: what each gives is the config's changed keys and the flags,
# or status and error.
PARSE = """
import contextlib, io, json, sys
from absl import flags
from diffusion_jax.assembly import config_files
from experiments import arguments, cli, values
values.path_flag("workdir", None, "the folder of a run", required=True)
values.path_flag("out", "", "where to write")
values.integer_flag("num", 64, "number of images", 1, 1000)
flags.DEFINE_float("scale", 1.0, "a number")
flags.DEFINE_bool("search", False, "a switch")
flags.DEFINE_enum("kind", "alpha", ["alpha", "beta"], "a choice")
flags.DEFINE_string("name", "", "a text")
plain = dict(config_files._leaves(config_files.load_config("configs/digits.py:vp")))
for source, argv in json.load(sys.stdin):
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            parsed = arguments.parse(["command", *argv], source, modes=("search",) if source == "workdir" else ())
        leaves = dict(config_files._leaves(parsed.config))
        out = {"config": {k: v for k, v in leaves.items() if plain.get(k) != v}, "flags": parsed.flags}
    except SystemExit as end:
        out = {"status": end.code, "said": said.getvalue()}
    flags.FLAGS.unparse_flags()
    print(json.dumps(out))
"""

TAKEN = {  # command line: keys of the config and flags that it sets
    (FILE, RUN, "--config.training.steps=1e3"): {"training.steps": 1000},
    (FILE, RUN, "--config.training.steps", "7", "--config.data.flip"): {
        "training.steps": 7,
        "data.flip": True,
    },
    (FILE, RUN, "--noconfig.conditional"): {"conditional": False},
    ("--config", "configs/digits.py:vp", "--workdir", "run", "--num", "5", "--search"): {
        "workdir": "run",
        "num": 5,
        "search": True,
    },
    (FILE, RUN, "--search", "false", "--scale", "-2.5"): {"search": False, "scale": -2.5},
    (FILE, RUN, "--config.model.multipliers=(1,)", "--config.model.multipliers=(1,2,3)"): {
        "model.multipliers": [1, 2, 3]
    },
    (FILE, RUN, "--config.ema.halflives=100", "--config.ema.halflives=200"): {
        "ema.halflives": [200]
    },
    (FILE, RUN, "--config.model.norm=(4,1e-6)"): {"model.norm": [4, 1e-6]},
    (FILE, RUN, "--config.model.norm=(4,1e-6)", "--config.model.norm=None", "--num=9"): {"num": 9},
    (FILE, RUN, "--config.model.head_width=None"): {"model.head_width": None},
    (FILE, RUN, "--nfe=20", "--sampler=dpmpp_2m", "--guidance=2", "--steps=50"): {
        "sampler.nfe": 20,
        "sampler.name": "multistep.dpmpp_2m",
        "sampler.guidance": 2.0,
        "training.steps": 50,
    },
    (FILE, RUN, "--config.process=VP(beta_max=16.0)"): {"process": "schedules.VP(beta_max=16.0)"},
    (FILE, RUN, "--config.objective=flow_matching(time=logit_normal(std=1.2))"): {
        "objective": "denoising.flow_matching(time=times.logit_normal(std=1.2))"
    },
    (FILE, "--workdir=~/runs/a", "--out=cfg1.5", "--config.data.path=~/images"): {
        "workdir": "HOME/runs/a",
        "out": "cfg1.5",
        "data.path": "HOME/images",
    },
    (FILE, RUN, "--num=1e2"): {"num": 100},
}

REFUSED = {  # command line: what the one line says
    (FILE, RUN, "--workdr=x"): "unknown flag '--workdr'; did you mean '--workdir'?",
    (FILE, RUN, "--learning_rate=1"): "did you mean '--config.optimizer.learning_rate'?",
    (FILE, RUN, "foo"): "cannot use the argument 'foo'",
    (FILE, "--workdir="): "--workdir is empty; name a path, or leave the flag out",
    (FILE, RUN, "--out="): "--out is empty",
    (
        FILE,
        RUN,
        "--name=",
    ): "--name is empty; write a value, or leave the flag out (is a shell variable unset?)",
    (FILE, RUN, "--num", " "): "--num is empty",
    (FILE, "--workdir=~nobody-at-all/x"): "there is no user ~nobody-at-all",
    (FILE,): "--workdir is missing: the folder of a run",
    (RUN,): "--config is missing; for example --config=configs/digits.py:vp",
    (RUN, "--config="): "--config is empty",
    (RUN, "--config=configs/base.py"): "configs/base.py has no get_config()",
    (RUN, "--config=README.md"): "README.md is no Python file",
    (RUN, "--config=configs"): "unknown config file 'configs'",
    (RUN, "--config=configs/digits.py:vpp"): "unknown variant 'vpp'; did you mean 'vp'?",
    (FILE, RUN, "--num"): "--num has no value; write --num=VALUE",
    (FILE, RUN, "--num=many"): "--num=many: it must be an integer in the range [1, 1000]",
    (FILE, RUN, "--num=1e30"): "--num=1e30: it must be an integer in the range [1, 1000]",
    (FILE, RUN, "--scale=nan"): "--scale=nan: it must be a number",
    (FILE, RUN, "--scale=inf"): "--scale=inf: it must be a number",
    (FILE, RUN, "--kind=alpa"): "unknown value of --kind 'alpa'; did you mean 'alpha'?",
    (FILE, RUN, "--config.model=3"): "config.model is a section; set one of its keys",
    (FILE, RUN, "--config.training.step=3"): "did you mean 'training.steps'?",
    (FILE, RUN, "--config.training.steps"): "--config.training.steps has no value",
    (
        FILE,
        RUN,
        "--config.data.batch_size=0",
    ): "config.data.batch_size=0: it must be a whole number from 1",
    (FILE, RUN, "--config.training.keep=0"): "config.training.keep=0",
    (FILE, RUN, "--config.ema.ramp=nan"): "config.ema.ramp=nan",
    (
        FILE,
        RUN,
        "--config.seed=4294967301",
    ): "config.seed=4294967301: it must be a whole number from 0 to 4294967295",
    (FILE, RUN, "--config.seed=9223372036854775808"): "config.seed=9223372036854775808",
    (FILE, RUN, "--nfe=999999999"): "config.sampler.nfe=999999999",
    (FILE, RUN, "--sampler=ddimm"): "unknown sampler 'ddimm'; did you mean 'ancestral.ddim'?",
    (FILE, RUN, "--sampler=ddim(eta='a')"): "ancestral.ddim: eta='a': it must be a number",
    (
        FILE,
        RUN,
        "--config.process=VE(sigma_min=100.0,sigma_max=1.0)",
    ): "schedules.VE(sigma_min=100.0, sigma_max=1.0)",
    (
        FILE,
        RUN,
        "--config.model.multipliers=(1.5,)",
    ): "config.model.multipliers=(1.5,): it must be a tuple",
    (FILE, RUN, "--config.model.attention=None"): "config.model.attention=None: it must be a tuple",
}


@pytest.fixture(scope="module")
def parsed():
    lines = [["file", list(line)] for line in (*TAKEN, *REFUSED)]
    done = subprocess.run(
        [sys.executable, "-c", PARSE],
        input=json.dumps(lines),
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip((*TAKEN, *REFUSED), map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("line", TAKEN, ids=" ".join)
def test_a_command_line_sets_flags_and_keys(line, parsed):
    found = parsed[line]
    assert "config" in found, found
    given = {key: value for key, value in found["flags"].items() if key in TAKEN[line]} | found[
        "config"
    ]
    wanted = {
        key: value.replace("HOME", os.path.expanduser("~")) if isinstance(value, str) else value
        for key, value in TAKEN[line].items()
    }
    assert given == wanted


@pytest.mark.parametrize("line", REFUSED, ids=" ".join)
def test_a_mistake_in_a_command_line_is_one_line(line, parsed):
    assert parsed[line]["status"] == 2
    assert parsed[line]["said"].startswith("error: ") and parsed[line]["said"].count("\n") == 1
    assert REFUSED[line] in parsed[line]["said"]


@pytest.mark.parametrize("name", ["train", "sample", "statistics"])
def test_help_names_flags_configs_and_overrides_and_is_no_mistake(name):
    done = subprocess.run(
        [sys.executable, "-m", f"experiments.{name}", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and not done.stderr
    assert f"python -m experiments.{name}" in done.stdout and "--workdir" in done.stdout
    assert ("configs/digits.py" in done.stdout and "Variants: ddpm, vp" in done.stdout) == (
        name != "sample"
    )
    assert ("or --nfe=20" in done.stdout) == (
        name != "statistics"
    ) and "--config.KEY=VALUE" in done.stdout


def test_the_package_lists_every_command_in_a_line_each():
    listed = usage.overview().splitlines()
    mains = {
        p.stem
        for p in (ROOT / "experiments").glob("[!_]*.py")
        if '\nif __name__ == "__main__":' in p.read_text()
    }
    assert (
        set(usage.commands()) == mains and {"train", "sample", "evaluate", "get_weights"} <= mains
    )
    for name in mains:
        [line] = [line for line in listed if line.startswith(f"  {name} ")]
        assert 20 < len(line) <= 115


def test_help_starts_without_jax_and_a_closed_pipe_is_no_traceback():
    script = "import runpy, sys; sys.argv = ['-m', 'sample', '--help']\ntry: runpy.run_module('experiments', run_name='__main__')\n"
    script += "finally: assert 'jax' not in sys.modules and 'flax' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with subprocess.Popen(
        [sys.executable, "-m", "experiments"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


CLOSED = """
from experiments import cli
def count():
    for i in range(100_000):
        print(i, flush=True)
cli.launch("__main__:count", config="none")
"""


def test_a_command_whose_reader_has_gone_ends_without_a_traceback():
    with subprocess.Popen(
        [sys.executable, "-c", CLOSED], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"0\n"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_streams_that_are_closed_or_full_end_no_command_with_a_traceback():
    for redirection, status, said in (
        (">/dev/full", 2, "error: No space left on device"),
        (">/dev/full 2>/dev/full", 2, ""),
    ):
        done = subprocess.run(
            f"exec {sys.executable} -m experiments {redirection}",
            shell=True,
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert (
            done.returncode == status
            and done.stderr.startswith(said)
            and "Traceback" not in done.stderr
        )
    script = (
        "import os, sys; from experiments import exits; exits.open_closed_streams()\n"
        "file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT); assert file > 2\n"
        "print('x', flush=True), print('y', file=sys.stderr, flush=True), sys.stdin.read()"
    )
    for closed in (">&-", "2>&-", "<&-", ">&- 2>&- <&-"):
        done = subprocess.run(
            f'exec {sys.executable} -c "{script}" /dev/null {closed}',
            shell=True,
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "text, words",
    [
        (
            "import nonexistent_module",
            "line 1: ModuleNotFoundError: No module named 'nonexistent_module'",
        ),
        ("\n1 / 0", "line 2: ZeroDivisionError"),
        ("def get_config(variant='a'):\n  return missing", "line 2: NameError"),
    ],
)
def test_a_config_file_that_raises_is_one_line(tmp_path, text, words):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(UserError, match=words):
        config_files.load_config(f"{tmp_path}/mine.py:b")


# ---- values of flags
@pytest.mark.parametrize(
    "text, written",
    [
        ("cfg1.5", "cfg1.5.npz"),
        ("a/cfg1.0", "a/cfg1.0.npz"),
        ("run.v2", "run.v2.npz"),
        ("a.npz", "a.npz"),
        ("a.NPZ", "a.npz"),
        ("a", "a.npz"),
        ("1.npz.npz", "1.npz.npz"),
        ("", "kept/name.1.npz"),
    ],
)
def test_out_keeps_its_dots_and_takes_its_own_ending(text, written):
    found = parsing.output("out", text, ".npz", ".png", default="kept/name.1")
    assert found == {".npz": Path(written), ".png": Path(written).with_suffix(".png")}


@pytest.mark.parametrize("text", ["a.jpg", "a.json", "a.zip", "a.PDF", "a.npy", "folder/", "."])
def test_out_of_another_format_and_a_folder_are_refused(text):
    with pytest.raises(UserError, match="--out="):
        parsing.output("out", text, ".npz", ".png")


def test_a_folder_to_write_to_is_no_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file; name a folder"):
        parsing.folder("out", tmp_path / "file")


def test_lists_of_numbers_paths_and_scores():
    assert parsing.integers("nfe", "5,10", 1, 10) == [5, 10] and parsing.integers("nfe", "") == []
    assert parsing.paths("others", "~/a, b") == [os.path.expanduser("~/a"), "b"]
    assert parsing.metrics("fd, kid,precision,recall") == ["frechet", "kid", "prdc"]
    for text in ("a", "5,", "11", "0", "9" * 400):
        with pytest.raises(UserError, match="--nfe="):
            parsing.integers("nfe", text, 1, 10)
    for text in ("nan", "inf", "-1", "a", ""):
        with pytest.raises(UserError, match="--scales="):
            parsing.numbers("scales", text, 0, 1000)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"sampler": "foo"}, "unknown sampler 'foo'"),
        ({"sampler": "ddim@karass"}, "did you mean 'karras'"),
        ({"methods": ["cdd"]}, "did you mean 'cd'"),
        ({"budgets": [50]}, "--nfe is empty"),
    ],
)
def test_few_step_checks_names_before_it_trains(change, said):
    given = {
        "recipe": "configs/digits_few_step.py",
        "methods": ["cd"],
        "size": "",
        "sampler": "ddim",
        "budgets": [1, 50],
    }
    few_step_methods.check_names(*given.values())
    with pytest.raises(UserError, match=said):
        few_step_methods.check_names(*(given | change).values())


# ---- specs
FAMILIES = {name: value for name, value in vars(components).items() if isinstance(value, Family)}


@pytest.mark.parametrize(
    "given, full",
    [
        ("ddim", "ancestral.ddim"),
        ("heun", "ode.heun"),
        ("euler", "ode.euler"),
        ("dpmpp_2m", "multistep.dpmpp_2m"),
        ("DDIM", "ancestral.ddim"),
        ("dpm++_2m", "multistep.dpmpp_2m"),
        ("dpmpp_2m_sde", "sde.dpmpp_2m"),
        ("euler_a", "ancestral.euler_ancestral"),
        ("ddim(eta=0.5)", "ancestral.ddim(eta=0.5)"),
        ("ancestral.ddim", "ancestral.ddim"),
        ("ode.heun()", "ode.heun()"),
        (
            "corrector.with_corrector(ddim, langevin(snr=0.1))",
            "corrector.with_corrector(ancestral.ddim, corrector.langevin(snr=0.1))",
        ),
    ],
)
def test_bare_names_and_other_programs_names_resolve(given, full):
    assert resolved(components.SAMPLERS, given) == full
    build(components.SAMPLERS, given)


def test_aliases_name_samplers_that_exist_and_suggestions_are_near():
    known = members(components.SAMPLERS)
    assert set(components.SAMPLERS.aliases.values()) <= set(known)
    wrong = {
        "ddimm": "ancestral.ddim",
        "huen": "ode.heun",
        "ode.hun": "ode.heun",
        "eulr": "ode.euler",
        "unipcc": "multistep.unipc",
        "xyzzyx": "",
    }
    assert {name: nearest(name, known) for name in wrong} == wrong


@pytest.mark.parametrize("family", FAMILIES)
def test_every_number_of_every_component_is_checked_by_name(family):
    """No member takes text, nan or an infinity for a number, and none takes 10^30: they name the
    argument.
    """
    arguments = {
        "OBJECTIVES": (schedules.VP(),),
        "GRIDS": (schedules.VP(), 5),
        "MEASUREMENTS": ((8, 8, 1),),
        "MASKS": ((8, 8, 1),),
        "ENCODERS": (16, None),
    }.get(family, ())
    family, checked = FAMILIES[family], 0
    for name, function in members(family).items():
        for parameter, annotation in getattr(function, "__annotations__", {}).items():
            if annotation not in ("int", "float") or parameter in (
                "n",
                "max_length",
                "num_classes",
            ):
                continue
            for bad in ('"a"', "1e999", "None", "(1, 2)", "True"):
                with pytest.raises(UserError, match=rf"{parameter}=.*it must be a|{parameter}"):
                    build(family, f"{name}({parameter}={bad})", *arguments)
            checked += 1
    assert checked or family.kind in (
        "mask",
        "discriminator",
        "text encoder",
        "guidance",
        "model",
        "parameterization",
    )


@pytest.mark.parametrize(
    "family, spec",
    [
        ("PROCESSES", "schedules.VE(sigma_min=100, sigma_max=1)"),
        ("PROCESSES", "schedules.VP(beta_max=-1)"),
        ("PROCESSES", "schedules.VP(t_min=0)"),
        ("PROCESSES", "schedules.VP(t_min=0.5, t_max=0.2)"),
        ("PROCESSES", "schedules.RectifiedFlow(t_max=1.0)"),
        ("PROCESSES", "schedules.EDM(sigma_max=1e30)"),
        ("PROCESSES", "discrete.ddpm(steps=100000000)"),
        ("PROCESSES", "discrete.ddpm(beta_min=0.5, beta_max=0.1)"),
        ("PROCESSES", "Shifted(shift=0)"),
        ("PARAMETERIZATIONS", "edm(sigma_data=0)"),
        ("PARAMETERIZATIONS", "eps(sigma_data=-1)"),
        ("PARAMETERIZATIONS", "eps(noise_input=3)"),
        ("OBJECTIVES", "denoising.edm(p_std=0)"),
        ("OBJECTIVES", "consistency.improved(s0=0)"),
        ("OBJECTIVES", "meanflow.meanflow(ratio=2)"),
        ("OBJECTIVES", "flow_matching(time=lognormal(std=-1))"),
        ("OBJECTIVES", "denoising.denoising(weight=min_snr(gamma=0))"),
        ("SAMPLERS", "ancestral.ddim(eta=-1)"),
        ("SAMPLERS", "multistep.unipc(order=2.5)"),
        ("SAMPLERS", "corrector.ncsn(steps=100000000)"),
        ("SAMPLERS", "with_corrector(sampler=heun, corrector=langevin(snr=0))"),
        ("SAMPLERS", "adaptive.tsit5(rtol=1e-30)"),
        ("GRIDS", "karras(rho=-1)"),
        ("GRIDS", "trailing(steps=100000000)"),
        ("TARGETS", "gmm(modes=100000000)"),
        ("TARGETS", "rings(std=0)"),
        ("GUIDES", "interval(cfg(rescale=2))"),
        ("METHODS", "repaint(resample=100000000)"),
        ("MASKS", "random(seed=-1)"),
        ("SAMPLERS", "ddim(eta=" + "1+" * 600 + "1)"),
        ("SAMPLERS", "ddim(eta=" + "-" * 600 + "1)"),
        ("SAMPLERS", "a" + ".a" * 600),
        ("SAMPLERS", "ddim" + "()" * 600),
        ("SAMPLERS", "ancestral(" * 90 + "ode.euler" + ")" * 90),
        ("SAMPLERS", f"ddim(eta=1{'0' * 400})"),
        ("SAMPLERS", "ddim(eta=1, eta=0)"),
        ("SAMPLERS", "ddim(eta=nan)"),
        ("SAMPLERS", "ddim(eta=-inf)"),
        ("SAMPLERS", "-" * 9000 + "1"),
        ("SAMPLERS", "(" * 9000),
        ("SAMPLERS", "x" * 20_000),
        ("SAMPLERS", "ddim(**{'eta': 1})"),
    ],
)
def test_arguments_out_of_range_are_one_line(family, spec):
    arguments = {
        "OBJECTIVES": (schedules.VP(),),
        "GRIDS": (schedules.VP(), 5),
        "MASKS": ((8, 8, 1),),
    }.get(family, ())
    with pytest.raises(UserError) as error:
        build(FAMILIES[family], spec, *arguments)
    assert "\n" not in str(error.value) and "refuses these arguments" not in str(error.value)
    with contextlib.suppress(UserError):
        resolved(FAMILIES[family], spec)


@pytest.mark.parametrize(
    "command, flag, said",
    [
        (
            "likelihood",
            "--nfe=3",
            "unknown flag '--nfe': config.sampler.nfe does nothing in this command",
        ),
        (
            "compare_samplers",
            "--sampler=heun",
            "unknown flag '--sampler'; did you mean '--samplers'?",
        ),
        ("sample", "--steps=3", "--steps sets config.training.steps, which only training uses"),
    ],
)
def test_short_forms_that_do_nothing_are_refused(command, flag, said):
    arguments = [sys.executable, "-m", f"experiments.{command}", "--workdir=run", flag]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1


def test_names_never_steer_a_terminal():
    """What a command prints goes through a stream that escapes control characters, but for those of
    lines and progress bars.
    """
    kept = io.StringIO()
    stream = session.Escaped(kept)
    assert stream.write("a\x1b]0;title\x07\tb\n\rc") == 16
    assert kept.getvalue() == "a\\x1b]0;title\\x07\tb\n\rc" and stream.getvalue() == kept.getvalue()


def test_a_mistake_in_a_spec_names_the_argument_and_long_ones_are_cut():
    for spec, words in (
        ("ddim(eta=1, eta=0)", "eta is given twice"),
        ("ddim(eta=nan)", "eta: it must be a number"),
        (
            "with_corrector(sampler=heun)",
            "'corrector'; corrector.with_corrector takes sampler, corrector",
        ),
    ):
        with pytest.raises(UserError, match=re.escape(words)):
            build(components.SAMPLERS, resolved(components.SAMPLERS, spec))
    for spec in ("ddim(eta=" + "-" * 600 + "1)", "x" * 20_000):
        with pytest.raises(UserError) as error:
            build(components.SAMPLERS, spec)
        assert len(str(error.value)) < 3000
