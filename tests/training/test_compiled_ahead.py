"""The train step is compiled in a thread while the state is made, and not again afterwards."""

from __future__ import annotations

import threading

from diffusion_jax.assembly import experiment, train
from diffusion_jax.assembly.kinds import diffusion
from tests.training.tiny_run import config


def test_the_step_is_traced_once_and_in_the_thread(tmp_path, monkeypatch):
    """The loss is traced where the step is compiled; neither the first step, nor a run that
    resumes, nor one that is done traces it again.
    """
    traced = []

    def loss(model):
        honest = diffusion.KIND.loss(model)

        def noted(*args):
            traced.append(threading.current_thread().name.partition("_")[0])
            return honest(*args)

        return noted

    kind = diffusion.KIND._replace(loss=loss)
    monkeypatch.setattr(experiment, "KINDS", dict.fromkeys(experiment.KINDS, kind))
    quiet = config(training__eval_every=0, training__sample_every=0)
    for until, expected in ((4, 1), (8, 2), (8, 2)):
        train.train(quiet, str(tmp_path), until=until)
        assert traced == ["compile"] * expected
