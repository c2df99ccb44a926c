"""Published models by their addresses: downloaded once, checked, and refused in one line."""

from __future__ import annotations

import hashlib
import json

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
