"""Orientation tuning of given weights, and what is said of those that have no filters."""

from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlc.errors import UserError
from dlc.models.mlp import MLP
from dlc.run.run import Run
from experiments.history import orientation


class Small(nn.Module):
    """Eight filters of 5 x 5 pixels, and the mean of each map."""

    @nn.compact
    def __call__(self, x, *, train=False):
        return nn.Conv(8, (5, 5), name="conv1")(x).mean((1, 2))


SMALL = replace(orientation.SMOKE, orientations=6, controls=1)


def given(model):
    return model, model.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))


def test_given_weights_are_examined(monkeypatch):
    monkeypatch.setattr(orientation, "FREQUENCIES", np.array([0.1, 0.2]))
    monkeypatch.setattr(orientation, "EXAMPLES", 2)  # axes take time
    model, variables = given(Small())
    kernel = variables["params"]["conv1"]["kernel"]
    stripes = np.sin(2 * np.arange(5))[:, None, None, None]  # all filters see horizontal bars
    variables["params"]["conv1"]["kernel"] = np.broadcast_to(stripes, kernel.shape).astype(np.float32)
    run = Run()
    figures = orientation.show(SMALL, run, model, variables)
    assert set(figures) == {f"small_{kind}" for kind in orientation.KINDS}
    assert figures["small_trained"][0] > figures["small_untrained"].max()
    assert list(run.figures) == ["orientation"]
    assert not run.missed


def test_the_first_layer_may_be_part_of_a_block():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.relu(nn.Conv(4, (3, 3), name="conv")(x))

    model, variables = given(nn.Sequential([Block(), nn.Conv(2, (3, 3))]))
    name, kernel, weights, _ = orientation.gratings_for(SMALL, model, variables)
    assert name == "layers_0/conv"
    assert kernel.shape == weights["layers_0/conv/kernel"].shape == (3, 3, 1, 4)


def test_weights_without_filters_are_one_sentence():
    with pytest.raises(UserError, match=r"^MLP does not begin with filters of images: give"):
        orientation.show(SMALL, Run(), *given(MLP()))
