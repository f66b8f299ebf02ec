"""Classics of ImageNet that torchvision and timm lack, compared with PyTorch's layers in the order of their sources."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlc.models.alexnet import alexnet, alexnet_bn, alexnet_ungrouped
from dlc.models.nin import nin, nin_bn

pytestmark = pytest.mark.peers
torch = pytest.importorskip("torch")
F = torch.nn.functional


class Theirs:
    """PyTorch's layers with our weights, by the paths of our modules."""

    def __init__(self, variables):
        self.variables = variables

    def _read(self, collection, name, leaf):
        array = np.asarray(self.variables[collection][name][leaf])
        turned = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[array.ndim]
        return torch.from_numpy(array.transpose(turned).copy())

    def conv(self, x, name, stride=1, padding=0, groups=1):
        weights = (self._read("params", name, leaf) for leaf in ("kernel", "bias"))
        return F.conv2d(x, *weights, stride, padding, groups=groups)

    def dense(self, x, name):
        return F.linear(x, *(self._read("params", name, leaf) for leaf in ("kernel", "bias")))

    def norm(self, x, name):
        statistics = (self._read("batch_stats", name, leaf) for leaf in ("mean", "var"))
        return F.batch_norm(x, *statistics, *(self._read("params", name, leaf) for leaf in ("scale", "bias")), eps=1e-3)


def alexnet_2012(net, x, groups):
    """Sections 3.1 to 3.5 of the paper."""
    for i, (stride, padding) in enumerate([(4, 0), (1, 2), (1, 1), (1, 1), (1, 1)], 1):
        x = F.relu(net.conv(x, f"conv{i}", stride, padding, groups if i in (2, 4, 5) else 1))
        if i in (1, 2):
            x = F.local_response_norm(x, 5, 5 * 1e-4, 0.75, 2.0)  # PyTorch divides by 5
        if i in (1, 2, 5):
            x = F.max_pool2d(x, 3, 2)
    for i in (1, 2):
        x = F.relu(net.dense(x.flatten(1), f"dense{i}"))
    return net.dense(x, "dense3")


def alexnet_with_norms(net, x):
    """models/alexnetowtbn_cudnn.lua"""
    for i, (stride, padding) in enumerate([(4, 2), (1, 2), (1, 1), (1, 1), (1, 1)], 1):
        x = F.relu(net.norm(net.conv(x, f"conv{i}", stride, padding), f"conv_norm{i}"))
        if i in (1, 2, 5):
            x = F.max_pool2d(x, 3, 2)
    for i in (1, 2):
        x = F.relu(net.norm(net.dense(x.flatten(1), f"dense{i}"), f"dense_norm{i}"))
    return net.dense(x, "dense3")


def nin_of_caffe(net, x):
    """NIN-Imagenet's train_val.prototxt; Caffe's pooling rounds up."""
    for i, padding in enumerate([0, 2, 1, 1], 1):
        for j in (1, 2, 3):
            stride = 4 if (i, j) == (1, 1) else 1
            x = F.relu(net.conv(x, f"conv{i}_{j}", stride, padding if j == 1 else 0))
        if i < 4:
            x = F.max_pool2d(x, 3, 2, ceil_mode=True)
    return F.adaptive_avg_pool2d(x, 1).flatten(1)


def nin_with_norms(net, x):
    """models/ninbn.lua"""
    for i, padding in enumerate([5, 2, 1, 1], 1):
        for j in (1, 2, 3):
            stride = 4 if (i, j) == (1, 1) else 1
            x = F.relu(net.norm(net.conv(x, f"conv{i}_{j}", stride, padding if j == 1 else 0), f"norm{i}_{j}"))
        if i < 4:
            x = F.max_pool2d(x, 3, 2, 1)
    return net.dense(F.adaptive_avg_pool2d(x, 1).flatten(1), "dense")


PAIRS = {
    "alexnet": (alexnet(hidden=16), lambda net, x: alexnet_2012(net, x, groups=2), (229, 231)),
    "alexnet_ungrouped": (alexnet_ungrouped(hidden=16), lambda net, x: alexnet_2012(net, x, groups=1), (227, 227)),
    "alexnet_bn": (alexnet_bn(hidden=16), alexnet_with_norms, (226, 231)),
    "nin": (nin(), nin_of_caffe, (101, 118)),
    "nin_bn": (nin_bn(), nin_with_norms, (101, 118)),
}


@pytest.mark.parametrize(("model", "theirs", "image"), PAIRS.values(), ids=PAIRS)
def test_the_logits_are_those_of_pytorchs_layers(model, theirs, image):
    random = np.random.default_rng(0)

    def drawn(at, leaf):
        name = at[-1].key
        if name == "kernel":  # He's, so that activations neither vanish nor grow
            return random.normal(0, (2 / np.prod(leaf.shape[:-1])) ** 0.5, leaf.shape).astype(np.float32)
        return random.uniform(0.5, 1.5, leaf.shape).astype(np.float32) - (name in ("bias", "mean"))

    x = random.normal(size=(2, *image, 3)).astype(np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.asarray(x))
    variables = jax.tree_util.tree_map_with_path(drawn, shapes)
    ours = jax.jit(model.apply)(variables, jnp.asarray(x))
    with torch.no_grad():
        expected = theirs(Theirs(variables), torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()
    scale = np.abs(expected).max()
    assert expected.std() > 0.01 * scale
    np.testing.assert_allclose(ours / scale, expected / scale, atol=1e-5)
