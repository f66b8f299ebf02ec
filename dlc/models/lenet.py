"""LeNet-5, as published in 1998 and as it is usually written today.

Glossary: B batch, H W height and width, C channels, K classes.

References: LeCun, Bottou, Bengio, Haffner 1998, "Gradient-based learning applied to document recognition",
Proceedings of the IEEE 86(11), section II-B. [1]
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dlc import layers
from dlc.errors import UserError

# The maps of S2 (of six) that each of the sixteen maps of C3 sees: table I of [1].
C3_TABLE = (
    *((i, (i + 1) % 6, (i + 2) % 6) for i in range(6)),
    *((i, (i + 1) % 6, (i + 2) % 6, (i + 3) % 6) for i in range(6)),
    (0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5),
    (0, 1, 2, 3, 4, 5),
)  # fmt: skip

# The target code of each digit: a stylised picture of it, 7 wide and 12 high, with +1 for ink. Figure 3 of [1] shows
# the original pictures; these are redrawn in the same style.
GLYPHS = """
.#####.  ...#...  .#####.  #######  ....##.  #######  ..####.  #######  .#####.  .#####.
##...##  ..##...  ##...##  .....##  ...###.  ##.....  .##....  #....##  ##...##  ##...##
##...##  .###...  .....##  ....##.  ..####.  ##.....  ##.....  .....##  ##...##  ##...##
##...##  ...#...  .....##  ...##..  .##.##.  ##.....  ##.....  ....##.  ##...##  ##...##
##...##  ...#...  ....##.  ..####.  ##..##.  ######.  ##.###.  ....##.  .#####.  ##...##
##...##  ...#...  ...##..  .....##  ##..##.  .....##  ###..##  ...##..  .#####.  .######
##...##  ...#...  ..##...  .....##  #######  .....##  ##...##  ...##..  ##...##  .....##
##...##  ...#...  .##....  .....##  ....##.  .....##  ##...##  ..##...  ##...##  .....##
##...##  ...#...  ##.....  .....##  ....##.  .....##  ##...##  ..##...  ##...##  .....##
##...##  ...#...  ##.....  .....##  ....##.  ##...##  ##...##  .##....  ##...##  ....##.
.#####.  .#####.  #######  ######.  ....##.  .#####.  .#####.  .##....  .#####.  .####..
.......  .......  .......  .......  .......  .......  .......  .......  .......  .......
"""


def codes() -> Float[np.ndarray, "K 84"]:
    """The ten target codes of F6, each 7 x 12 = 84 values of +-1 (figure 3 of [1])."""
    rows = [line.split() for line in GLYPHS.split("\n") if line]
    return np.array([[1.0 if c == "#" else -1.0 for row in rows for c in row[k]] for k in range(10)], np.float32)


def squash(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """1.7159 tanh(2x/3): f(+-1) = +-1, where its curvature is greatest (appendix A of [1])."""
    return 1.7159 * jnp.tanh(2 / 3 * x)


def _uniform(fan_in: int) -> nn.initializers.Initializer:
    """Uniform in +-2.4 / fan-in (section II-B of [1], where F_i is the number of inputs of the unit)."""
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -2.4 / fan_in, 2.4 / fan_in)


class Subsample(nn.Module):
    """The sum of each 2 x 2 square times a trainable coefficient, plus a bias; both are one for each map (S2, S4)."""

    dtype: Any = None
    param_dtype: Any = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H/2 W/2 C"]:
        B, H, W, C = x.shape
        kernel = self.param("kernel", _uniform(4), (C,), self.param_dtype)
        bias = self.param("bias", _uniform(4), (C,), self.param_dtype)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return x.reshape(B, H // 2, 2, W // 2, 2, C).sum((2, 4)) * kernel[None, None, None] + bias[None, None, None]


class PartialConv(nn.Module):
    """A 5 x 5 convolution in which each output map sees only the input maps that `table` names (C3).

    Only the existing connections have weights: `kernel` is [5, 5, connections].
    """

    table: tuple[tuple[int, ...], ...] = C3_TABLE
    dtype: Any = None
    param_dtype: Any = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H-4 W-4 K"]:
        inputs = np.array([i for row in self.table for i in row])
        outputs = np.array([o for o, row in enumerate(self.table) for _ in row])
        fan_in = np.array([25 * len(row) for row in self.table])

        def kernel_init(key: Any, shape: Any, dtype: Any) -> Any:
            return jax.random.uniform(key, shape, dtype, -1, 1) * (2.4 / fan_in[outputs]).astype(dtype)[None, None]

        def bias_init(key: Any, shape: Any, dtype: Any) -> Any:
            return jax.random.uniform(key, shape, dtype, -1, 1) * (2.4 / fan_in).astype(dtype)

        weights = self.param("kernel", kernel_init, (5, 5, len(inputs)), self.param_dtype)
        bias = self.param("bias", bias_init, (len(self.table),), self.param_dtype)
        kernel = jnp.zeros((5, 5, x.shape[-1], len(self.table)), weights.dtype).at[:, :, inputs, outputs].set(weights)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return layers.conv(x, kernel) + bias[None, None, None]


class LeNet5(nn.Module):
    """LeNet-5 of 1998: partial C3, trainable subsampling, scaled tanh, radial basis functions: 60,000 parameters.

    Takes images 32 x 32 x 1 with a background of about -0.1 and ink of about 1.175 (section II-B of [1]). Returns the
    negative penalties [B, 10], minus the squared distances of F6 to the code of each class. These are the paper's y_i
    with the opposite sign, so that the largest is the prediction. The codes are fixed and therefore not parameters.

    Raises UserError for images of another size.
    """

    dtype: Any = None
    param_dtype: Any = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], *, train: bool = False) -> Float[Array, "B K"]:
        if x.shape[1:] != (32, 32, 1):
            raise UserError(f"LeNet-5 takes images of 32 x 32 x 1, not {' x '.join(map(str, x.shape[1:]))}")
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}

        def uniform(fan_in: int) -> dict[str, Any]:
            return {"kernel_init": _uniform(fan_in), "bias_init": _uniform(fan_in), **kinds}

        x = squash(layers.Conv(6, (5, 5), **uniform(25), name="C1")(x))
        x = squash(Subsample(**kinds, name="S2")(x))
        x = squash(PartialConv(**kinds, name="C3")(x))
        x = squash(Subsample(**kinds, name="S4")(x))
        x = squash(layers.Dense(120, **uniform(400), name="C5")(layers.flatten(x)))  # a 5 x 5 convolution of 5 x 5 maps
        x = squash(layers.Dense(84, **uniform(120), name="F6")(x))
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        return -jnp.square(x[:, None] - codes()[None]).sum(-1)


class LeNet5Dense(nn.Module):
    """LeNet-5 as it is usually written today: dense C3, max-pooling, ReLU, linear output: 61,706 parameters.

    Takes images 32 x 32 x 1 (28 x 28 padded by 2) and returns logits [B, K].
    """

    num_classes: int = 10
    dtype: Any = None
    param_dtype: Any = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], *, train: bool = False) -> Float[Array, "B K"]:
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = nn.relu(layers.ConvMaxPool(6, (5, 5), window=(2, 2), **kinds, name="C1")(x))
        x = nn.relu(layers.ConvMaxPool(16, (5, 5), window=(2, 2), **kinds, name="C3")(x))
        x = nn.relu(layers.Dense(120, **kinds, name="C5")(layers.flatten(x)))
        x = nn.relu(layers.Dense(84, **kinds, name="F6")(x))
        return layers.Dense(self.num_classes, **kinds, name="output")(x)
