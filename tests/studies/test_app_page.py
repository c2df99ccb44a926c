"""The local page in a headless browser, as a user meets it."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs import digits, digits_captions
from diffusion_jax.assembly import train
from tests.experiments.small_runs import small

ROOT = Path(__file__).parents[2]
SECONDS = 240  # for a program to compile, on a busy machine
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
OPTIONS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]

pytestmark = pytest.mark.long


def chromium(kind) -> str:
    """The browser: $CHROMIUM, that of Debian, or playwright's own; skips where there is none."""
    own = (os.environ.get("CHROMIUM"), "/usr/bin/chromium", kind.executable_path)
    found = [path for path in own if path and Path(path).is_file()]
    if not found:
        pytest.skip("no Chromium: set CHROMIUM to its path, or run `playwright install chromium`")
    return found[0]


@contextlib.contextmanager
def served(workdir):
    """(port, process, workdir) of the page of a model."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line = [sys.executable, "-m", "experiments.app", f"--workdir={workdir}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*line, f"--port={port}"], cwd=ROOT, **pipes) as process:
        said = process.stdout.readline()
        assert said == f"http://localhost:{port}\n", said + process.stderr.read()
        try:
            yield port, process, workdir
        finally:
            process.kill()  # for which Popen waits


@pytest.fixture(scope="module")
def browser():
    """Chromium without a window."""
    for name in ("gradio", "playwright"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed: pip install -e '.[app,browser]'")
    from playwright.sync_api import sync_playwright  # noqa: PLC0415  optional dependency: playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium(playwright.chromium), args=OPTIONS
        )
        yield browser
        browser.close()


def opened(browser, port: int):
    """A page that was opened, with the addresses of all that it requested."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(1000 * SECONDS)
    page.requested, page.faults = [], []
    page.on("request", lambda request: page.requested.append(request.url))
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.goto(f"http://localhost:{port}/")
    return page


@pytest.fixture(scope="module")
def server(browser, tmp_path_factory):
    """(port, process, workdir) of the page of a tiny model of the digits."""
    workdir = tmp_path_factory.mktemp("app") / "run"
    assert train.train(small(digits.get_config("vp")).lock(), str(workdir))
    with served(workdir) as found:
        yield found


@pytest.fixture(scope="module")
def page(browser, server):
    """The page of the digits."""
    return opened(browser, server[0])


def picture(page, name: str) -> np.ndarray:
    """The pixels of a picture of the page, (H, W), once it is there."""
    page.wait_for_selector(f"#{name} img")
    address = page.get_attribute(f"#{name} img", "src")
    with urllib.request.urlopen(address) as answer:
        return np.asarray(Image.open(io.BytesIO(answer.read())).convert("L"))


def said(page, name: str, pattern: str) -> str:
    """Wait for a message and return it."""
    page.wait_for_function(
        "([name, pattern]) => new RegExp(pattern).test(document.querySelector(name)?.innerText)",
        arg=[f"#{name}", pattern],
    )
    return page.inner_text(f"#{name}")


def generate(page, pattern: str) -> str:
    """Press Generate and wait for its message; gradio drops a click while one is being answered."""
    page.evaluate("document.querySelectorAll('#status p').forEach((p) => { p.textContent = ''; })")
    page.click("#generate")
    return said(page, "status", pattern)


def fill(page, name: str, value: str) -> None:
    """Type a value into a field."""
    field = page.locator(f"#{name} input").first
    field.fill(value)
    field.press("Enter")
    field.blur()


def test_the_first_images_are_drawn_on_opening(page):
    said(page, "status", r"^30 images in [\d.]+ s .*3 evaluations each")
    assert np.ptp(picture(page, "picture")) > 100
    assert "--seeds=0-29" in page.input_value("#command textarea")
    assert np.ptp(picture(page, "trajectory")) > 100


def test_a_class_and_a_sampler_are_chosen(page):
    before = picture(page, "picture")
    fill(page, "class", "7")
    fill(page, "sampler", "multistep.dpmpp_2m")
    fill(page, "num", "4")
    generate(page, r"^4 images in")
    command = page.input_value("#command textarea")
    assert "--labels=7" in command and "--sampler=multistep.dpmpp_2m" in command
    after = picture(page, "picture")
    assert np.ptp(after) > 100 and after.shape != before.shape


@pytest.mark.parametrize(
    "field, wrong, right, message",
    [
        ("nfe", "0", "3", "evaluations"),
        ("class", "12", "7", "label 12 does not exist"),
        ("sampler", "ode.huen", "ode.heun", "did you mean 'ode.heun'"),
        ("num", "0", "4", "number of images=0"),
    ],
)
def test_wrong_input_is_a_message_and_the_server_stays(page, field, wrong, right, message):
    fill(page, field, wrong)
    # a slider may move to its end instead of giving a message
    assert "Traceback" not in generate(page, "evaluation" if field == "nfe" else message)
    fill(page, field, right)
    generate(page, r"^4 images in")


def test_two_samplers_stand_side_by_side(page):
    page.get_by_role("tab", name="Two samplers").click()
    fill(page, "second", "ancestral.ddpm")
    page.click("#both")
    said(page, "status-2", r"ancestral\.ddpm[\s\S]*4 images")
    one, two = picture(page, "picture-1"), picture(page, "picture-2")
    assert one.shape == two.shape and (one != two).any() and np.ptp(two) > 100


def test_a_painted_part_is_drawn_anew(page):
    page.get_by_role("tab", name="Inpaint").click()
    page.click("#inpaint-button")
    said(page, "inpaint-status", "choose an image first")
    page.locator("#gallery button.thumbnail-item").nth(1).click()
    page.wait_for_selector("#painter canvas.ready")
    page.click("#inpaint-button")
    said(page, "inpaint-status", "the mask is empty")
    box = page.locator("#painter canvas").bounding_box()
    page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 0.8 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 0.8 * box["height"], steps=10)
    page.mouse.up()
    fill(page, "inpaint-nfe", "6")
    page.click("#inpaint-button")
    said(page, "inpaint-status", r"^4 images in")
    assert np.ptp(picture(page, "result")) > 100
    assert "--mask=mask.png" in page.input_value("#inpaint-command textarea")


def test_uploads_that_are_no_pictures_are_refused(page, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    Image.fromarray(np.full((50, 40), 128, np.uint8)).save(tmp_path / "other.png")
    chooser = page.locator("input[type=file]").last
    chooser.set_input_files(tmp_path / "broken.png")
    said(page, "inpaint-status", "cannot be read as a picture")
    chooser.set_input_files(tmp_path / "other.png")
    page.wait_for_function("() => !document.querySelector('#inpaint-status').innerText.trim()")
    page.wait_for_function("() => document.querySelector('#painter canvas').width == 8")


def test_nothing_is_requested_from_elsewhere_and_no_file_can_be_read(page, server):
    port, _, workdir = server
    hosts = {re.match(r"\w+:(?://[^/]*)?", address)[0] for address in page.requested}
    assert hosts <= {f"http://localhost:{port}", "data:", "blob:"} and not page.faults
    for path in ("/etc/passwd", f"{workdir}/config.json", f"{ROOT}/setup.cfg"):
        with pytest.raises(urllib.error.HTTPError, match="40[34]"):
            urllib.request.urlopen(f"http://localhost:{port}/gradio_api/file={path}")


def test_a_model_of_prompts_waits_for_one_and_draws_a_row_for_each(browser, tmp_path):
    assert train.train(small(digits_captions.get_config("vp")).lock(), str(tmp_path / "run"))
    with served(tmp_path / "run") as (port, _, _):
        page = opened(browser, port)
        said(page, "status", "Type a prompt")
        generate(page, "type a prompt first")
        page.locator("#prompts textarea").fill("a bold seven\n\n <b>3</b> ")
        fill(page, "num", "60")
        generate(page, "number of images=60 of each of 2 prompts")
        fill(page, "num", "4")
        generate(page, r"^8 images in")
        command = page.input_value("#command textarea")
        assert "--seeds=0-3 --prompt='a bold seven' --prompt='<b>3</b>'" in command
        assert np.ptp(picture(page, "picture")) > 100
        page.get_by_role("tab", name="Inpaint").click()
        last = page.locator("#gallery button.thumbnail-item").nth(7)
        gallery, last = page.locator("#gallery").bounding_box(), last.bounding_box()
        assert last["x"] + last["width"] <= gallery["x"] + gallery["width"]  # not cut off
        assert not page.faults


def test_a_model_of_latents_shows_decoded_images_and_does_not_inpaint(browser):
    with served("fashion_latent") as (port, _, _):
        page = opened(browser, port)
        said(page, "heading", "latents of fashion_mnist, 28 x 28 pixels")
        said(page, "status", r"^30 images in")
        assert [tab.inner_text() for tab in page.get_by_role("tab").all()] == [
            "Images",
            "Two samplers",
        ]
        drawn = picture(page, "picture")
        assert drawn.shape[1] > 10 * 28 and np.ptp(drawn) > 200
        fill(page, "class", "Bag,Coat")
        fill(page, "nfe", "5")
        generate(page, r"^30 images in .*5 evaluations each")
        assert "--labels=Bag,Coat" in page.input_value("#command textarea")
        assert np.ptp(picture(page, "trajectory")) > 100 and not page.faults


def test_sigterm_ends_the_server(server):
    _, process, _ = server
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert "Traceback" not in process.stderr.read()
