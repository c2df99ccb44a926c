"""What all tests share: programs are compiled in haste, and kept between runs; the files that take
longest begin.
"""

from __future__ import annotations

import gc
import getpass
import os
import tempfile
from importlib import metadata

import jax

from diffusion_jax.training import runtime

# Nearly all of the suite's time is XLA's, and its programs run for moments: most of it is saved by
# not optimizing them. Subprocesses inherit the flags; flags of the user's own come last, and win.
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


if metadata.version("jaxlib").startswith("0.10."):  # later ones do not know the flag, and would end
    QUICK += " --xla_cpu_use_fusion_emitters=false"


ON_ACCELERATOR = os.environ.get("ACCELERATOR_TESTS") == "required"  # make test-accelerator
# Kernels of an accelerator are tested as users run them, and its memory is shared with the
# processes that some tests start.
if ON_ACCELERATOR:
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
elif QUICK not in os.environ.get("XLA_FLAGS", ""):  # as it is in a worker of pytest-xdist
    os.environ["XLA_FLAGS"] = f"{QUICK} {os.environ.get('XLA_FLAGS', '')}".strip()
    runtime.set_cpu_flags()  # as every main does: the same flags are the same compiled programs


CACHE = os.path.join(tempfile.gettempdir(), f"diffusion_jax-tests-{getpass.getuser()}")
os.makedirs(CACHE, mode=0o700, exist_ok=True)
# compiled programs are code: those of other users of this machine are not run
if os.stat(CACHE).st_uid == os.getuid():
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", CACHE)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# subprocesses read the environment; JAX has read it already in this process, when it was imported
jax.config.update("jax_compilation_cache_dir", os.environ.get("JAX_COMPILATION_CACHE_DIR"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


# A worker takes whole files (--dist loadfile), so that a module's fixtures and programs are made
# once; those that take more than ten seconds go first, the longest before the others.
LONGEST = (
    "samplers/test_samplers",
    "training/test_parallel",
    "samplers/test_orders",
    "experiments/test_runs",
    "fuzz/test_fuzz",
    "experiments/test_lowering",
    "training/test_nonfinite",
    "training/test_full_disks",
    "assembly/test_few_step",
    "training/test_faults",
    "samplers/test_grids",
    "studies/test_sampler_comparison",
    "studies/test_grid_search",
    "inverse/test_restore",
    "targets/test_targets",
    "likelihood/test_likelihood",
    "models/test_unet",
    "studies/test_benchmark",
    "studies/test_likelihoods",
    "assembly/test_classifier",
    "experiments/test_every_config",
    "samplers/test_adaptive",
    "samplers/test_parity",
    "assembly/test_latent",
    "assembly/test_old_workdirs",
    "objectives/test_few_step_training",
    "studies/test_inverse_benchmark",
    "pretrained/test_converted_networks",
    "studies/test_family_comparison",
)


def pytest_collection_modifyitems(items):
    place = {name: number for number, name in enumerate(LONGEST)}

    def order(item):
        return place.get(f"{item.path.parent.name}/{item.path.stem}", len(LONGEST))

    items.sort(key=order)


def pytest_collection_finish():
    """The modules and tests that are there for good are left out of every later collection."""
    gc.collect()
    gc.freeze()


MOST_MAPS = 8_000  # of memory regions; a process that has more drops its compiled programs


def pytest_runtest_teardown(item, nextitem):
    """After the last test of a file compiled programs are dropped, if there are many.

    Files share the programs of single operations. But a process may map 65,530 regions of memory on
    Linux, and every program of XLA takes four: a worker that kept those of all its files ended in a
    segmentation fault while it compiled.
    """
    last = nextitem is None or nextitem.path != item.path
    if last and maps() > MOST_MAPS:
        jax.clear_caches()
        gc.collect()


def maps() -> int:
    """The regions of memory that this process has mapped; more than allowed where unknown."""
    try:
        with open("/proc/self/maps", "rb") as file:
            return sum(1 for _ in file)
    except OSError:
        return MOST_MAPS + 1
