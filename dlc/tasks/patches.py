"""Patches of images, and ways to learn atoms of which they are sums: scikit-learn's and two networks.

Glossary: N patches, D = 64 pixels of a patch, K atoms, P = 49 patches of an image.
"""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from optax import adam, cosine_decay_schedule

from dlc import losses
from dlc.errors import needs
from dlc.train import init, make_step

SIDE, STRIDE = 8, 4


def normalised(patches: np.ndarray) -> np.ndarray:
    """Patches [..., D] of grey values 0 to 255 with mean 0 and contrast 1, as in Coates et al. 2011, section 3.1."""
    found = patches - patches.mean(-1, keepdims=True)
    return (found / np.sqrt(found.var(-1, keepdims=True) + 10)).astype(np.float32)


def at_random(images: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` grey patches [count, D] from random places of images [N, H, W, C]."""
    grey = images.mean(-1)
    n, (y, x) = rng.integers(len(grey), size=count), rng.integers(grey.shape[1] - SIDE + 1, size=(2, count))
    rows, columns = (place[:, None] + np.arange(SIDE) for place in (y, x))
    return grey[n[:, None, None], rows[:, :, None], columns[:, None]].reshape(count, -1)


def on_a_grid(images: np.ndarray) -> np.ndarray:
    """The grey patches [N, 7, 7, D] of images [N, 32, 32, C], half overlapping."""
    windows = np.lib.stride_tricks.sliding_window_view(images.mean(-1), (SIDE, SIDE), axis=(1, 2))
    windows = windows[:, ::STRIDE, ::STRIDE]
    return windows.reshape(*windows.shape[:3], -1)


def whitening(patches: np.ndarray, least: float = 0.1) -> np.ndarray:
    """The matrix [D, D] that makes patches [N, D] uncorrelated: ZCA, with `least` added to each variance."""
    variance, axes = np.linalg.eigh(np.cov(patches.T, bias=True))
    return ((axes / np.sqrt(variance + least)) @ axes.T).astype(np.float32)


def prepared(train: Any, test: Any, count: int, seed: int) -> tuple[Any, Any, Any, Any]:
    """Patches of training images, the same whitened, whitened ones of test images, and whole images with their labels.

    They are [count, D], [count, D], [2000, D], and ([4000, 7, 7, D], [4000]).
    """
    rng = np.random.default_rng(seed)
    some = rng.permutation(len(train["image"]))[:4000]
    raw = normalised(at_random(train["image"], count, rng))
    white = whitening(raw)
    held = normalised(at_random(test["image"], 2000, rng)) @ white
    whole = normalised(on_a_grid(train["image"][some])) @ white
    return raw, raw @ white, held, (whole, train["label"][some])


def classical(x: np.ndarray, count: int, seed: int) -> dict[str, np.ndarray]:
    """Atoms [K, D] by name, from patches [N, D], by scikit-learn. Raises UserError if that is not installed."""
    needs("digits", "sklearn")
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.decomposition import PCA, MiniBatchDictionaryLearning
    from sklearn.exceptions import ConvergenceWarning

    x = x.astype(np.float64)  # in float32 coordinate descent ends before it is as precise as asked
    pca = PCA(x.shape[1] - 1).fit(x)  # the mean of a patch is 0, so one direction is empty
    means = MiniBatchKMeans(count, batch_size=1024, n_init=1, max_iter=30, random_state=seed).fit(x)
    options = {"alpha": 1.0, "max_iter": 3, "batch_size": 256, "fit_algorithm": "cd", "random_state": seed}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of single codes, on the way
        sparse = MiniBatchDictionaryLearning(count, **options).fit(x)
    return {"PCA": pca.components_, "k-means": means.cluster_centers_, "sparse dictionary": sparse.components_}


def unit(rows: Any) -> Any:
    """Rows of length 1."""
    return rows / jnp.maximum(jnp.linalg.norm(rows, axis=-1, keepdims=True), 1e-8)


def minimised(loss: Any, params: Any, rows: Any, key: Any, rate: float) -> Any:
    """What Adam, whose rate falls to zero, makes of `params`: loss(params, row) for each of `rows` [steps, ...]."""
    tx = adam(cosine_decay_schedule(rate, len(rows)))
    step = make_step(lambda params, aux, row, key: (loss(params, row), (aux, {})), tx)
    return jax.lax.scan(step, init(params, tx, key), rows)[0].params


def auto_encoder(x: Any, key: Any, count: int, steps: int = 8000, price: float = 2.0) -> Any:
    """Atoms [K, D] of an auto-encoder with ReLU units whose mean activity has a price: |x - h D|² + price |h|."""
    one, two, three = jax.random.split(key, 3)
    d = x.shape[1]
    params = {
        "encode": unit(jax.random.normal(one, (count, d))).T,
        "bias": jnp.zeros(count),
        "decode": jax.random.normal(two, (count, d)),
    }

    def loss(params: Any, rows: Any) -> Any:
        hidden = jax.nn.relu(x[rows] @ params["encode"] + params["bias"][None])
        left = x[rows] - hidden @ unit(params["decode"])
        return jnp.square(left).sum(-1).mean() + price * hidden.sum(-1).mean()

    rows = jax.random.randint(three, (steps, 200), 0, len(x))
    return minimised(loss, params, rows, key, 3e-3)["decode"]


def first_layer(x: Any, label: Any, key: Any, count: int, steps: int = 800) -> Any:
    """Filters [K, D] of a network that learns the classes of images, given as patches [N, 7, 7, D].

    Each patch is filtered, then come ReLU, the mean over each quarter of the image, and a dense layer.
    """
    one, two, three = jax.random.split(key, 3)
    params = {
        "filters": unit(jax.random.normal(one, (count, x.shape[-1]))),
        "dense": jax.random.normal(two, (4 * count, 10)) / (4 * count) ** 0.5,
    }

    def loss(params: Any, rows: Any) -> Any:
        hidden = jax.nn.relu(x[rows] @ params["filters"].T)
        quarters = [hidden[:, i : i + 4, j : j + 4].mean((1, 2)) for i in (0, 3) for j in (0, 3)]
        return losses.cross_entropy(jnp.concatenate(quarters, -1) @ params["dense"], label[rows]).mean()

    rows = jax.random.randint(three, (steps, 64), 0, len(x))
    return minimised(loss, params, rows, key, 3e-3)["filters"]


def linear_auto_encoder(covariance: Any, key: Any, size: int, steps: int = 5000) -> Any:
    """The decoder [size, D] of an auto-encoder without units, which sees data only through their covariance [D, D]."""
    one, two = jax.random.split(key)
    d = len(covariance)
    params = {"encode": jax.random.normal(one, (d, size)) / 8, "decode": jax.random.normal(two, (size, d)) / 8}

    def loss(params: Any, _: Any) -> Any:
        left = jnp.eye(d) - params["encode"] @ params["decode"]
        return jnp.trace(left.T @ covariance @ left)

    return minimised(loss, params, jnp.zeros(steps), key, 0.03)["decode"]
