"""Random changes of images in training, inside the compiled step.

They are pure functions of a key: `on_device(step, arrays, augment)` passes a new key in every step. Images are NHWC,
uint8 or float, and keep their dtype.

Glossary: N examples, B batch, H W height and width, C channels, K classes.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

from dlc.errors import UserError
from dlc.train import Batch, Metrics, State, Step

Images = Array | np.ndarray

LUMA = (0.299, 0.587, 0.114)  # the weights of red, green and blue in grey: ITU-R recommendation BT.601, section 2.5.1


Augment = Callable[[Any, Any], Any]  # (key, batch) -> batch


def of_images(function: Callable[[Any, Any], Any]) -> Augment:
    """Turns a function of (key, images) into one of (key, batch) that changes `batch["image"]`."""
    return lambda key, batch: {**batch, "image": function(key, batch["image"])}


def chained(*functions: Augment) -> Augment:
    """Applies functions of (key, batch) one after the other, each with its own key."""

    def chain(key: Any, batch: Any) -> Any:
        for i, function in enumerate(functions):
            batch = function(jax.random.fold_in(key, i), batch)
        return batch

    return chain


# Moves of the pixels


def flip(key: Key[Array, ""], images: Shaped[Images, "B H W C"]) -> Shaped[Array, "B H W C"]:
    """Flips each image left to right with probability 1/2."""
    return _flipped(jnp.asarray(images), jax.random.bernoulli(key, shape=images.shape[:1]))


def alternating_flip(
    key: Key[Array, ""], images: Shaped[Images, "B H W C"], row: Int[Images, " B"], epoch: Int[Array, ""] | int
) -> Shaped[Array, "B H W C"]:
    """Flips image `row` of the data set left to right in every other epoch, so that two epochs show both orientations.

        flipped = first(row) xor (epoch is odd)

    `first` is a fair coin that depends only on key and row: it is the same in every epoch and in any batch.

    Source: Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU" (arXiv 2404.00498), section 3.6.
    """
    # Loss and augmentation draw from fold_in(key, step). The coins use a fold that no step ever reaches.
    key = jax.random.fold_in(key, 2**32 - 1)
    first = jax.vmap(lambda row: jax.random.bernoulli(jax.random.fold_in(key, row)))(jnp.asarray(row))
    return _flipped(jnp.asarray(images), first ^ (epoch % 2 == 1))


def alternating(step: Step, steps_per_epoch: int) -> Step:
    """A step that applies `alternating_flip` to `batch["image"]`, whose rows in the data set are `batch["row"]`.

        step = on_device(alternating(step, steps_per_epoch), {**train_set, "row": np.arange(N)})

    Raises UserError if the batch has no rows.
    """

    def alternated(step: Step, state: State, batch: Batch) -> tuple[State, Metrics]:
        if "row" not in batch:
            raise UserError('alternating flips need the rows of their images: add "row": np.arange(N) to the arrays')
        image = alternating_flip(state.key, batch["image"], batch["row"], state.step // steps_per_epoch)
        return step(state, {**batch, "image": image})

    return Partial(alternated, step if isinstance(step, Partial) else Partial(step))


def translate(
    key: Key[Array, ""],
    images: Shaped[Images, "B H W C"],
    pixels: int,
    mode: Literal["reflect", "constant"] = "reflect",
) -> Shaped[Array, "B H W C"]:
    """Shifts each image by up to `pixels` along either axis; all (2 pixels + 1)^2 shifts are equally likely.

    The new pixels at the edges mirror the image (the outermost pixels are not repeated), or are zeros with mode
    "constant". With 4 pixels of zeros this is the crop of He et al. 2015, "Deep residual learning for image
    recognition", section 4.2.

    Raises UserError if an image is too small to be shifted that far.
    """
    B, H, W, _ = images.shape
    if pixels >= min(H, W):
        raise UserError(f"an image of {H}x{W} cannot be shifted by {pixels} pixels: choose fewer")
    moves = jax.random.randint(key, (2, B, 1), -pixels, pixels + 1)
    rows, columns = moves[0] + jnp.arange(H)[None], moves[1] + jnp.arange(W)[None]
    if mode == "constant":
        inside = ((rows >= 0) & (rows < H))[:, :, None, None] & ((columns >= 0) & (columns < W))[:, None, :, None]
        moved = _take(jnp.asarray(images), rows.clip(0, H - 1), columns.clip(0, W - 1))
        return jnp.where(inside, moved, jnp.zeros((), moved.dtype))

    def mirrored(i: Array, size: int) -> Array:
        return size - 1 - abs(size - 1 - abs(i))

    return _take(jnp.asarray(images), mirrored(rows, H), mirrored(columns, W))


def crop(key: Key[Array, ""], images: Shaped[Images, "B H W C"], size: tuple[int, int]) -> Shaped[Array, "B h w C"]:
    """A window of `size` (height, width) from each image; all positions are equally likely.

    Raises UserError if the window is larger than the image.
    """
    B, H, W, _ = images.shape
    (h, w), (top, left) = size, jax.random.split(key)
    if h > H or w > W:
        raise UserError(f"a crop of {h}x{w} is larger than its image of {H}x{W}")
    rows = jax.random.randint(top, (B, 1), 0, H - h + 1) + jnp.arange(h)[None]
    columns = jax.random.randint(left, (B, 1), 0, W - w + 1) + jnp.arange(w)[None]
    return _take(jnp.asarray(images), rows, columns)


# Changes of the pixels themselves


def cutout(key: Key[Array, ""], images: Shaped[Images, "B H W C"], size: int) -> Shaped[Array, "B H W C"]:
    """Sets a square of side `size` in each image to zero. It is centred on any pixel and clipped at the edges.

    Source: DeVries & Taylor 2017, "Improved regularization of convolutional neural networks with cutout", section 3.2.
    In the paper, images are standardised first, so that zero is the mean.

    Raises UserError if the square is larger than the image.
    """
    B, H, W, _ = images.shape
    if size > min(H, W):
        raise UserError(f"a square of {size}x{size} is larger than its image of {H}x{W}")
    images = jnp.asarray(images)
    return jnp.where(_boxes(key, B, H, W, size, size), jnp.zeros((), images.dtype), images)


def mixup(key: Key[Array, ""], batch: dict[str, Any], alpha: float, classes: int) -> dict[str, Any]:
    """Mixes each image and label with those of another example of the batch.

        x' = m x + (1 - m) x[partner],  y' = m y + (1 - m) y[partner],  m from Beta(alpha, alpha)

    As in the paper's listing, the whole batch has one m and one permutation of partners. `label` is int [B] or a
    distribution [B, K], and becomes a distribution [B, K], at least float32. Images of integers are rounded. With
    alpha 0 nothing is mixed.

    Source: Zhang, Cisse, Dauphin, Lopez-Paz 2018, "mixup: beyond empirical risk minimization", figure 1.
    """
    image, label = jnp.asarray(batch["image"]), _distribution(batch["label"], classes)
    if alpha > 0:
        among, share = jax.random.split(key)
        partner = jax.random.permutation(among, len(image))
        m = jax.random.beta(share, alpha, alpha, dtype=label.dtype)
        mixed = m * image + (1 - m) * image[partner]
        whole = jnp.issubdtype(image.dtype, jnp.integer)
        image = (jnp.rint(mixed) if whole else mixed).astype(image.dtype)
        label = m * label + (1 - m) * label[partner]
    return {**batch, "image": image, "label": label}


def cutmix(key: Key[Array, ""], batch: dict[str, Any], alpha: float, classes: int) -> dict[str, Any]:
    """Fills a box in each image from another image of the batch, and mixes labels in proportion to the pixels.

        height, width = sqrt(1 - m) (H, W),  m from Beta(alpha, alpha),  centred on any pixel

    As in the paper's listing, the whole batch has one box and one permutation of partners. Pixels are counted after the
    box is clipped at the edges. `label` is int [B] or a distribution [B, K], and becomes a distribution [B, K],
    at least float32. With alpha 0 nothing is mixed.

    Source: Yun et al. 2019, "CutMix: regularization strategy to train strong classifiers with localizable features",
    section 3.1 and supplement A.
    """
    image, label = jnp.asarray(batch["image"]), _distribution(batch["label"], classes)
    if alpha > 0:
        among, share, where = jax.random.split(key, 3)
        partner = jax.random.permutation(among, len(image))
        side = jnp.sqrt(1 - jax.random.beta(share, alpha, alpha, dtype=label.dtype))
        H, W = image.shape[1:3]
        box = _boxes(where, 1, H, W, (side * H).astype(jnp.int32), (side * W).astype(jnp.int32))
        image = jnp.where(box, image[partner], image)
        theirs = box.sum().astype(label.dtype) / (H * W)
        label = (1 - theirs) * label + theirs * label[partner]
    return {**batch, "image": image, "label": label}


def color_jitter(
    key: Key[Array, ""],
    images: Float[Images, "B H W C"],
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
) -> Float[Array, "B H W C"]:
    """Changes the brightness, the contrast and the saturation of each image.

        x <- f x + (1 - f) g,  first with g = 0, then with the mean grey of the image, then with the grey of each pixel

    Each factor f is uniform in [1 - strength, 1 + strength]. Zero must mean black, and images have one channel or red,
    green and blue. Values may leave their range.

    Source: Howard 2013, "Some improvements on deep convolutional neural network based image classification", section 2.

    Raises UserError for other numbers of channels and for integers.
    """
    B, _, _, C = images.shape
    if C not in (1, 3):
        raise UserError(f"images with {C} channels cannot be colour-jittered: pass grey or RGB images")

    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise UserError(f"{images.dtype} images cannot be colour-jittered: convert them to float first")
    x = jnp.asarray(images)
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    strength = jnp.array([brightness, contrast, saturation], x.dtype).reshape(3, 1, 1, 1, 1)
    f = jax.random.uniform(key, (3, B, 1, 1, 1), x.dtype, minval=1 - strength, maxval=1 + strength)
    # Grey is linear, so it changes as x does. Recomputing it after each change took 7 to 10 times as long on a CPU.
    grey = x if C == 1 else sum(share * x[..., c : c + 1] for c, share in enumerate(LUMA))
    x, grey = f[0] * x, f[0] * grey
    mean = grey.mean((1, 2, 3), keepdims=True)
    x, grey = (f[1] * value + (1 - f[1]) * mean for value in (x, grey))
    x = f[2] * x + (1 - f[2]) * grey
    return x.astype(images.dtype)


def color_noise(
    key: Key[Array, ""], images: Float[Images, "B H W 3"], components: Float[Images, "3 3"], strength: float = 0.1
) -> Float[Array, "B H W 3"]:
    """Changes the light of each image along the principal components of the data set's colours.

        x <- x + a1 l1 p1 + a2 l2 p2 + a3 l3 p3,  each a from N(0, strength^2), drawn once for each image

    The `components` are l p, eigenvalue times eigenvector. Images are on the scale 0 to 1, with any offset.

    Source: Krizhevsky, Sutskever, Hinton 2012, "ImageNet classification with deep convolutional neural networks",
    section 4.1. The paper does not give the scale; on 0 to 255 the eigenvalues would be larger than any image.
    """
    images = jnp.asarray(images)
    full = jnp.promote_types(images.dtype, jnp.float32)
    drawn = strength * jax.random.normal(key, (len(images), 3), full)
    return images + (drawn @ jnp.asarray(components, full))[:, None, None].astype(images.dtype)


def _flipped(images: Array, which: Bool[Array, " B"]) -> Array:
    return jnp.where(which[:, None, None, None], images[:, :, ::-1], images)


def _take(images: Array, rows: Int[Array, "B h"], columns: Int[Array, "B w"]) -> Array:
    """out[b, i, j] = images[b, rows[b, i], columns[b, j]].

    This gathers whole pixels directly from the image, so that no padded image is written first. On a CPU, for 2,000
    images of 32x32x3, it takes 0.5 to 0.8 times as long as slices of padded images, and 0.02 to 0.5 times as long as a
    choice among all shifted copies, which XLA no longer fuses from 9 shifts on.
    """
    B, H, W, C = images.shape
    at = (jnp.arange(B)[:, None, None] * H + rows[:, :, None]) * W + columns[:, None, :]
    return images.reshape(-1, C).at[at].get(mode="promise_in_bounds")


def _boxes(key: Key[Array, ""], count: int, H: int, W: int, height: Any, width: Any) -> Bool[Array, "count H W 1"]:
    """A mask of boxes that are centred on any pixel and clipped at the edges."""
    y, x = (
        jax.random.randint(key, (count, 1), 0, size) for key, size in zip(jax.random.split(key), (H, W), strict=True)
    )
    rows, columns = jnp.arange(H)[None] - (y - height // 2), jnp.arange(W)[None] - (x - width // 2)
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    return inside[..., None]


def _distribution(label: Any, classes: int) -> Float[Array, "B K"]:
    label = jnp.asarray(label)
    if label.ndim == 1:
        return jax.nn.one_hot(label, classes, dtype=jnp.float32)
    return label.astype(jnp.promote_types(label.dtype, jnp.float32))
