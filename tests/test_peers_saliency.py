"""The same weights and images in PyTorch: deconvnet, guided backpropagation and Grad-CAM.

These tests need the extra `peers`: `make peers`.
"""

import drawn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from dlc import layers
from dlc.analysis import saliency
from dlc.layers.pooling import max_pool
from dlc.models.convnet import Convnet

pytestmark = pytest.mark.peers
torch = pytest.importorskip("torch", reason="PyTorch is not installed: make peers")
F = torch.nn.functional

LABEL = np.array([3, 7])


class Overlapping(nn.Module):
    """Convolutions with a border and with strides, and pools that overlap, as in AlexNet."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(layers.Conv(8, (5, 5), (2, 2), ((2, 2), (2, 2)), name="conv1")(x))
        x = max_pool(x, (3, 3), (2, 2))
        x = nn.relu(layers.Conv(12, (3, 3), padding=((1, 1), (1, 1)), name="conv2")(x))
        return layers.Dense(10, name="dense")(max_pool(x, (3, 3), (2, 2)).mean((1, 2)))


class Rectified(torch.autograd.Function):
    """ReLU with another gradient."""

    @staticmethod
    def forward(context, x, rule):
        context.save_for_backward(x)
        context.rule = rule
        return x.clamp(min=0)

    @staticmethod
    def backward(context, g):
        (x,) = context.saved_tensors
        return {"plain": g * (x > 0), "deconvnet": g.clamp(min=0), "guided": g.clamp(min=0) * (x > 0)}[
            context.rule
        ], None


def tensor(array):
    return torch.from_numpy(np.array(array))


def conv(x, layer, **how):
    return F.conv2d(x, tensor(layer["kernel"]).permute(3, 2, 0, 1), tensor(layer["bias"]), **how)


def dense(x, layer):
    return x @ tensor(layer["kernel"]) + tensor(layer["bias"])


def convnet_there(params, x, rule):
    """The logits, and the maps of conv2 (pooled, as there)."""
    rectify = lambda x: Rectified.apply(x, rule)  # noqa: E731
    x = rectify(F.max_pool2d(conv(x, params["conv1"]), 3))
    maps = F.max_pool2d(conv(x, params["conv2"]), 2)
    maps.retain_grad()
    x = rectify(maps).permute(0, 2, 3, 1).flatten(1)
    return dense(rectify(dense(x, params["dense1"])), params["dense2"]), maps


def overlapping_there(params, x, rule):
    rectify = lambda x: Rectified.apply(x, rule)  # noqa: E731
    x = rectify(conv(x, params["conv1"], stride=2, padding=2))
    maps = conv(F.max_pool2d(x, 3, 2), params["conv2"], padding=1)
    maps.retain_grad()
    return dense(F.max_pool2d(rectify(maps), 3, 2).mean((2, 3)), params["dense"]), maps


MODELS = {
    "convnet": (Convnet(), convnet_there, (28, 28, 1)),
    "overlapping": (Overlapping(), overlapping_there, (35, 31, 3)),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("rule", ["plain", "deconvnet", "guided"])
def test_the_gradients_are_pytorchs(name, rule):
    model, there, shape = MODELS[name]
    pixels = drawn.normal(2, *shape)
    variables = drawn.variables(model, pixels)
    method = {"plain": saliency.gradient, "deconvnet": saliency.deconvnet, "guided": saliency.guided}[rule]
    ours = jax.jit(lambda: method(model.apply, variables, pixels, saliency.of_class(LABEL)))()
    x = tensor(pixels).permute(0, 3, 1, 2).requires_grad_()
    logits, _ = there(variables["params"], x, rule)
    logits[torch.arange(2), tensor(LABEL)].sum().backward()
    theirs = x.grad.permute(0, 2, 3, 1).numpy()
    assert np.abs(theirs).max() > 0
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())


@pytest.mark.parametrize("name", MODELS)
def test_grad_cam_is_pytorchs(name):
    model, there, shape = MODELS[name]
    pixels = drawn.normal(2, *shape)
    variables = drawn.variables(model, pixels)
    score = saliency.of_class(LABEL)
    ours = jax.jit(lambda: saliency.grad_cam(model.apply, variables, pixels, score, "conv2"))()
    logits, maps = there(variables["params"], tensor(pixels).permute(0, 3, 1, 2).requires_grad_(), "plain")
    logits[torch.arange(2), tensor(LABEL)].sum().backward()
    cam = (maps.grad.mean((2, 3), keepdim=True) * maps).sum(1, keepdim=True).clamp(min=0)
    theirs = F.interpolate(cam, shape[:2], mode="bilinear", align_corners=False)[:, 0].detach().numpy()
    assert np.abs(theirs).max() > 0
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())


def test_the_deconvnet_is_the_papers_chain_of_unpool_rectify_and_transposed_filters():
    """Not as a gradient: with PyTorch's own unpooling and transposed convolution, from one unit of the second layer."""
    pixels = drawn.normal(2, 28, 28, 1)
    variables = drawn.variables(Convnet(), pixels)
    params, channel = variables["params"], 11
    second = saliency.layer(Convnet().apply, "conv2")
    unit = saliency.strongest(second(variables, pixels))[1][:, channel]
    ours = jax.jit(lambda: saliency.deconvnet(second, variables, pixels, saliency.of_unit(unit)))()
    x = tensor(pixels).permute(0, 3, 1, 2)
    first = conv(x, params["conv1"])
    one, places_one = F.max_pool2d(first, 3, return_indices=True)
    before = conv(one.clamp(min=0), params["conv2"])
    two, places_two = F.max_pool2d(before, 2, return_indices=True)
    unit = torch.zeros_like(two)
    for i in range(2):
        unit[i, channel].view(-1)[two[i, channel].argmax()] = 1  # the strongest activation, the others zero
    back = F.max_unpool2d(unit, places_two, 2, output_size=before.shape)
    back = F.conv_transpose2d(back, tensor(params["conv2"]["kernel"]).permute(3, 2, 0, 1)).clamp(min=0)
    back = F.max_unpool2d(back, places_one, 3, output_size=first.shape)
    theirs = F.conv_transpose2d(back, tensor(params["conv1"]["kernel"]).permute(3, 2, 0, 1))
    np.testing.assert_allclose(ours[..., 0], theirs[:, 0], atol=1e-4 * np.abs(theirs.numpy()).max())


def test_unpooling_is_pytorchs():
    x = drawn.normal(2, 6, 8, 3)
    pooled, places = F.max_pool2d(tensor(x).permute(0, 3, 1, 2), 2, return_indices=True)
    theirs = F.max_unpool2d(pooled, places, 2).permute(0, 2, 3, 1).numpy()
    ours = saliency.unpool(jnp.asarray(pooled.permute(0, 2, 3, 1).numpy()), x, lambda x: max_pool(x, (2, 2)))
    np.testing.assert_array_equal(ours, theirs)
