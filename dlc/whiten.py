"""A first layer that is computed and not learnt: filters whose responses to patches of images are uncorrelated."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dlc.errors import UserError


def whitening(
    images: Float[Array | np.ndarray, "N H W C"], size: int = 2, eps: float = 5e-4
) -> Float[Array, "size size C filters"]:
    """The kernel [size, size, C, 2 size^2 C] that whitens all `size` x `size` patches of standardised images, float32.

        P'P / count = V diag(l) V',  filters = V / sqrt(l + eps), then their negatives

    P has a row for each patch; it is not centred. A filter's responses have the mean square l / (l + eps): about 1
    unless there is less in its direction than `eps`, which keeps noise from being blown up. The strongest direction
    comes first, and a ReLU or GELU after the negatives loses nothing.

    Source: Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU" (arXiv 2404.00498), section 3.2, after Page
    2019, "How to train your ResNet 8: bag of tricks".

    Raises UserError if a patch is larger than an image.
    """
    _, H, W, C = images.shape
    h, w = H - size + 1, W - size + 1
    if min(h, w) < 1:
        raise UserError(f"a patch of {size}x{size} is larger than its image of {H}x{W}")
    images = jnp.asarray(images, jnp.float32)
    shifts = [images[:, y : y + h, x : x + w] for y in range(size) for x in range(size)]
    patches = jnp.concatenate(shifts, axis=-1).reshape(-1, size * size * C)
    # Ten bits of a product, as GPUs and TPUs have it unless told, are too few for the small eigenvalues.
    covariance = jnp.matmul(patches.T, patches, precision="highest") / len(patches)
    values, vectors = jnp.linalg.eigh(covariance)
    filters = (vectors / jnp.sqrt(jnp.maximum(values, 0) + eps)[None, :])[:, ::-1]
    return jnp.concatenate([filters, -filters], axis=1).reshape(size, size, C, -1)
