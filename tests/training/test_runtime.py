"""What must be set before JAX starts."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib import metadata
from types import SimpleNamespace

import pytest

from diffusion_jax.training import runtime


@pytest.mark.parametrize(
    "version, environ, expected",
    [
        ("0.10.2", {"JAX_PLATFORMS": "cpu"}, runtime.CPU_FLAG + "=-individual_convolution"),
        (
            "0.12.0.1",
            {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--a=1"},
            "--a=1 " + runtime.CPU_FLAG + "=-individual_convolution",
        ),
        (
            "0.10.2",
            {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": runtime.CPU_FLAG + "="},
            runtime.CPU_FLAG + "=",
        ),  # the user's own wins
        ("0.99.0", {"JAX_PLATFORMS": "cpu"}, None),
        ("0.10.2", {"JAX_PLATFORMS": "cuda,cpu"}, None),
    ],
)
def test_cpu_flag_only_on_cpu_and_on_versions_it_was_tried_on(
    monkeypatch, version, environ, expected
):
    monkeypatch.setattr(metadata, "version", lambda name: version)
    added = runtime.set_cpu_flags(environ)
    assert environ.get("XLA_FLAGS") == expected and added == ("individual" in (expected or ""))


def test_an_installed_accelerator_plugin_means_no_cpu_flag(monkeypatch):
    monkeypatch.setattr(
        metadata, "entry_points", lambda group: [SimpleNamespace(name="xla_cuda12")]
    )
    assert not runtime.cpu_only({})


def test_runtime_does_not_import_jax():
    code = "import sys, diffusion_jax.training.runtime as runtime; runtime.cpu_only(); "
    code += "assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is a function of glibc")
def test_freed_memory_is_kept():
    """A process touches a large block of memory again without new pages, unless its user has set
    variables of malloc or has an accelerator.
    """
    code = """if True:
        import ctypes, resource
        from diffusion_jax.training import runtime
        kept = [runtime.keep_freed_memory(given) for given in (
            {"JAX_PLATFORMS": "cuda"}, {"JAX_PLATFORMS": "cpu", "MALLOC_ARENA_MAX": "2"},
            {"JAX_PLATFORMS": "cpu"})]
        assert kept == [False, False, True]
        for _ in range(2):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            memory = ctypes.CDLL(None)
            memory.malloc.restype, memory.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
            block = memory.malloc(ctypes.c_size_t(2**26))
            ctypes.memset(block, 1, 2**26)
            memory.free(block)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 100
    """
    subprocess.run([sys.executable, "-c", code], check=True)


def test_garbage_is_collected_rarely():
    """100,000 lists that live on are walked at most twice, and by default a hundred times."""
    code = """if True:
        import gc
        from diffusion_jax.training import runtime
        counts = []
        for _ in range(2):
            before = gc.get_stats()[0]["collections"]
            lists = [[] for _ in range(100_000)]
            counts.append(gc.get_stats()[0]["collections"] - before)
            runtime.collect_rarely()
        assert counts[0] > 20 and counts[1] <= 2, counts
    """
    subprocess.run([sys.executable, "-c", code], check=True)
