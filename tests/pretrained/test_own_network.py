"""docs/guides/weights.md, followed literally on seeded weights in a file of torch."""

from __future__ import annotations

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.assembly import components, denoiser, workdir
from diffusion_jax.core.errors import UserError
from diffusion_jax.pretrained.layouts import SAME
from diffusion_jax.studies import own_network
from tests.fixtures.seeded_weights import normal, weights
from tests.pretrained.conversions import FIXTURES
from tests.pretrained.test_extractors import Global
from tests.pretrained.torch_files import written
from tests.test_docs import ROOT, blocks, pasted

with np.load(FIXTURES / "mnist_cnn.npz") as saved:
    SHAPES, KEPT, OUT = json.loads(str(saved["shapes"])), saved["alpha_t"], saved["out"]
DRAWN = {name: (28 if a.ndim == 3 else 1) * a for name, a in weights(SHAPES).items()}
DRAWN |= {"alpha_t": KEPT}
TIMES = np.float32([0.001, 0.5, 1.0])


@pytest.fixture
def guide(monkeypatch) -> dict:
    """The names that the script of the page defines, with the network of the page installed."""
    module = types.ModuleType("diffusion_jax.models.mnist_cnn")
    vars(module).update(pasted("class MnistCNN", module.__name__, "guides/weights"))
    family = components.MODELS._replace(own=components.MODELS.own + module.NETWORKS)
    monkeypatch.setattr(components, "MODELS", family)
    return pasted("def names()", "bring", "guides/weights")


def test_the_guide_makes_a_workdir_that_denoises_as_its_author_does(guide, tmp_path):
    (tmp_path / "theirs.pth").write_bytes(written(DRAWN))
    guide["main"](str(tmp_path / "theirs.pth"), str(tmp_path / "run"))
    trained = workdir.load(tmp_path / "run", workdir.saved_config(tmp_path / "run"))
    kept = KEPT[np.int32(1000 * TIMES)][:, None, None, None]
    # theirs: z = sqrt(a) y + sqrt(1 - a) eps with y = x0 / 2; ours has the same eps and x0
    alpha, sigma = np.sqrt(kept), 2 * np.sqrt(1 - kept)
    process = trained.experiment.process
    np.testing.assert_allclose(
        process.alpha(TIMES) / process.sigma(TIMES), (alpha / sigma)[:, 0, 0, 0], rtol=1e-4
    )
    z = normal("x", (3, 1, 28, 28)).transpose(0, 2, 3, 1)
    x_t = z * process.alpha(TIMES)[:, None, None, None] / alpha * 2
    denoise = denoiser.denoiser(trained.experiment, trained.params, clip="none")
    found = jax.jit(denoise)(jnp.float32(x_t), TIMES).eps
    assert np.abs(OUT).max() > 1
    np.testing.assert_allclose(found, OUT.transpose(0, 2, 3, 1), atol=1e-4)


def test_names_that_do_not_fit_are_told(guide, tmp_path):
    run, names = guide["config"](KEPT[1:].astype(np.float64)), guide["names"]()
    unused = ("beta_t", "alpha_t", "gt.frequencies")
    options = {"shape": (28, 28, 1), "unused": unused}
    tied = names | {"last/bias": "gt.blocks.0.net.0.bias"}
    wrong = {
        r"of another shape: gt.blocks.0.net.0.bias \[16\] for \[1\]": (tied, options),
        "orders of no path: norm_9/scale": (names, options | {"orders": {"norm_9/scale": SAME}}),
        "parameters without a name: last/bias": (
            {key: name for key, name in names.items() if key != "last/bias"},
            options,
        ),
        "paths that are no parameters: more/bias": (names | {"more/bias": "x"}, options),
        "left over: beta_t": (names, options | {"unused": unused[1:]}),
        "the file has no such tensors": (names, options | {"unused": (*unused, "other")}),
        r"of another shape: .*gt.blocks.0.net.1.weight \[16, 28, 28\] for \[28, 28, 16\]": (
            names,
            options,
        ),
    }
    for words, (given, settings) in wrong.items():
        with pytest.raises(UserError, match=words) as refused:
            own_network.to_workdir(run, DRAWN, given, tmp_path / "run", **settings)
        assert "\n" not in str(refused.value) and not (tmp_path / "run").exists()


def test_a_hostile_file_of_the_guide_is_refused(guide, tmp_path):
    state = {"gt.blocks.4.bias": Global("os", "mkdir", (str(tmp_path / "mark"),))}
    (tmp_path / "theirs.pth").write_bytes(written(state))
    with pytest.raises(UserError, match="names os.mkdir, which is not a tensor"):
        guide["main"](str(tmp_path / "theirs.pth"), str(tmp_path / "run"))
    assert not (tmp_path / "mark").exists() and not (tmp_path / "run").exists()


def test_the_mapping_of_the_page_is_short():
    for what in ("class MnistCNN", "def names()"):
        (code,) = (c for _, c in blocks(ROOT / "docs/guides/weights.md", "python") if what in c)
        lines = [line for line in code.splitlines() if line.strip()]
        assert len(lines) <= 40
