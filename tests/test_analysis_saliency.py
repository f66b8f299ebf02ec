"""Looking back from a network to the image: properties of every method, and their errors."""

import drawn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from dlc.analysis import features, relu, saliency
from dlc.errors import UserError
from dlc.layers.pooling import max_pool
from dlc.models.airbench import airbench94
from dlc.models.convnet import Convnet
from dlc.models.mlp import MLP
from dlc.models.resnet_cifar import cifar_resnet
from dlc.models.squeezenet import squeezenet1_1

LABEL = np.array([3, 1])


def network(model, *shape):
    pixels = 100 * drawn.normal(2, *shape)
    return model.apply, drawn.variables(model, pixels), pixels


@pytest.fixture(scope="module")
def convnet():
    return network(Convnet(), 28, 28, 1)


METHODS = {
    "gradient": saliency.gradient,
    "deconvnet": saliency.deconvnet,
    "guided": saliency.guided,
    "integrated": saliency.integrated,
    "smooth": lambda *rest: saliency.smooth(*rest, jax.random.key(0), 4),
    "grad_cam": lambda *rest: saliency.grad_cam(*rest, "conv1"),
    "occlusion": lambda *rest: saliency.occlusion(*rest, 14, 7),
}


@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_the_same_compiled_and_mapped_and_sees_each_image_for_itself(method, convnet):
    apply, variables, pixels = convnet

    def explain(pixels, label):
        return METHODS[method](apply, variables, pixels, saliency.of_class(label))

    both = np.asarray(jax.jit(explain)(pixels, LABEL))
    assert both.shape[:1] == (2,)
    assert np.abs(both).max() > 0
    if method != "smooth":  # whose noise is drawn for the whole batch
        mapped = jax.jit(jax.vmap(explain))(pixels[:, None], LABEL[:, None])
        np.testing.assert_allclose(mapped[:, 0], both, rtol=1e-4, atol=1e-5 * np.abs(both).max())


@pytest.mark.parametrize(
    ("model", "shape"),
    [(Convnet(), (28, 28, 1)), (cifar_resnet(8), (32, 32, 3)), (squeezenet1_1(num_classes=5), (48, 48, 3))],
    ids=["convnet", "resnet", "squeezenet"],
)
def test_every_relu_is_found(model, shape):
    """With its own rule the gradient is the gradient; with a rule that lets nothing pass it is zero."""
    apply, variables, pixels = network(model, *shape)

    def slope(rule):
        forward = lambda pixels: apply(variables, pixels)  # noqa: E731
        changed = relu.with_gradient(forward, rule) if rule else forward
        return jax.value_and_grad(lambda pixels: changed(pixels)[:, 1].sum())(pixels)

    value, plain = jax.jit(lambda: slope(None))()
    same, own = jax.jit(lambda: slope(lambda x, g: jnp.where(x > 0, g, 0)))()
    np.testing.assert_allclose(same, value, rtol=1e-6)
    np.testing.assert_allclose(own, plain, rtol=1e-4, atol=1e-6 * np.abs(plain).max())
    assert np.abs(plain).max() > 0
    assert not np.any(jax.jit(lambda: slope(lambda x, g: 0 * g)[1])())


def test_the_rules_differ_only_in_what_passes():
    x, g = jnp.array([-1.0, -1.0, 1.0, 1.0]), jnp.array([-2.0, 2.0, -2.0, 2.0])
    back = lambda rule: jax.vjp(relu.with_gradient(nn.relu, rule), x)[1](g)[0].tolist()  # noqa: E731
    assert back(relu.deconvnet) == [0, 2, 0, 2]
    assert back(relu.guided) == [0, 0, 0, 2]


def test_the_deconvnet_of_one_unit_sees_its_receptive_field(convnet):
    apply, variables, pixels = convnet
    first = saliency.layer(apply, "conv1")
    activation = first(variables, pixels)
    values, units = saliency.strongest(activation)
    np.testing.assert_array_equal(values, activation.max((1, 2)))
    np.testing.assert_array_equal(saliency.of_unit(units[:, 4])(activation), values[:, 4])
    found = np.abs(saliency.deconvnet(first, variables, pixels, saliency.of_unit(units[:, 4]))[0, :, :, 0])
    down, across, channel = np.unravel_index(units[0, 4], activation.shape[1:])
    assert channel == 4
    rows, columns = np.nonzero(found)
    assert 0 < len(rows) <= 25  # one 5x5 filter, at the switch of a pool of 3x3
    for seen, start in ((rows, 3 * down), (columns, 3 * across)):
        assert start <= seen.min() <= seen.max() < start + 7


@pytest.mark.parametrize("padding", [((0, 0), (0, 0)), ((1, 1), (0, 0))])
def test_unpooling_inverts_pooling_at_the_switches(padding):
    x = jnp.abs(drawn.normal(2, 6, 9, 3)) + 1
    pool = lambda x: max_pool(x, (2, 3), padding=padding)  # noqa: E731
    pooled = pool(x)
    back = saliency.unpool(pooled, x, pool)
    np.testing.assert_array_equal(pool(back), pooled)
    np.testing.assert_array_equal(back, jnp.where(back != 0, x, 0))
    assert (back != 0).sum() == pooled.size
    np.testing.assert_array_equal(saliency.unpool(2 * pooled, x, pool), 2 * back)


def test_where_windows_overlap_unpooling_sums():
    x = jnp.array([0.0, 1, 0, 5, 0, 2, 0]).reshape(1, 1, 7, 1)
    back = saliency.unpool(jnp.array([1.0, 10, 100]).reshape(1, 1, 3, 1), x, lambda x: max_pool(x, (1, 3), (1, 2)))
    assert back.ravel().tolist() == [0, 1, 0, 10, 0, 100, 0]
    back = saliency.unpool(jnp.array([1.0, 10]).reshape(1, 1, 2, 1), x, lambda x: max_pool(x, (1, 4), (1, 2)))
    assert back.ravel().tolist() == [0, 0, 0, 11, 0, 0, 0]


@pytest.mark.parametrize("baseline", [0.0, 30.0, np.full((28, 28, 1), 50.0)], ids=["black", "grey", "image"])
def test_integrated_gradients_sum_to_the_difference(convnet, baseline):
    apply, variables, pixels = convnet
    score = saliency.of_class(LABEL)
    shares = jax.jit(lambda: saliency.integrated(apply, variables, pixels, score, baseline, 400))()
    ends = [score(apply(variables, x)) for x in (pixels, jnp.broadcast_to(jnp.asarray(baseline), pixels.shape))]
    difference = np.asarray(ends[0] - ends[1])
    np.testing.assert_allclose(shares.sum((1, 2, 3)), difference, atol=0.01 * np.abs(difference).max())


def test_without_noise_the_smooth_gradient_is_the_gradient(convnet):
    apply, variables, pixels = convnet
    score = saliency.of_class(2)
    smooth = saliency.smooth(apply, variables, pixels, score, jax.random.key(1), 2, 0.0)
    np.testing.assert_allclose(smooth, saliency.gradient(apply, variables, pixels, score), rtol=1e-4, atol=1e-7)


def test_occlusion_is_the_score_without_what_is_covered():
    weights, pixels = drawn.normal(6, 8, 1), drawn.normal(2, 6, 8, 1, seed=1)
    apply = lambda weights, pixels: (weights[None] * pixels).sum((1, 2, 3))[:, None]  # noqa: E731
    found = saliency.occlusion(apply, weights, pixels, saliency.of_class(0), 2, 2, 1.0)
    assert found.shape == (2, 3, 4)
    covered = pixels.at[:, 2:4, 6:8].set(1.0)
    np.testing.assert_allclose(found[:, 1, 3], apply(weights, covered)[:, 0], rtol=1e-5)


def test_what_comes_first_is_deleted():
    pixels, order = jnp.ones((1, 2, 5, 3)), jnp.arange(10.0).reshape(1, 2, 5)
    left = saliency.deleted(pixels, order, 0.3, 7.0)
    assert left[0, :, :, 0].ravel().tolist() == [1] * 7 + [7] * 3
    np.testing.assert_array_equal(saliency.deleted(pixels, order, 0.0), pixels)


def test_grad_cam_of_linear_maps_is_their_weighted_sum():
    class Maps(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(3, (1, 1), name="maps")(x)
            return nn.Dense(2, name="head")(x.mean((1, 2)))

    apply, variables, pixels = network(Maps(), 4, 4, 1)
    maps = saliency.layer(apply, "maps")(variables, pixels)
    cam = jnp.maximum((maps * variables["params"]["head"]["kernel"][:, 1].reshape(1, 1, 1, -1)).sum(-1), 0) / 16
    found = saliency.grad_cam(apply, variables, pixels, saliency.of_class(1), "maps")
    np.testing.assert_allclose(found, cam, rtol=1e-5, atol=1e-6)


def test_grad_cam_tells_the_calls_of_one_layer_apart():
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            maps = nn.Conv(2, (1, 1), name="maps")
            x = maps(x)
            return nn.Dense(2, name="head")((maps(x) + 3 * x).mean((1, 2)))

    apply, variables, pixels = network(Twice(), 4, 4, 2)
    both = features.activations(apply, variables, pixels, ["maps", "maps:2"])
    kernels = variables["params"]
    last = kernels["head"]["kernel"][:, 1]
    slopes = {"maps": kernels["maps"]["kernel"][0, 0] @ last + 3 * last, "maps:2": last}
    for name, slope in slopes.items():
        found = saliency.grad_cam(apply, variables, pixels, saliency.of_class(1), name)
        np.testing.assert_allclose(found, jnp.maximum(both[name] @ slope, 0) / 16, rtol=1e-4, atol=1e-5)


def test_a_network_without_maps_is_one_sentence():
    with pytest.raises(UserError, match=r"^this network has no layer that returns maps: look into one with convolut"):
        saliency.maps(*network(MLP((20,)), 8, 8, 1))


SCORE = saliency.of_class(0)
LAYERS = "conv1, conv2, dense1, dense2"
WRONG = {
    "no pool": (cifar_resnet(8), (32, 32, 3), saliency.deconvnet, (), "has no max-pooling, whose switches the deconv"),
    "no ReLU": (airbench94(), (32, 32, 3), saliency.guided, (), "has no ReLU, whose gradient this method replaces"),
    "no layer": (Convnet(), (28, 28, 1), saliency.grad_cam, ("conv3",), f"^there is no layer 'conv3': .* {LAYERS}$"),
    "no maps": (Convnet(), (28, 28, 1), saliency.grad_cam, ("dense1",), "'dense1' returns no maps: .* conv1, conv2$"),
    "a large square": (Convnet(), (28, 28, 1), saliency.occlusion, (29,), "^a square of 29x29 cannot cover a part of"),
    "no square": (Convnet(), (28, 28, 1), saliency.occlusion, (0,), "^a square of 0x0 cannot cover a part of an image"),
    "no stride": (Convnet(), (28, 28, 1), saliency.occlusion, (7, 0), "^the stride must be at least 1, not 0$"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_done_is_said(case):
    model, shape, method, rest, sentence = WRONG[case]
    with pytest.raises(UserError, match=sentence):
        method(*network(model, *shape), SCORE, *rest)


def test_a_relu_inside_a_loop_is_said():
    def forward(x):
        return jax.lax.fori_loop(0, 2, lambda _, x: nn.relu(x), x)

    with pytest.raises(UserError, match=r"^this network has a ReLU inside a (scan|while)"):
        relu.with_gradient(forward, relu.guided)(jnp.ones(2))


def test_a_dense_network_has_no_pool_either():
    with pytest.raises(UserError, match="max-pooling"):
        saliency.deconvnet(*network(MLP((20,)), 8, 8, 1), SCORE)


def test_deletion_is_what_is_left_of_the_score():
    pixels = jnp.abs(drawn.normal(2, 4, 5, 1)) + 200
    apply = lambda variables, pixels: pixels.sum((1, 2, 3))[:, None]  # noqa: E731
    order = drawn.normal(2, 4, 5, seed=1)
    left = saliency.deletion(apply, None, pixels, SCORE, order, (0.0, 0.5, 1.0))
    assert left.shape == (2, 3)
    np.testing.assert_allclose(left[:, 0], 1, rtol=1e-6)
    assert (left[:, 1] < 1).all()
    np.testing.assert_allclose(left[:, 2], 127.5 * 20 / pixels.sum((1, 2, 3)), rtol=1e-5)
    each = saliency.deletion(apply, None, pixels, SCORE, order, jnp.array([[0.5, 1.0]]))
    np.testing.assert_allclose(each[:, 0], [left[0, 1], left[1, 2]], rtol=1e-6)


def test_blocks_are_squares_of_one_importance():
    order = drawn.normal(2, 6, 8)
    squares = saliency.blocks(order, 2)
    np.testing.assert_array_equal(squares[:, ::2, ::2], squares[:, 1::2, 1::2])
    assert len(np.unique(squares[0])) == 12
    np.testing.assert_allclose(saliency.blocks(order, 1), order, rtol=1e-6)
    assert saliency.blocks(order, 20).shape == order.shape


def test_what_is_cut_out_is_as_large_as_the_largest_box_and_around_its_own():
    images = np.arange(3 * 5 * 6).reshape(3, 5, 6, 1)
    inside = np.zeros((3, 5, 6), bool)
    inside[0, 1:4, 2:5] = inside[1, 4:, 5:] = inside[2, 2:3, 3:4] = True
    parts = saliency.cut(images, inside)
    assert parts.shape == (3, 3, 3, 1)
    np.testing.assert_array_equal(parts[0], images[0, 1:4, 2:5])
    np.testing.assert_array_equal(parts[1], images[1, 2:, 3:])
    np.testing.assert_array_equal(parts[2], images[2, 1:4, 2:5])


def test_importance_is_one_number_for_each_pixel_and_is_drawn_from_black_to_white():
    found = drawn.normal(2, 4, 6, 3)
    order = saliency.importance(found, (4, 6))
    np.testing.assert_allclose(order, np.abs(found).sum(-1), rtol=1e-6)
    assert saliency.importance(order, (8, 12)).shape == (2, 8, 12)
    shades = saliency.shaded(order)
    assert shades.shape == (2, 4, 6, 1)
    assert (shades.min((1, 2, 3)) == 0).all()
    assert (shades.max((1, 2, 3)) == 255).all()
    assert not saliency.edges(jnp.ones((1, 4, 4, 3))).any()
