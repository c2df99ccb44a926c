"""Published models by their addresses: downloaded once, checked, and refused in one line."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
import time
import urllib.request

import pytest

from diffusion_jax.core.errors import UserError
from diffusion_jax.data import consent
from diffusion_jax.pretrained import addresses, folders, hub
from tests.web import served

FILES = {
    "config.json": b"{}",
    "data.json": b"[]",
    "weights.safetensors": b"\x00" * 40,
    "grids/a.json": b"{}",
}


def entry(content):
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def manifest(files=FILES):
    listed = {name: entry(content) for name, content in files.items()}
    return json.dumps({"format": 1, "step": 3, "weights": "5k", "files": listed}).encode()


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def web(monkeypatch):
    files = {f"me/mnist/{name}": content for name, content in FILES.items()}
    files |= {"me/mnist/manifest.json": manifest(), "me/mnist/evil.pkl": b"x"}
    with served(files) as (address, asked):
        monkeypatch.setenv("HF_ENDPOINT", address)
        yield files, address, asked


def resolved(address):
    consent.remember(address)
    return addresses.resolve(address)


def left(home):
    return [str(p) for p in (home / ".cache/diffusion_jax/models").rglob("*") if p.name[0] == "."]


@pytest.mark.parametrize("kind", ["web", "hub"])
def test_a_model_is_downloaded_once_and_whole(kind, web, home):
    files, address, asked = web
    if kind == "hub":
        pytest.importorskip("huggingface_hub")
    url = f"{address}/me/mnist" if kind == "web" else "hf://me/mnist@main"
    folder = resolved(url)
    assert folder.endswith("/mnist" if kind == "web" else "/me_mnist")
    folders.check(folder)
    assert folders.content(folder, "grids/a.json") == b"{}"
    count = len(asked)
    assert addresses.resolve(url) == folder and len(asked) == count and not left(home)
    assert not any("evil" in path for path in asked)


@pytest.mark.parametrize("kind", ["web", "hub"])
def test_what_is_missing_or_wrong_is_one_line(kind, web, home):
    files, address, _ = web
    if kind == "hub":
        pytest.importorskip("huggingface_hub")
    top = f"{address}/me" if kind == "web" else "hf://me"
    files["me/mnist/weights.safetensors"] = b"\x01" * 40
    with pytest.raises(UserError, match="weights.safetensors is not the file that was published"):
        resolved(f"{top}/mnist")
    files["me/mnist/weights.safetensors"] = b"\x00" * 41
    with pytest.raises(UserError, match="larger than the 40 bytes"):
        resolved(f"{top}/mnist")
    del files["me/mnist/weights.safetensors"]
    with pytest.raises(UserError, match=r"has no weights.safetensors \(HTTP 404\)"):
        resolved(f"{top}/mnist")
    hostile = json.loads(manifest())
    hostile["files"]["../../../x"] = entry(b"")
    files["me/mnist/manifest.json"] = json.dumps(hostile).encode()
    with pytest.raises(UserError, match="'../../../x', which is no file of a model"):
        resolved(f"{top}/mnist")
    files["me/mnist/manifest.json"] = b"\x80\x04K\x01."
    with pytest.raises(UserError, match="manifest.json is not valid JSON"):
        resolved(f"{top}/mnist")
    del files["me/mnist/manifest.json"]
    with pytest.raises(UserError, match="manifest.json .*folder that experiments.publish wrote"):
        resolved(f"{top}/mnist")
    with pytest.raises(UserError, match=r"\(HTTP 404\); it must be a folder"):
        resolved(f"{top}/other")
    assert not left(home)


class Answer:
    """What a server answers with."""

    def __init__(self, content, pause=0.0):
        self.content, self.pause = content, pause

    def read1(self, size):
        time.sleep(self.pause)
        part, self.content = self.content[:1], self.content[1:]
        return part


def test_servers_that_drip_are_given_up(monkeypatch):
    assert hub._read(Answer(b"abc"), 10) == b"abc" and hub._read(Answer(b"abc"), 1) == b"ab"
    monkeypatch.setattr(hub, "SECONDS", 0.01)
    with pytest.raises(TimeoutError, match="less than 1,000 bytes a second"):
        hub._read(Answer(b"abc" * 100, 0.02), 2**36)


def test_redirects_leave_https_for_nothing_else():
    def follow(start, end):
        request = urllib.request.Request(start)
        return hub._Redirects().redirect_request(request, None, 302, "", {}, end).full_url

    assert follow("https://a.org/x", "https://cdn.org/x") == "https://cdn.org/x"
    assert follow("http://localhost:1/x", "http://127.0.0.1:2/y") == "http://127.0.0.1:2/y"
    for start in ("https://a.org/x", "http://localhost:1/x"):
        for end in ("http://a.org/x", "ftp://a.org/x", "file:///etc/passwd"):
            with pytest.raises(ValueError, match="the server leads to .* not https://"):
                follow(start, end)
    with pytest.raises(ValueError, match="not https://"):
        follow("https://a.org/x", "http://localhost/x")


def test_a_server_of_another_protocol_is_one_line():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            with server.accept()[0] as connection:
                connection.recv(1000)
                connection.sendall(b"SSH-2.0-x\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(UserError, match="cannot be reached: SSH-2.0-x; check"):
            resolved(f"http://127.0.0.1:{server.getsockname()[1]}/mnist")
        thread.join()


def test_a_model_that_the_disk_has_no_space_for_is_not_downloaded(web):
    files, address, asked = web
    huge = json.loads(manifest())
    huge["files"] |= {f"grids/{i}.json": entry(b"") | {"bytes": 2**36} for i in range(900)}
    files["me/mnist/manifest.json"] = json.dumps(huge).encode()
    with pytest.raises(UserError, match="has 61,847.5 GB by its manifest.json, .* GB free; make"):
        resolved(f"{address}/me/mnist")
    assert asked == ["me/mnist/manifest.json"]


def test_servers_that_are_gone_are_one_line(web, monkeypatch):
    pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub, "SECONDS", 2)
    for url in ("http://127.0.0.1:9/x", "hf://me/x"):
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        with pytest.raises(UserError, match="cannot be reached: .*check the address"):
            resolved(url)


def test_the_library_of_the_hub_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)  # import raises
    with pytest.raises(UserError, match=r"pip install 'diffusion_jax\[hub\]'"):
        resolved("hf://me/mnist")


@pytest.mark.parametrize(
    "address",
    [
        "http://example.org/mnist",
        "https://example.org",
        "https://example.org/a/../b",
        "https://me:secret@example.org/a",
        "https://example.org/a?b",
        "https://example.org/a b",
        "hf://mnist",
        "hf://me/..",
        "hf://me/mnist/../x",
        "hf://me/mnist@../x",
    ],
)
def test_addresses_of_other_kinds_are_refused(address):
    with pytest.raises(UserError, match="write (https|hf)://"):
        resolved(address)


def test_an_address_that_only_a_file_names_is_not_followed(web):
    _, address, asked = web
    with pytest.raises(UserError, match="you have not named this address"):
        addresses.resolve(f"{address}/me/mnist", "config.latent.autoencoder")
    assert not asked
