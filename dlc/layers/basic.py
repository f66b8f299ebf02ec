"""Dense layers, convolution, dropout and PReLU: functions and Linen modules.

Shapes: B batch, H W height and width, h w the same after the layer, C channels, KH KW height and width of a kernel,
I O its input channels (of one group) and output channels, D features. Images are NHWC, [B, H, W, C]; kernels are HWIO,
[KH, KW, I, O].

Each function here has a plain form (such as `plain_conv`), which is XLA's own and runs on GPU and TPU, and one or more
forms in `cpu.py`. All give the same result. The choice is made at compile time, so that a program holds only the form
that it runs.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jax import lax
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Shaped

from dlc.errors import UserError
from dlc.layers import cpu, pooling

Padding = str | Sequence[tuple[int, int]]


def fan_in_uniform(fan_in: int | None = None) -> Initializer:
    """PyTorch's default initialiser for the weights and biases of its linear and convolutional layers.

    U(-1/sqrt(fan_in), 1/sqrt(fan_in)), where fan_in is the number of inputs that one output sums over. Without `fan_in`
    it is the product of all axes of the shape but the last, which counts the outputs. (For weights, PyTorch writes this
    as `kaiming_uniform_(a=sqrt(5))`.) For a bias, pass the fan_in of its kernel.
    """

    def init(key: Array, shape: Sequence[int], dtype: Any = jnp.float32, out_sharding: Any = None) -> Array:
        bound = 1 / math.sqrt(fan_in or math.prod(shape[:-1]))
        return jax.random.uniform(key, shape, dtype, -bound, bound, out_sharding=out_sharding)

    return init


def conv(
    x: Shaped[Array, "B H W C"],
    kernel: Shaped[Array, "KH KW I O"],
    *,
    strides: tuple[int, int] = (1, 1),
    padding: Padding = "VALID",
    groups: int = 1,
    dilation: tuple[int, int] = (1, 1),
) -> Shaped[Array, "B h w O"]:
    """Convolution as the field uses the word, that is, cross-correlation.

        y[b, i, j, o] = sum over u, v, c of x[b, i s + u d, j t + v e, c] kernel[u, v, c, o]

    for strides (s, t) and dilation (d, e). With `groups`, input and output channels are split into that many groups,
    and each group of outputs sees only its own group of inputs.

    Raises UserError if the kernel is larger than the padded image or is made for another number of channels.
    """
    size = tuple((n - 1) * d + 1 for n, d in zip(kernel.shape[:2], dilation, strict=True))
    rows, columns = lax.padtype_to_pads(x.shape[1:3], size, strides, padding) if isinstance(padding, str) else padding
    pads = ((rows[0], rows[1]), (columns[0], columns[1]))
    padded = tuple(n + sum(pad) for n, pad in zip(x.shape[1:3], pads, strict=True))
    _check("kernel", size, padded, kernel.shape[2] * groups, x.shape[3])
    plain = functools.partial(plain_conv, strides=strides, padding=pads, groups=groups, dilation=dilation)
    if dilation != (1, 1) or not cpu.is_default():
        return plain(x, kernel)
    return cpu.conv(x, kernel, strides, pads, groups)


def conv_max_pool(
    x: Shaped[Array, "B H W C"],
    kernel: Shaped[Array, "KH KW I O"],
    bias: Shaped[Array, " O"],
    window: tuple[int, int],
) -> Shaped[Array, "B h w O"]:
    """`max_pool(conv(x, kernel) + bias, window)`, which is faster on a CPU in one step.

    Raises UserError if the kernel is larger than the image or is made for another number of channels, or if the window
    is larger than the result of the convolution.
    """
    image, size = x.shape[1:3], kernel.shape[:2]
    _check("kernel", size, image, kernel.shape[2], x.shape[3])
    _check("pooling window", window, pooling.count(image, size, (1, 1)))
    bias = bias.reshape(1, 1, 1, -1)
    if not cpu.can_gather_pooled(image, kernel.shape, window):
        return pooling.max_pool(conv(x, kernel) + bias, window)

    def plain(x: Array, kernel: Array) -> Array:
        return pooling.plain_max_pool(plain_conv(x, kernel), window)

    # A maximum commutes with adding a constant, and it leaves fewer numbers to add to.
    fast = functools.partial(cpu.conv_max_pool, window=window)
    return lax.platform_dependent(x, kernel, cpu=fast, default=plain) + bias


def flatten(x: Shaped[Array, "B ..."]) -> Shaped[Array, "B D"]:
    """All axes but the first as one, for a batch of any size. (`reshape(B, -1)` fails for an empty batch.)"""
    return lax.collapse(x, 1)


def plain_conv(
    x: Shaped[Array, "B H W C"],
    kernel: Shaped[Array, "KH KW I O"],
    *,
    strides: tuple[int, int] = (1, 1),
    padding: Padding = "VALID",
    groups: int = 1,
    dilation: tuple[int, int] = (1, 1),
) -> Shaped[Array, "B h w O"]:
    """`conv` by XLA's own convolution."""
    return lax.conv_general_dilated(
        x, kernel, strides, padding, rhs_dilation=dilation, dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )  # fmt: skip


def dense(x: Shaped[Array, "*B D"], kernel: Shaped[Array, "D O"]) -> Shaped[Array, "*B O"]:
    """x kernel, the product over the last axis."""
    if not cpu.is_default():
        return x @ kernel
    return lax.platform_dependent(x, kernel, cpu=cpu.dense, default=jnp.matmul)


class Dense(nn.Module):
    """An affine map of the last axis, x kernel + bias: `nn.Dense` with PyTorch's default initialisation."""

    features: int
    use_bias: bool = True
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    kernel_init: Initializer = fan_in_uniform()
    bias_init: Initializer | None = None

    @nn.compact
    def __call__(self, x: Shaped[Array, "*B D"]) -> Shaped[Array, "*B {self.features}"]:
        x, kernel, *bias = _operands(self, x, (x.shape[-1],), self.use_bias)
        y = dense(x, kernel)
        return y + bias[0].reshape((1,) * (y.ndim - 1) + (-1,)) if bias else y


class Conv(nn.Module):
    """`conv` and a bias: `nn.Conv` with PyTorch's default initialisation.

    Raises UserError if the groups do not divide the channels, and what `conv` raises.
    """

    features: int
    kernel_size: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    padding: Padding = "VALID"
    use_bias: bool = True
    groups: int = 1
    dilation: tuple[int, int] = (1, 1)
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    kernel_init: Initializer = fan_in_uniform()
    bias_init: Initializer | None = None

    @nn.compact
    def __call__(self, x: Shaped[Array, "B H W C"]) -> Shaped[Array, "B h w {self.features}"]:
        if x.shape[-1] % self.groups or self.features % self.groups:
            raise UserError(
                f"{self.groups} groups do not divide {x.shape[-1]} input and {self.features} output channels"
            )
        x, kernel, *bias = _operands(self, x, (*self.kernel_size, x.shape[-1] // self.groups), self.use_bias)
        y = conv(x, kernel, strides=self.strides, padding=self.padding, groups=self.groups, dilation=self.dilation)
        return y + bias[0].reshape(1, 1, 1, -1) if bias else y


class ConvMaxPool(nn.Module):
    """`conv_max_pool`: the parameters and the result of `Conv` followed by `max_pool`."""

    features: int
    kernel_size: tuple[int, int]
    window: tuple[int, int]
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    kernel_init: Initializer = fan_in_uniform()
    bias_init: Initializer | None = None

    @nn.compact
    def __call__(self, x: Shaped[Array, "B H W C"]) -> Shaped[Array, "B h w {self.features}"]:
        x, kernel, bias = _operands(self, x, (*self.kernel_size, x.shape[-1]))
        return conv_max_pool(x, kernel, bias, self.window)


class Dropout(nn.Module):
    """In training, sets each number to zero with probability `rate` and divides the others by 1 - rate.

    `nn.Dropout` draws 32 random bits for each number. This draws 16, at half the cost on a CPU, and rounds `rate` to a
    multiple of 1/65536. It uses the random stream "dropout".

    Raises UserError unless 0 <= rate < 1.

    References: Srivastava et al. 2014, "Dropout: a simple way to prevent neural networks from overfitting".
    """

    rate: float

    @nn.compact
    def __call__(self, x: Float[Array, "..."], *, train: bool = False) -> Float[Array, "..."]:
        if not 0 <= self.rate < 1:
            raise UserError(f"dropout must be at least 0 and less than 1, not {self.rate}")
        if not (train and self.rate):
            return x
        words = jax.random.bits(self.make_rng("dropout"), (-(-x.size // 2),))
        bits = lax.bitcast_convert_type(words, jnp.uint16).reshape(-1)[: x.size].reshape(x.shape)
        return jnp.where(bits >= round(self.rate * 2**16), x / (1 - self.rate), 0).astype(x.dtype)


class PReLU(nn.Module):
    """max(0, x) + slope min(0, x), with a slope for each channel that is learnt and begins at 1/4.

    References: He, Zhang, Ren, Sun 2015, "Delving deep into rectifiers", equation 1.
    """

    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*B C"]) -> Float[Array, "*B C"]:
        slope = self.param("slope", nn.initializers.constant(0.25), x.shape[-1:], self.param_dtype).astype(x.dtype)
        return jnp.where(x > 0, x, x * slope.reshape((1,) * (x.ndim - 1) + (-1,)))


def remat(block: nn.Module, wanted: bool = True) -> Callable[..., Any]:
    """The call of a block or, if `wanted`, one whose backward pass computes the block's activations again.

    Then only the arguments of the block are kept from the forward pass. A training step takes about a third longer,
    because it has two forward passes, and a deep model needs a fraction of the memory. Weights, results, random draws
    and gradients stay the same.

    References: Chen, Xu, Zhang, Guestrin 2016, "Training deep nets with sublinear memory cost".
    """

    def again(*arguments: Any, **options: Any) -> Any:
        # nn.remat traces what it is given; the options hold switches such as `train`, which must stay Python values.
        return nn.remat(lambda block, *arguments: block(*arguments, **options))(block, *arguments)

    return again if wanted else block


def _operands(
    module: Dense | Conv | ConvMaxPool, x: Array, inputs: tuple[int, ...], use_bias: bool = True
) -> list[Array]:
    """The input, the kernel and, if there is one, the bias of a module, in its compute dtype."""
    if module.has_variable("params", "kernel"):
        made_for: int = module.get_variable("params", "kernel").shape[-2]
        if made_for != inputs[-1]:
            raise UserError(f"the weights of {module.name} are for inputs of {made_for} channels, not {inputs[-1]}")
    kernel = module.param("kernel", module.kernel_init, (*inputs, module.features), module.param_dtype)
    if not use_bias:
        return promote_dtype(x, kernel, dtype=module.dtype)
    bias_init = module.bias_init or fan_in_uniform(math.prod(inputs))
    bias = module.param("bias", bias_init, (module.features,), module.param_dtype)
    return promote_dtype(x, kernel, bias, dtype=module.dtype)


def _check(
    name: str, size: Sequence[int], image: Sequence[int], channels: int | None = None, image_channels: int | None = None
) -> None:
    pooling.check_size(name, size, image)
    if channels != image_channels:
        raise UserError(f"a {name} for {channels} channels cannot read an image of {image_channels}")
