"""The local page of a trained model, as a command: gradio's server, until a signal ends it."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.assembly import sampling
from diffusion_jax.assembly import workdir as workdirs
from diffusion_jax.core.errors import UserError
from diffusion_jax.studies.app import page as app_page
from diffusion_jax.studies.app.drawing import InteractiveModel
from diffusion_jax.studies.app.parts import page_file

LARGEST_UPLOAD = "8mb"
# The page loads nothing from elsewhere, whatever gradio's own template asks for.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "worker-src 'self' blob:; frame-ancestors 'self'"
)


def serve(
    config: ConfigDict,
    *,
    workdir: str,
    host: str = "127.0.0.1",
    port: int = 7860,
    overridden: Collection[str] = (),
) -> None:
    """Serve a page that draws from a trained model, until SIGTERM or Ctrl-C.

    Args:
      config: the config of the run, with the sampling settings.
      workdir: the folder of the run.
      host: the address to listen on.
      port: the port.
      overridden: the config keys that the command line sets.

    Raises:
      UserError: where gradio is missing, the address cannot be used, or the model draws no images.
    """
    check_address(host, port)
    with tempfile.TemporaryDirectory(prefix="diffusion_jax-app-") as folder:
        gr = gradio(folder)
        trained = workdirs.load(workdir, config, sampling.sampling_mesh(config))
        model = InteractiveModel(trained, config, workdir, overridden)
        page = app_page.build(gr, model, Path(folder))
        with _until_signal() as stop:
            _launch(gr, page, host, port)
            print(f"http://{'localhost' if host == '127.0.0.1' else host}:{port}", flush=True)
            print("Ctrl-C ends the server", file=sys.stderr)
            stop.wait()
            page.close(verbose=False)


def gradio(folder: str) -> ModuleType:
    """Import gradio, without telemetry and with its files in one folder.

    Args:
      folder: the folder of uploads and pictures.

    Raises:
      UserError: where it is not installed.
    """
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": folder}
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"  # of a library that gradio imports
    try:
        import gradio  # noqa: PLC0415  an optional dependency: gradio
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "gradio":
            raise
        raise UserError(
            "the page needs gradio, which is not installed: pip install 'diffusion_jax[app]', or "
            "pip install -e '.[app]' in a clone (docs/guides/app.md)"
        ) from error
    return gradio


def check_address(host: str, port: int) -> None:
    """Check that a server can listen on an address.

    Args:
      host: a name or an address.
      port: the port.

    Raises:
      UserError: for an address that is not one of this machine, and for a port that is in use.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"--host={host} --port={port} cannot be used ({reason}); take another, such as "
            f"--port={port + 1 if port < 65535 else 7860}"
        ) from error


def _launch(gr: ModuleType, page: Any, host: str, port: int) -> None:
    """Start the server in a thread of its own."""
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    if not _is_loopback(host):
        print(
            f"note: everyone who reaches {host}:{port} can use this page; it has no password",
            file=sys.stderr,
        )
    page.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        inbrowser=False,
        footer_links=[],
        run_history=False,
        allowed_paths=[],
        enable_monitoring=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        max_file_size=LARGEST_UPLOAD,
        state_session_capacity=100,
        theme=gr.themes.Default(primary_hue="orange", **fonts),
        css=page_file("app.css"),
        app_kwargs={"middleware": [_policy()]},
    )


def _policy() -> Any:
    """The middleware by which a browser loads nothing for the page from anywhere else."""
    from starlette.middleware import Middleware  # noqa: PLC0415  optional dependency: starlette

    def wrapped(app: Callable[..., Any]) -> Callable[..., Any]:
        async def call(scope: dict, receive: Callable, send: Callable) -> None:
            async def answer(message: dict) -> None:
                if message["type"] == "http.response.start":
                    header = (b"content-security-policy", POLICY.encode())
                    message = message | {"headers": [*message.get("headers", []), header]}
                await send(message)

            await app(scope, receive, answer)

        return call

    return Middleware(wrapped)


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


@contextlib.contextmanager
def _until_signal() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set, instead of ending the process."""
    stop = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        print(f"{signal.Signals(number).name}: the server ends", file=sys.stderr, flush=True)
        stop.set()

    numbers = (signal.SIGTERM, signal.SIGINT)
    old = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
