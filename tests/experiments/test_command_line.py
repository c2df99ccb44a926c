"""The command line as a user types it; one line for every mistake."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


FILE = "--config=configs/digits.py:vp"


RUN = "--workdir=run"


# One process parses all command lines: what each gives is the config's changed keys and the flags,
# or status and error.
PARSE = """
import contextlib, io, json, sys
from absl import flags
from diffusion_jax.assembly import config_files, config_schema
from experiments import arguments, cli, values
values.path_flag("workdir", None, "the folder of a run", required=True)
values.path_flag("out", "", "where to write")
values.integer_flag("num", 64, "number of images", 1, 1000)
flags.DEFINE_float("scale", 1.0, "a number")
flags.DEFINE_bool("search", False, "a switch")
flags.DEFINE_enum("kind", "alpha", ["alpha", "beta"], "a choice")
flags.DEFINE_string("name", "", "a text")
plain = dict(config_schema.leaves(config_files.load_config("configs/digits.py:vp")))
for source, argv in json.load(sys.stdin):
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            modes = ("search",) if source == "workdir" else ()
            parsed = arguments.parse(["command", *argv], source, modes=modes)
        leaves = dict(config_schema.leaves(parsed.config))
        changed = {k: v for k, v in leaves.items() if plain.get(k) != v}
        out = {"config": changed, "flags": parsed.flags}
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
    (FILE, RUN, "--name=, ;"): "--name is empty; write a value",
    (FILE, "--workdir=~nobody-at-all/x"): "there is no user ~nobody-at-all",
    (FILE,): "--workdir is missing: the folder of a run",
    (RUN,): "--config is missing; for example --config=configs/digits.py:vp",
    (RUN, "--config="): "--config is empty",
    (RUN, "--config=configs/base.py"): "configs/base.py has no get_config()",
    (RUN, "--config=README.md"): "README.md is not a Python file",
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
