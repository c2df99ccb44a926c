"""What every main shares: a config from a file or a workdir with overrides, one clear line for a user's mistake, exit codes.

Several processes of one run meet here before anything touches a device: --coordinator=HOST:PORT --num_processes=N --process_id=I.
Exit statuses: experiments/exits.py.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Callable

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from diffusion_jax.errors import UserError, unknown
from diffusion_jax.training import distributed, runtime
from experiments import exits

UNFINISHED = exits.UNFINISHED

# Of every main. On TPU pods, SLURM, Open MPI and Kubernetes they are found out (training/distributed.py).
flags.DEFINE_string("coordinator", None, "several processes: HOST:PORT, an address of process 0, where all meet")
flags.DEFINE_integer("num_processes", None, "several processes: how many; 1: run alone, whatever the cluster says", lower_bound=1)
flags.DEFINE_integer("process_id", None, "several processes: which of them this is, from 0", lower_bound=0)
flags.DEFINE_integer("heartbeat_timeout", 100, "seconds of silence after which a process counts as dead and the others end",
                     lower_bound=1)  # fmt: skip
flags.DEFINE_integer("initialization_timeout", 300, "seconds to wait for all processes to appear", lower_bound=1)


def launch(main: Callable[[ConfigDict], None], *, config: str) -> None:
    """Run main(config). config: 'file', from --config=FILE.py:variant; 'workdir', from --workdir's config.json; 'none', empty.

    --config.KEY=VALUE overrides any value. Flags of the main's own are defined by it with absl.flags before.
    """
    app.run(lambda argv: _guard(main, flags.FLAGS.config), flags_parser=lambda argv: _parse(argv, config))


def _guard(main, config) -> None:
    """Run the command; a mistake, a signal or a system that refuses ends it with one line and the status of `exits`."""
    sys.stdout.reconfigure(errors="backslashreplace")  # names of files may hold bytes that are not UTF-8
    logging.set_verbosity(logging.WARNING)  # jax tells at INFO which accelerators are absent
    runtime.enable_compilation_cache()
    try:
        with exits.stoppable():
            _join()
            with distributed.quiet_others():
                main(config)
            sys.stdout.flush()  # a full disk shows here, not in a traceback at exit
    except exits.Stopped as stop:
        print(exits.stopped_line(stop.signal), file=sys.stderr, flush=True)
        distributed.leave(exits.STATUS[stop.signal])
    except KeyboardInterrupt:
        print("SIGINT: stopped at once; run the same command again", file=sys.stderr)
        distributed.leave(exits.INTERRUPTED)
    except Exception as error:
        status, line = _explained(error)
        if line is None or exits.wants_traceback():
            raise
        print(f"error: {line}", file=sys.stderr)
        distributed.leave(status)


def _explained(error: Exception) -> tuple[int, str | None]:
    """(exit status, the line to print) of an error that the user or the system caused; None for a fault of ours."""
    if isinstance(error, UserError):
        return exits.MISTAKE, str(error)
    if isinstance(error, OSError) and error.strerror:
        return exits.MISTAKE, exits.system_line(error)
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)[:200]:
        return exits.MISTAKE, ("out of memory: lower config.data.batch_size or config.sampler.batch_size, or the width of the "
                               "network; config.model.remat=block trades memory for time")  # fmt: skip
    return exits.UNFINISHED, distributed.lost(error)


def _join() -> None:
    """Meet the other processes of this run, if there are any."""
    FLAGS = flags.FLAGS
    distributed.initialize(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id,
                           timeout=FLAGS.initialization_timeout, heartbeat_timeout=FLAGS.heartbeat_timeout)  # fmt: skip


def _fail(error: Exception | str) -> None:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)


def _parse(argv: list[str], source: str) -> list[str]:
    try:
        config = {"file": _from_file, "workdir": _from_workdir, "none": lambda argv: ConfigDict()}[source](argv)
        _check_overrides(argv, config)
        argv = [arg for arg in argv if not arg.startswith(("--config=", "-config="))]
        config_flags.DEFINE_config_dict("config", config, "override any value: --config.KEY=VALUE", sys_argv=argv)
        rest = flags.FLAGS(argv)
        if len(rest) > 1:
            raise UserError(f"cannot use the argument '{rest[1]}'; values are set as --flag=value or --config.KEY=VALUE")
        return rest
    except OSError as error:
        _fail(exits.system_line(error))
    except (UserError, flags.Error) as error:
        _fail(str(error).replace("\n", " "))


def _help(argv: list[str]) -> bool:
    """Whether absl is asked for a list of flags, for which no config is needed."""
    return any(arg.lstrip("-").startswith("help") for arg in argv[1:] if arg.startswith("-"))


def integers(flag: str, text: str) -> list[int]:
    """'0,1,2' -> [0, 1, 2]; '' -> []. UserError naming the flag for anything else."""
    try:
        return [int(part) for part in text.split(",")] if text else []
    except ValueError:
        raise UserError(f"--{flag}={text}: write whole numbers with commas, such as 0,1,2") from None


def names(text: str) -> list[str]:
    """'pixels, classifier' -> ['pixels', 'classifier']; '' -> []."""
    return [part.strip() for part in text.split(",") if part.strip()]


def _value(argv: list[str], flag: str) -> str | None:
    """The value of --flag=value in argv, before absl has seen it."""
    for i, arg in enumerate(argv):
        if arg.lstrip("-").startswith(flag + "=") and arg.startswith("-"):
            return arg.partition("=")[2]
        if arg in (f"--{flag}", f"-{flag}") and i + 1 < len(argv):
            raise UserError(f"write {arg}=VALUE, with an equals sign")
    return None


def _from_file(argv: list[str]) -> ConfigDict:
    spec = _value(argv, "config")
    if spec is None and _help(argv):
        return ConfigDict()
    if spec is None:
        raise UserError("--config is missing; for example --config=configs/digits.py:vp")
    return load_config(spec)


def load_config(spec: str) -> ConfigDict:
    """'configs/digits.py:vp' -> its ConfigDict, locked. UserError for a missing file or an unknown variant."""
    path, _, variant = spec.partition(":")
    if not Path(path).is_file():
        found = sorted(str(p) for p in Path(path).parent.glob("*.py") if p.stem not in ("base", "__init__"))
        raise unknown("config file", path, found) if found else UserError(f"config file '{path}' does not exist")
    module_spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return (module.get_config(variant) if variant else module.get_config()).lock()


def _from_workdir(argv: list[str]) -> ConfigDict:
    workdir = _value(argv, "workdir")
    if workdir is None:
        if _help(argv):
            return ConfigDict()
        raise UserError("--workdir is missing: the folder that experiments.train wrote")
    return saved_config(workdir)


def saved_config(workdir: str) -> ConfigDict:
    """The resolved config of a workdir, locked. UserError where there is none."""
    from diffusion_jax import workdir as folder

    return folder.saved_config(workdir)


def _check_overrides(argv: list[str], config: ConfigDict) -> None:
    """Every --config.KEY names a key that exists; absl would answer with a traceback."""
    keys = [path for path, _ in _leaves(config)]
    for arg in argv[1:]:
        name = arg.partition("=")[0].lstrip("-")
        name = name.removeprefix("no") if name.startswith("noconfig.") else name
        if name.startswith("config.") and name.removeprefix("config.") not in keys:
            raise unknown("config key", name.removeprefix("config."), keys)


def _leaves(config: ConfigDict, prefix: str = ""):
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
