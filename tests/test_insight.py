"""What the experiments that look inside networks say to flags that cannot be."""

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlc.analysis import fooling
from dlc.errors import UserError
from dlc.models.convnet import Convnet
from dlc.run import flags
from dlc.run.run import Run
from dlc.tasks import subjects

PHOTOGRAPHS = r"^our own networks know no photographs: name a network that does, with --weights$"
MAPS = r"^there is no layer 'conv9': choose from conv1, conv2"
EXPERIMENTS = ("deconvnet", "dream", "inversion", "saliency", "style")


def of(name):
    return import_module(f"experiments.insight.{name}")


@pytest.fixture
def subject():
    """A network without weights and an image, which are enough to say what is wrong."""
    model, image = Convnet(), np.zeros((1, 28, 28, 1), np.uint8)
    variables = jax.eval_shape(model.init, jax.random.key(0), np.float32(image))
    return subjects.Subject("digits", model, variables, lambda pixels: pixels / 255, image, None, tuple("0123456789"))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_photographs_need_weights(name):
    with pytest.raises(UserError, match=PHOTOGRAPHS):
        of(name).train(replace(of(name).SMOKE, photographs=(Path("cat.png"),)), Run())


@pytest.mark.parametrize("name", ["deconvnet", "inversion", "style"])
def test_layers_that_do_not_exist_are_answered_with_those_that_do(name, subject):
    config = replace(of(name).SMOKE, maps=("conv9",))
    with pytest.raises(UserError, match=MAPS):
        of(name).look(config, Run(), subject)
    with pytest.raises(UserError, match=MAPS):
        of("dream").on_photographs(replace(of("dream").SMOKE, maps=("conv9",)), Run(), subject)
    with pytest.raises(UserError, match=MAPS):
        of("style").look(replace(of("style").SMOKE, content="conv9"), Run(), subject)


def test_a_given_network_is_not_asked_whether_it_agrees_with_itself(monkeypatch):
    monkeypatch.setattr(fooling, "cppn", fooling.direct)  # which compiles sooner
    monkeypatch.setattr(fooling, "ascend", lambda key, logits, shape: jnp.zeros((4, *shape)))
    pixels = np.zeros((1, 2, 2, 1), np.uint8)
    model = SimpleNamespace(apply=lambda variables, pixels: pixels.reshape(len(pixels), -1))
    subject = subjects.Subject("digits", model, {}, lambda pixels: pixels / 255, pixels, None, tuple("0123"))
    small = replace(of("fooling").SMOKE, generations=2, children=3)
    alone, judged = (of("fooling").fool(small, Run(), subject, *judge) for judge in ((), (subject,)))
    assert set(judged) - set(alone) == {f"{name}_fools_another" for name in ("direct", "cppn", "gradient")}


@pytest.mark.parametrize("name", [*EXPERIMENTS, "fooling"])
def test_the_seed_matters_with_weights_too(name):
    assert "seed" in flags._used(of(name).Config, flags.SHOWN)


def test_a_made_up_painting_has_the_channels_that_are_asked_for():
    from dlc.analysis import style

    assert style.painting(32).shape == (32, 32, 3)
    np.testing.assert_array_equal(style.painting(16, 1), style.painting(16)[..., :1])
    assert style.painting(64).std() > 30
