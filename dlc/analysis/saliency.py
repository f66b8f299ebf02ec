"""What in an image made a network answer as it did: one number for each pixel, by seven methods.

    score = saliency.of_class(label)                                   # outputs -> one number for each image
    saliency.gradient(apply, variables, pixels, score)                 # Simonyan et al. 2014
    saliency.deconvnet(apply, variables, pixels, score)                # Zeiler, Fergus 2014
    saliency.guided(apply, variables, pixels, score)                   # Springenberg et al. 2014
    saliency.integrated(apply, variables, pixels, score)               # Sundararajan et al. 2017
    saliency.smooth(apply, variables, pixels, score, key)              # Smilkov et al. 2017
    saliency.grad_cam(apply, variables, pixels, score, "conv2")        # Selvaraju et al. 2017
    saliency.occlusion(apply, variables, pixels, score, 6, 2)          # Zeiler, Fergus 2014

`apply(variables, pixels)` is a Flax model's, or any function; `layer(apply, name)` is that of a layer. The first five
return what the pixels have, [B, H, W, C], `grad_cam` a map [B, H, W], and `occlusion` a map [B, h, w] of the score.
All are pure, and can be compiled.

Glossary: B batch, H W height and width, h w the same of a map, C channels, S shares of the pixels.

References:
    [1] Simonyan, Vedaldi, Zisserman 2014, "Deep inside convolutional networks", section 3.
    [2] Zeiler, Fergus 2014, "Visualizing and understanding convolutional networks", sections 2.1 and 4.2.
    [3] Springenberg, Dosovitskiy, Brox, Riedmiller 2014, "Striving for simplicity: the all convolutional net".
    [4] Sundararajan, Taly, Yan 2017, "Axiomatic attribution for deep networks", sections 3 and 5.
    [5] Smilkov, Thorat, Kim, Viégas, Wattenberg 2017, "SmoothGrad: removing noise by adding noise".
    [6] Selvaraju et al. 2017, "Grad-CAM: visual explanations from deep networks via gradient-based localization".
    [7] Petsiuk, Das, Saenko 2018, "RISE: randomized input sampling for explanation of black-box models".
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, Key, Num, UInt8

from dlc.analysis import features, relu
from dlc.errors import UserError

Apply = Callable[..., Any]
Score = Callable[[Any], Any]  # outputs [B, ...] -> [B]
Pixels = Num[Array | np.ndarray, "B H W C"]
Map = Float[Array, "B H W C"]


def of_class(label: Int[Array | np.ndarray, " B"] | int) -> Score:
    """The logit of the class `label`, one for all images or one for each."""
    return lambda logits: logits[jnp.arange(len(logits)), jnp.broadcast_to(jnp.asarray(label), len(logits))]


def of_probability(label: Int[Array | np.ndarray, " B"] | int) -> Score:
    """The probability of the class `label`, one for all images or one for each."""
    return lambda logits: of_class(label)(jax.nn.softmax(logits))


def of_unit(unit: Int[Array | np.ndarray, " B"]) -> Score:
    """The activation of one unit of a layer for each image, by its place in the layer, as `strongest` gives it."""
    return lambda activation: activation.reshape(len(activation), -1)[jnp.arange(len(activation)), jnp.asarray(unit)]


def strongest(activation: Float[Array, "B h w C"]) -> tuple[Float[Array, "B C"], Int[Array, "B C"]]:
    """The largest activation of each map, and the unit that has it: the first, where several do."""
    flat = activation.reshape(len(activation), -1, activation.shape[-1])
    place = flat.argmax(1)
    channels = jnp.arange(activation.shape[-1])[None]
    return jnp.take_along_axis(flat, place[:, None], axis=1)[:, 0], place * activation.shape[-1] + channels


def layer(apply: Apply, name: str) -> Apply:
    """The function from variables and pixels to what the layer `name` of a Flax model returns.

    Raises UserError at the call, which lists the layers, if there is no such layer.
    """
    return lambda variables, pixels: features.activations(apply, variables, pixels, [name])[name]


def maps(apply: Apply, variables: Any, pixels: Pixels) -> list[str]:
    """The names of a Flax model's layers that return maps of several pixels, in their order; without dropout.

    Raises UserError if there are none.
    """
    shapes = features.shapes(apply, variables, pixels).items()
    found = [name for name, shape in shapes if len(shape) == 4 and shape[1] * shape[2] > 1 and "Dropout" not in name]
    if not found:
        raise UserError("this network has no layer that returns maps: look into one with convolutions")
    return found


def gradient(apply: Apply, variables: Any, pixels: Pixels, score: Score) -> Map:
    """The gradient of the score: how much it would rise with each pixel [1]."""
    return _gradient(lambda pixels: apply(variables, pixels), pixels, score)


def deconvnet(apply: Apply, variables: Any, pixels: Pixels, score: Score) -> Map:
    """What the score sees, projected back to the image: unpool by the switches, rectify, filter transposed [2].

    A pixel that is the maximum of several overlapping windows receives the sum of what they send back. Raises UserError
    if the network has no max-pooling, whose switches it needs, or no ReLU.
    """
    if not has_switches(apply, variables, pixels):
        raise UserError(
            "this network has no max-pooling, whose switches the deconvnet needs: use guided backpropagation"
        )
    return _gradient(relu.with_gradient(lambda pixels: apply(variables, pixels), relu.deconvnet), pixels, score)


def has_switches(apply: Apply, variables: Any, pixels: Pixels) -> bool:
    """Whether the network has max-pooling, so that `deconvnet` can look into it."""
    traced = jax.make_jaxpr(apply)(variables, _float(pixels))
    return any(operation.primitive.name == "reduce_window_max" for operation in relu.operations(traced.jaxpr))


def guided(apply: Apply, variables: Any, pixels: Pixels, score: Score) -> Map:
    """The gradient through only what is positive on both ways [3]. Raises UserError if the network has no ReLU."""
    return _gradient(relu.with_gradient(lambda pixels: apply(variables, pixels), relu.guided), pixels, score)


def integrated(apply: Apply, variables: Any, pixels: Pixels, score: Score, baseline: Any = 0.0, steps: int = 32) -> Map:
    """How much each pixel contributes to the difference between the scores of the image and of the baseline [4].

        (x - b) times the mean gradient on the straight line from b to x

    The contributions sum to the difference, up to the error of the sum over `steps` places on the line.
    """
    forward, pixels = lambda pixels: apply(variables, pixels), _float(pixels)
    start = jnp.asarray(baseline, pixels.dtype)
    difference = pixels - start.reshape((1,) * (4 - start.ndim) + start.shape)

    def along(total: Any, share: Any) -> Any:
        return total + _gradient(forward, pixels - share * difference, score), None

    total, _ = jax.lax.scan(along, jnp.zeros_like(pixels), (jnp.arange(steps) + 0.5) / steps)
    return jnp.asarray(difference * total / steps)


def smooth(
    apply: Apply,
    variables: Any,
    pixels: Pixels,
    score: Score,
    key: Key[Array, ""],
    samples: int = 32,
    noise: float = 0.15,
) -> Map:
    """The mean gradient over `samples` copies of the image with Gaussian noise [5].

    The noise has the standard deviation `noise` times the range of the image's pixels.
    """
    forward, pixels = lambda pixels: apply(variables, pixels), _float(pixels)
    deviation = noise * jnp.ptp(pixels, axis=(1, 2, 3), keepdims=True)

    def one(total: Any, key: Any) -> Any:
        noisy = pixels + deviation * jax.random.normal(key, pixels.shape, pixels.dtype)
        return total + _gradient(forward, noisy, score), None

    total, _ = jax.lax.scan(one, jnp.zeros_like(pixels), jax.random.split(key, samples))
    return total / samples


def grad_cam(apply: Apply, variables: Any, pixels: Pixels, score: Score, name: str) -> Float[Array, "B H W"]:
    """Where the layer `name` of a Flax model speaks for the score, resized to the image [6].

        max(sum over k of a_k A_k, 0),  a_k the mean over the map of the gradient for A_k

    Raises UserError if there is no such layer, or if it returns no maps.
    """
    pixels = _float(pixels)
    shapes = features.shapes(apply, variables, pixels)
    shape = shapes[features.known(name, shapes)]
    if len(shape) != 4:
        maps = [known for known, shape in shapes.items() if len(shape) == 4]
        raise UserError(f"the layer {name!r} returns no maps: choose from {', '.join(maps)}")
    place, _, time = name.partition(":")  # a layer's second call is "conv1:2"
    path, index = tuple(place.split("/")), int(time or 1) - 1

    def scores(change: Any) -> Any:
        found = []

        def moved(call: Any, arguments: Any, keywords: Any, context: Any) -> Any:
            output = call(*arguments, **keywords)
            if context.module.path != path or context.method_name != "__call__":
                return output
            found.append(output)
            return output + change if len(found) == index + 1 else output

        with nn.intercept_methods(moved):
            value = score(apply(variables, pixels))
        return value.sum(), found[index]

    slope, maps = jax.grad(scores, has_aux=True)(jnp.zeros(shape, pixels.dtype))
    cam = jnp.maximum((slope.mean((1, 2), keepdims=True) * maps).sum(-1), 0)
    return jax.image.resize(cam, pixels.shape[:3], "linear")


def occlusion(
    apply: Apply, variables: Any, pixels: Pixels, score: Score, size: int, stride: int = 1, fill: float = 127.5
) -> Float[Array, "B h w"]:
    """The score when a square of `size` pixels is covered, for each of its places, `stride` pixels apart [2].

    Raises UserError if the square is larger than the image, or if the stride is not at least 1.
    """
    pixels = _float(pixels)
    height, width = pixels.shape[1:3]
    if stride < 1:
        raise UserError(f"the stride must be at least 1, not {stride}")
    if not 0 < size <= min(height, width):
        raise UserError(f"a square of {size}x{size} cannot cover a part of an image of {height}x{width}")
    rows, columns = jnp.arange(height), jnp.arange(width)

    def covered(place: Any) -> Any:
        down = (place[0] <= rows) & (rows < place[0] + size)
        across = (place[1] <= columns) & (columns < place[1] + size)
        return score(apply(variables, jnp.where((down[:, None] & across[None])[None, :, :, None], fill, pixels)))

    tops, lefts = jnp.arange(0, height - size + 1, stride), jnp.arange(0, width - size + 1, stride)
    places = jnp.stack(jnp.meshgrid(tops, lefts, indexing="ij"), -1).reshape(-1, 2)
    return jnp.moveaxis(jax.lax.map(covered, places).reshape(len(tops), len(lefts), -1), -1, 0)


def field(apply: Apply, variables: Any, pixels: Pixels, score: Score) -> Bool[Array, "B H W"]:
    """The box around the pixels whose gradient is not zero: for one unit, its receptive field.

    It is smaller where ReLU and max-pooling let no gradient pass to the edges of that field.
    """
    slope = jnp.abs(gradient(apply, variables, pixels, score)).sum(-1)
    seen = slope > 1e-4 * slope.max((1, 2), keepdims=True)  # Winograd's rounding errors reach a little further
    return _between(seen.any(2))[:, :, None] & _between(seen.any(1))[:, None]


def edges(pixels: Pixels) -> Float[Array, "B H W"]:
    """How fast the brightness changes at each pixel: what an explanation that knows no network would mark."""
    return jnp.hypot(*jnp.gradient(_float(pixels).mean(-1), axis=(1, 2)))


def importance(found: Float[Array, "B H W *C"], size: tuple[int, int]) -> Float[Array, "B {size[0]} {size[1]}"]:
    """One number for each pixel: the sum of the absolute values of its channels; a map is resized to `size`."""
    if found.ndim == 4:
        return jnp.abs(found).sum(-1)
    return jax.image.resize(found, (len(found), *size), "linear")


def shaded(order: Float[Array | np.ndarray, "B H W"]) -> UInt8[np.ndarray, "B H W 1"]:
    """Importance as grey images: black is the least, white what one pixel in a hundred exceeds."""
    order = np.asarray(order) - np.min(order, (1, 2), keepdims=True)
    bright = np.quantile(order, 0.99, axis=(1, 2), keepdims=True)
    return (255 * np.clip(order / np.maximum(bright, 1e-12), 0, 1)).astype(np.uint8)[..., None]


def blocks(order: Float[Array, "B H W"], side: int) -> Float[Array, "B H W"]:
    """The mean importance of each square of about `side` pixels, at every pixel of it."""
    height, width = (max(1, n // side) for n in order.shape[1:])
    return jax.image.resize(jax.image.resize(order, (len(order), height, width), "linear"), order.shape, "nearest")


def deleted(pixels: Pixels, order: Float[Array, "B H W"], share: Any, fill: float = 127.5) -> Map:
    """The images without the `share` of pixels that come first in the order, largest first, which get `fill`.

    The share is one for all images or one for each.
    """
    pixels, flat = _float(pixels), jnp.asarray(order).reshape(len(order), -1)
    rank = flat.argsort(-1, descending=True).argsort(-1).reshape(order.shape)
    count = jnp.broadcast_to(jnp.round(jnp.asarray(share) * flat.shape[1]), len(order))
    return jnp.where((rank < count[:, None, None])[..., None], fill, pixels)


def deletion(
    apply: Apply, variables: Any, pixels: Pixels, score: Score, order: Float[Array, "B H W"], shares: Any
) -> Float[Array, "B S"]:
    """What is left of the score when each of the `shares` of pixels, [S] or [S, B], is deleted [7]."""

    def scored(share: Any) -> Any:
        return score(apply(variables, deleted(pixels, order, share)))

    return jax.lax.map(scored, jnp.asarray(shares)).T / score(apply(variables, _float(pixels)))[:, None]


def cut(images: Num[Array | np.ndarray, "B H W C"], inside: Bool[Array | np.ndarray, "B H W"]) -> np.ndarray:
    """The parts of images around boxes, as of `field`: all as large as the largest box, and none beyond its image."""
    rows, columns = (np.any(inside, axis=axis) for axis in (2, 1))
    side = max(int(np.sum(seen, axis=1).max()) for seen in (rows, columns))

    def first(seen: Any) -> int:
        return int(np.clip(seen.argmax() + (seen.sum() - side) // 2, 0, max(len(seen) - side, 0)))

    parts = []
    for image, down, across in zip(np.asarray(images), np.asarray(rows), np.asarray(columns), strict=True):
        top, left = first(down), first(across)
        parts.append(image[top : top + side, left : left + side])
    return np.stack(parts)


def unpool(y: Float[Array, "B h w C"], x: Float[Array, "B H W C"], pool: Callable[[Any], Any]) -> Map:
    """`y` at the switches, the places in `x` where `pool(x)` found its maxima; zero elsewhere [2].

    Where windows overlap, a place that is the maximum of several receives the sum of what they have.
    """
    return jax.vjp(pool, x)[1](y)[0]


def _gradient(forward: Callable[[Any], Any], pixels: Pixels, score: Score) -> Map:
    return jax.grad(lambda pixels: score(forward(pixels)).sum())(_float(pixels))


def _between(seen: Any) -> Any:
    """From the first to the last that is seen, in each row."""
    return (seen.cumsum(1) > 0) & (seen[:, ::-1].cumsum(1)[:, ::-1] > 0)


def _float(pixels: Pixels) -> Any:
    pixels = jnp.asarray(pixels)
    return pixels if jnp.issubdtype(pixels.dtype, jnp.floating) else pixels.astype(jnp.float32)
