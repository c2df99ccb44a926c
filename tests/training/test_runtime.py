"""What must be set before JAX starts."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
from importlib import metadata
from types import SimpleNamespace

import pytest

from diffusion_jax.training import runtime
from experiments import loading


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


@pytest.mark.parametrize(
    "environ, libc, pages, asked",
    [
        ({"JAX_PLATFORMS": "cpu"}, ("glibc", "2.36"), "always [madvise] never", True),
        ({"JAX_PLATFORMS": "cpu"}, ("glibc", "2.35"), "always defer [madvise] never", True),
        ({"JAX_PLATFORMS": "cpu"}, ("glibc", "2.31"), "always [madvise] never", False),
        ({"JAX_PLATFORMS": "cpu"}, ("", ""), "always [madvise] never", False),
        ({"JAX_PLATFORMS": "cpu"}, ("glibc", "2.36"), "[always] madvise never", False),
        ({"JAX_PLATFORMS": "cpu"}, ("glibc", "2.36"), "always madvise [never]", False),
        ({"JAX_PLATFORMS": "cpu"}, ("glibc", "2.36"), None, False),
        ({"JAX_PLATFORMS": "cuda"}, ("glibc", "2.36"), "always [madvise] never", False),
        (
            {"JAX_PLATFORMS": "cpu", "MALLOC_ARENA_MAX": "2"},
            ("glibc", "2.36"),
            "always [madvise] never",
            False,
        ),
    ],
)
def test_large_pages_are_asked_for_where_they_exist_on_request(
    monkeypatch, tmp_path, environ, libc, pages, asked
):
    file = tmp_path / "enabled"
    if pages is not None:
        file.write_text(pages)
    monkeypatch.setattr(runtime, "ON_REQUEST", file)
    monkeypatch.setattr(platform, "libc_ver", lambda: libc)
    environ = dict(environ)
    assert runtime.ask_for_large_pages(environ) == asked
    assert environ.get("GLIBC_TUNABLES") == (runtime.LARGE_PAGES if asked else None)
    assert not runtime.ask_for_large_pages(environ)  # the process that is started with it


@pytest.mark.parametrize(
    "words, again",
    [
        (["-X", "dev", "-m", "experiments.train", "--workdir=a b"], True),
        (["-m", "pytest", "experiments"], False),
        (["-m", "pdb", "-m", "experiments.train"], False),
        (["script.py", "-m"], False),
    ],
)
def test_a_command_starts_again_for_large_pages_and_nothing_else_does(monkeypatch, words, again):
    started = []
    monkeypatch.setattr(sys, "orig_argv", ["python", *words])
    monkeypatch.setattr(runtime, "ask_for_large_pages", lambda: True)
    monkeypatch.setattr(os, "execve", lambda *given: started.append(given))
    monkeypatch.setattr(signal, "pthread_sigmask", lambda *given: None)
    for setting in ("set_cpu_flags", "collect_rarely"):
        monkeypatch.setattr(runtime, setting, lambda: None)
    loading._before_jax.__wrapped__()
    assert started == [(sys.executable, [sys.executable, *words], os.environ)] * again


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
