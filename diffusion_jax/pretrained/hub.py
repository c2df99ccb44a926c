"""Published workdirs from the network: `https://HOST/PATH` and `hf://OWNER/NAME@REVISION/FOLDER`.

A model is downloaded once, into ~/.cache/diffusion_jax/models, and used from there. Only the files
that its manifest lists are fetched, under names that the format fixes (folders.py), and each is
compared with the size and the sha256 of the manifest. The folder appears when it is whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import re
import shutil
import sys
import time
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from diffusion_jax.core import files
from diffusion_jax.core.errors import UserError
from diffusion_jax.pretrained import folders

SECONDS = 30  # of silence after which a server counts as gone
SLOWEST = 1000  # bytes a second, on average, below which it counts as gone too
MANIFEST_BYTES = 2**20
LOCAL = ("localhost", "127.0.0.1", "::1")  # where http:// is allowed

_HF = re.compile(r"hf://([\w.\-]+/[\w.\-]+)(?:@([\w.\-]+))?((?:/[\w.\-]+)*)/?", re.ASCII)

# reads one file: (name, largest number of bytes) -> content
Get = Callable[[str, int], bytes]


def is_address(path: Any) -> bool:
    """Return whether a path is the address of a published workdir on the network.

    Args:
      path: the text of a path.
    """
    return bool(re.match(r"(https?|hf)://", str(path)))


def fetched(address: str, key: str) -> str:
    """Return the local copy of a published workdir; it is downloaded if there is none.

    Args:
      address: https://HOST/PATH or `hf://OWNER/NAME`, with `@REVISION` and `/FOLDER` if wanted.
      key: the flag or config key that names it, for messages.

    Raises:
      UserError: for an address or a server that cannot be used, and for damaged files.
    """
    name, source = _source(address, key)
    digest = hashlib.sha256(address.rstrip("/").encode()).hexdigest()[:16]
    folder = Path.home() / ".cache" / "diffusion_jax" / "models" / digest / name
    if folders.is_published(folder):
        return str(folder)
    print(f"downloading {address} to {folder} ...", file=sys.stderr)
    with _whole(folder) as temporary, source as get:
        text = get(folders.MANIFEST, MANIFEST_BYTES)
        listed = folders.manifest_of(text, f"{key}={address}: its {folders.MANIFEST}")["files"]
        _need_space(folder, sum(entry["bytes"] for entry in listed.values()), f"{key}={address}")
        for name, entry in listed.items():
            content = get(name, entry["bytes"])
            if hashlib.sha256(content).hexdigest() != entry["sha256"]:
                raise UserError(
                    f"{key}={address}: {name} is not the file that was published: its sha256 is "
                    f"not that of {folders.MANIFEST}; try again later, or ask who published it"
                )
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            (temporary / name).write_bytes(content)
        (temporary / folders.MANIFEST).write_bytes(text)
    return str(folder)


@contextlib.contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `folder` when the block ends."""
    temporary = folder.with_name(f".{uuid.uuid4().hex[:12]}.tmp")
    try:
        files.remove_abandoned(folder.parent)
        temporary.mkdir(parents=True)
        yield temporary
        with contextlib.suppress(OSError):  # another process was faster
            os.rename(temporary, folder)
        if not folders.is_published(folder):
            raise UserError(f"'{folder}' cannot be written; remove it, then run the command again")
    except OSError as error:
        raise UserError(f"cannot write '{folder}': {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _need_space(folder: Path, size: int, what: str) -> None:
    """Refuse a model that the disk has no space for, before it is downloaded."""
    free = shutil.disk_usage(folder.parent).free
    if size > free:
        raise UserError(
            f"{what} has {size / 1e9:,.1f} GB by its {folders.MANIFEST}, and '{folder.parent}' has "
            f"{free / 1e9:,.1f} GB free; make space, or use another model"
        )


def _source(address: str, key: str) -> tuple[str, contextlib.AbstractContextManager[Get]]:
    """The name of the model at an address, and what reads its files."""
    if address.startswith("hf://"):
        match = _HF.fullmatch(address)
        parts = re.split(r"[/@]", address.removeprefix("hf://").rstrip("/"))
        if not match or any(set(part) <= {"."} for part in parts):
            raise UserError(
                f"{key}={address}: write hf://OWNER/NAME, hf://OWNER/NAME@REVISION or "
                "hf://OWNER/NAME/FOLDER"
            )
        name = "_".join([*match[1].split("/"), *match[3].split("/")]).strip("_")
        return name, _hub(address, key, match[1], match[2], match[3].strip("/"))
    url = urllib.parse.urlsplit(address)
    path = url.path.rstrip("/")
    plain = re.fullmatch(r"(?:/[\w.~%+\-]+)+", path, re.ASCII) and not re.search(r"/\.+(/|$)", path)
    if not (url.scheme == "https" or url.hostname in LOCAL) or not url.hostname or not plain:
        raise UserError(f"{key}={address}: write https://HOST/PATH, the address of a folder")
    if url.query or url.fragment or url.username or url.password:
        raise UserError(f"{key}={address}: write https://HOST/PATH, without ?, # and passwords")
    name = re.sub(r"[^\w.\-]", "_", path.rpartition("/")[2], flags=re.ASCII)
    return name, contextlib.nullcontext(_https(address, key))


def _https(address: str, key: str) -> Get:
    """What reads files below an address of a web server."""
    opener = urllib.request.build_opener(_Redirects)

    def get(name: str, largest: int) -> bytes:
        url = f"{address.rstrip('/')}/{name}"
        try:
            with opener.open(url, timeout=SECONDS) as answer:
                content = _read(answer, largest)
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise _unreachable(address, key, name, error) from error
        return _bounded(content, largest, f"{key}={address}: {name}")

    return get


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows no redirect from https:// to another scheme, nor from this machine by http://."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        """Return the next request, as urllib asks for it."""
        url = urllib.parse.urlsplit(newurl)
        local = req.type == "http" and url.scheme == "http" and url.hostname in LOCAL
        if url.scheme != "https" and not local:
            raise ValueError(f"the server leads to {newurl:.100}, which is not https://")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _read(answer: http.client.HTTPResponse, largest: int) -> bytes:
    """Read up to `largest` + 1 bytes as they come; TimeoutError where they come too slowly."""
    content, began = bytearray(), time.monotonic()
    while len(content) <= largest and (part := answer.read1(min(2**20, largest + 1))):
        content += part
        if time.monotonic() - began > SECONDS + len(content) / SLOWEST:
            raise TimeoutError(f"it sends less than {SLOWEST:,} bytes a second")
    return bytes(content)


@contextlib.contextmanager
def _hub(
    address: str, key: str, repository: str, revision: str | None, folder: str
) -> Iterator[Get]:
    """What reads files of a repository on the Hugging Face Hub, all of one commit."""
    try:
        import huggingface_hub as client  # noqa: PLC0415  an optional dependency: huggingface_hub
        from huggingface_hub import errors  # noqa: PLC0415  an optional dependency: huggingface_hub
    except ImportError as error:
        raise UserError(
            f"{key}={address} needs the library huggingface_hub: pip install 'diffusion_jax[hub]'"
        ) from error
    # one of the bases is that of all errors of its HTTP library, such as a lost connection
    failures = (OSError, ValueError, *errors.HfHubHTTPError.__bases__)
    try:
        api = client.HfApi(endpoint=os.environ.get("HF_ENDPOINT"))  # of a mirror of the hub
        commit = api.repo_info(repository, revision=revision, timeout=SECONDS).sha
    except failures as error:
        raise _unreachable(address, key, "", error) from error
    with _temporary() as place:

        def get(name: str, largest: int) -> bytes:
            inside = f"{folder}/{name}".lstrip("/")
            try:
                file = api.hf_hub_download(repository, inside, revision=commit, local_dir=place)
                with open(file, "rb") as stream:
                    content = stream.read(largest + 1)
            except failures as error:
                raise _unreachable(address, key, name, error) from error
            return _bounded(content, largest, f"{key}={address}: {name}")

        yield get


@contextlib.contextmanager
def _temporary() -> Iterator[Path]:
    place = (
        Path.home() / ".cache" / "diffusion_jax" / "models" / f".hub.{uuid.uuid4().hex[:12]}.tmp"
    )
    try:
        files.remove_abandoned(place.parent)
        place.mkdir(parents=True)
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _bounded(content: bytes, largest: int, what: str) -> bytes:
    if len(content) > largest:
        raise UserError(f"{what} is larger than the {largest:,} bytes that it may have")
    return content


def _unreachable(address: str, key: str, name: str, error: Exception) -> UserError:
    """The error for a file that could not be fetched, in one line."""
    status = getattr(error, "code", None) or getattr(
        getattr(error, "response", None), "status_code", None
    )
    if status in (401, 403, 404):
        what = f"has no {name} (HTTP {status})" if name else f"is not there (HTTP {status})"
        return UserError(
            f"{key}={address} {what}; it must be a folder that experiments.publish wrote"
        )
    why = (str(error).strip() or type(error).__name__).splitlines()[0]
    return UserError(
        f"{key}={address} cannot be reached: {why:.200}; check the address and the network, or "
        "give a local folder"
    )
