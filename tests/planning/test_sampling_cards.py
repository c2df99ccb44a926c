"""Cards of sampling: memory and work of a batch, on a CPU."""

from __future__ import annotations

import jax
import pytest

from configs import digits
from diffusion_jax.assembly import workdir
from diffusion_jax.core.errors import UserError
from diffusion_jax.planning import devices, sampling_cards
from diffusion_jax.studies import plans
from tests.experiments.small_runs import small

GIB = 2.0**30
HERE = devices.Topology("cpu:1", "cpu", [jax.devices()[0]], None)


def config():
    found = small(digits.get_config("vp"))
    found.data.update(image_size=8, channels=1, num_classes=10)
    found.sampler.batch_size = 4
    return found


def test_a_card_of_sampling():
    plain, guided = config(), config()
    plain.sampler.guidance, guided.sampler.guidance = 1.0, 2.0
    one, two = (sampling_cards.card(each, HERE, hbm=GIB) for each in (plain, guided))
    assert one["fits"] and one["evaluations"] == 3 and not one["decoder"]
    assert one["parameter_bytes"] == 4 * one["parameters"] <= one["memory"]["arguments"]
    assert one["memory"]["total"] == sum(v for k, v in one["memory"].items() if k != "total")
    assert two["guided"] and two["flops"] == pytest.approx(2 * one["flops"])
    assert sampling_cards.card(plain, HERE, hbm=1.0)["fits"] is False
    said = sampling_cards.describe(two)
    assert "guided, 3 evaluations, batch 4" in said and "yes, in 1.00 GiB of HBM" in said


def test_a_search_is_for_training():
    with pytest.raises(UserError, match="leave out --search or --sampling"):
        plans.plan(config(), topology="cpu:1", sampling=True, search=True)


@pytest.mark.long
def test_a_card_of_latents_counts_the_decoder():
    stable_diffusion = pytest.importorskip("tests.pretrained.stable_diffusion")
    pytest.importorskip("tokenizers")
    found = workdir.saved_config(stable_diffusion.workdir_of("sdxl"))
    card = sampling_cards.card(found, HERE)
    assert card["decoder"] and card["guided"] and card["fits"] is None
    assert card["parameter_bytes"] > 4 * card["parameters"]
