"""Every function with a form of its own for CPUs equals its plain twin, under every transformation.

In float64, where no mistake hides behind rounding.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dlc import layers
from dlc.layers import attention, norms, pooling


def plain_conv_max_pool(x, kernel, bias, window):
    return pooling.plain_max_pool(layers.plain_conv(x, kernel) + bias.reshape(1, 1, 1, -1), window)


def conv_twins(image, kernel, **how):
    fast, plain = (functools.partial(f, **how) for f in (layers.conv, layers.plain_conv))
    return fast, plain, (image, kernel)


def pool_twins(image, *how):
    def plain(x):
        return pooling.plain_max_pool(x, *how)

    return lambda x: pooling.max_pool(x, *how), plain, (image,)


def normed(f):
    return lambda x, scale, bias: f(x, scale, bias, 1e-3)[0]


def plain_mean_pool(x):
    return pooling.plain_sum_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1))) / 9


def plain_response_norm(x):
    squares = jnp.pad(jnp.square(x), ((0, 0), (0, 0), (0, 0), (2, 2)))
    total = sum(squares[..., i : i + x.shape[-1]] for i in range(5))
    return x * (2 + 0.1 * total) ** -0.75


def attend(f):
    """Over itself, so that one operand is the batch."""
    return lambda x: f(x, x[:, ::-1], jnp.cos(x), causal=True)


# name -> the fast form, its plain twin, the shapes of the operands. The first axis of the first one is the batch.
TWINS = {
    "conv, few channels": conv_twins((3, 6, 6, 4), (3, 3, 4, 5), padding="SAME"),
    "conv, odd width": conv_twins((3, 5, 5, 4), (3, 3, 4, 5), padding="SAME"),
    "conv, more channels": conv_twins((3, 5, 6, 20), (3, 3, 20, 3), padding="VALID"),
    "conv, 1x1": conv_twins((3, 5, 6, 4), (1, 1, 4, 5), strides=(2, 1), padding=((0, 1), (1, 0))),
    "conv, strided": conv_twins((3, 7, 8, 4), (5, 3, 4, 5), strides=(2, 3), padding=((2, 1), (0, 2))),
    "conv, gaps": conv_twins((3, 7, 8, 2), (2, 1, 2, 3), strides=(3, 2), padding=((1, 0), (0, 0))),
    "conv, far padding": conv_twins((3, 4, 4, 2), (2, 2, 2, 3), padding=((3, 4), (2, 3))),
    "conv, groups": conv_twins((3, 6, 6, 4), (3, 3, 2, 6), groups=2, padding="SAME"),
    "conv and pool": (
        functools.partial(layers.conv_max_pool, window=(2, 2)),
        functools.partial(plain_conv_max_pool, window=(2, 2)),
        ((3, 8, 7, 2), (3, 3, 2, 3), (3,)),
    ),
    "max pool": pool_twins((3, 7, 6, 4), (2, 3)),
    "max pool, overlapping": pool_twins((3, 7, 6, 4), (3, 3), (2, 2), ((1, 1), (1, 0))),
    "mean pool": (
        lambda x: pooling.avg_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1))),
        plain_mean_pool,
        ((3, 6, 7, 4),),
    ),
    "batch norm": (normed(layers.batch_norm), normed(layers.plain_batch_norm), ((3, 4, 5, 4), (4,), (4,))),
    "dense": (layers.dense, jnp.matmul, ((3, 5, 4), (4, 6))),
    "response norm": (
        lambda x: norms.local_response_norm(x, 5, 0.1, 0.75, 2),
        plain_response_norm,
        ((3, 2, 3, 7),),
    ),
    "causal attention": (attend(attention.attention), attend(attention.plain_attention), ((3, 8, 1, 2),)),
}
LARGE = {  # shapes that choose other forms; too large for every transformation
    "winograd, 64": conv_twins((2, 5, 4, 64), (3, 3, 64, 64), padding="SAME"),
    "winograd": conv_twins((2, 5, 4, 128), (3, 3, 128, 128), padding=((2, 0), (1, 1))),
    "winograd, 64 to 256": conv_twins((2, 4, 4, 64), (3, 3, 64, 256), padding="SAME"),
    "groups of images": conv_twins((19, 5, 5, 4), (3, 3, 4, 5), padding="SAME"),
    "groups of images, strided": conv_twins((17, 6, 6, 3), (3, 3, 3, 5), strides=(2, 2), padding="SAME"),
}


def arrays(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.standard_normal(shape)) for shape in shapes)


def scalar(f, *operands):
    """A number that depends on every output in a way of its own, and not linearly."""
    y = f(*operands)
    return jnp.sum(jnp.tanh(y) * jnp.cos(jnp.arange(y.size)).reshape(y.shape))


def gradient(f, *operands):
    return jax.grad(functools.partial(scalar, f), tuple(range(len(operands))))(*operands)


def value(f, *operands):
    return f(*operands)


def jvp(f, *operands):
    return jax.jvp(f, operands, arrays([a.shape for a in operands], seed=1))


def along(direction, f, *operands):
    return scalar(
        f, *(a + direction * b for a, b in zip(operands, arrays([a.shape for a in operands], 1), strict=True))
    )


def hessian(f, *operands):
    """Second derivatives along two directions: forward over reverse."""
    return jax.jvp(lambda *a: gradient(f, *a), operands, arrays([a.shape for a in operands], seed=1))


def reverse_over_reverse(f, *operands):
    def along(*operands):
        weights = arrays([a.shape for a in operands], seed=1)
        return sum(jnp.vdot(g, w) for g, w in zip(gradient(f, *operands), weights, strict=True))

    return jax.grad(along, tuple(range(len(operands))))(*operands)


def linearize(f, *operands):
    y, linear = jax.linearize(f, *operands)
    return y, linear(*arrays([a.shape for a in operands], seed=1))


def remat(f, *operands):
    return gradient(jax.checkpoint(f), *operands)


def per_example(f, x, *rest):
    return jax.vmap(lambda x: gradient(lambda *a: f(x[None], *a), *rest) if rest else gradient(f, x[None]))(x)


def in_scan(f, *operands):
    def body(operands, _):
        slopes = gradient(f, *operands)
        return tuple(a - 0.1 * g for a, g in zip(operands, slopes, strict=True)), None

    return jax.lax.scan(body, operands, length=2)[0]


def in_cond(f, x, *rest):
    return jax.lax.cond(x.sum() > 1e9, lambda *a: tuple(0 * b for b in a), lambda *a: gradient(f, *a), x, *rest)


def one_example(f, x, *rest):
    return gradient(f, x[:1], *rest)


def vmapped(axes, f, *operands):
    """vmap of the gradient; the operands that have an axis have three entries along it."""
    stacked = [
        a if axis is None else jnp.stack([a, a + 1, 2 * a], axis) for a, axis in zip(operands, axes, strict=True)
    ]
    return jax.vmap(functools.partial(gradient, f), axes)(*stacked)


def patterns(count):
    """Every choice of which operands have a new axis, first or last."""
    chosen = [tuple(0 if i & 1 << n else None for n in range(count)) for i in range(1, 2**count)]
    return [*chosen, (-1, *[None] * (count - 1)), (0, *[-1] * (count - 1))]


TRANSFORMS = [
    value, gradient, jvp, hessian, reverse_over_reverse, linearize, remat, per_example, in_scan, in_cond, one_example,
]  # fmt: skip


@pytest.fixture(autouse=True)
def _x64(monkeypatch):
    monkeypatch.setattr(attention, "_LONG", 8)
    with jax.enable_x64(True):
        yield


def assert_same(a, b, tolerance=1e-11):
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        if one.size:
            np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance * max(1, np.abs(other).max()))


@pytest.mark.parametrize("name", TWINS)
def test_twins_agree_under_every_transformation(name):
    fast, plain, shapes = TWINS[name]

    @functools.partial(jax.jit, static_argnums=0)
    def everything(f, operands):
        found = {how.__name__: how(f, *operands) for how in TRANSFORMS}
        return found | {str(axes): vmapped(axes, f, *operands) for axes in patterns(len(operands))}

    ours, theirs = (everything(f, arrays(shapes)) for f in (fast, plain))
    for how in theirs:
        assert_same(ours[how], theirs[how])
    assert_same(fast(*arrays(shapes)), theirs["value"])  # outside jit


@pytest.mark.parametrize("name", LARGE)
def test_the_forms_for_large_shapes_agree(name):
    fast, plain, shapes = LARGE[name]
    both = jax.jit(lambda f, *a: (f(*a), gradient(f, *a)), static_argnums=0)
    assert_same(*(both(f, *arrays(shapes)) for f in (fast, plain)))


@pytest.mark.parametrize("name", TWINS)
def test_a_batch_may_be_empty_or_symbolic(name):
    fast, plain, shapes = TWINS[name]
    x, *rest = arrays(shapes)
    assert_same(*(jax.jit(f)(x[:0], *rest) for f in (fast, plain)))
    (batch,) = jax.export.symbolic_shape("b")
    symbolic = [
        jax.ShapeDtypeStruct(a.shape if i else (batch, *a.shape[1:]), a.dtype) for i, a in enumerate(arrays(shapes))
    ]
    whole = lambda *a: (fast(*a), jax.grad(lambda *a: jnp.square(fast(*a)).sum(), tuple(range(len(a))))(*a))  # noqa: E731
    exported = jax.export.export(jax.jit(whole), platforms=("cpu", "cuda", "tpu"))(*symbolic)
    found = jax.export.deserialize(exported.serialize()).call(*arrays(shapes))
    theirs = jax.jit(lambda *a: (plain(*a), jax.grad(lambda *a: jnp.square(plain(*a)).sum(), tuple(range(len(a))))(*a)))
    assert_same(found, theirs(*arrays(shapes)))


@pytest.mark.parametrize("name", TWINS)
@pytest.mark.parametrize("check_vma", [True, False])
def test_twins_agree_when_the_batch_is_split_among_devices(name, check_vma):
    """By hand, with `shard_map`, and by XLA (GSPMD)."""
    fast, plain, shapes = TWINS[name]
    mesh = Mesh(np.array(jax.devices()[:3]), ("data",))
    x, *rest = arrays(shapes)
    specs = (P("data"), *[P()] * len(rest))

    def total(f, *operands):
        return jnp.sum(jnp.tanh(f(*operands)))

    def sharded(f, *operands):
        if check_vma:  # the sum over devices is differentiated, too
            loss = lambda *a: jax.lax.psum(total(f, *a), "data")  # noqa: E731
            return jax.grad(loss, tuple(range(len(operands))))(*operands)
        found = jax.grad(functools.partial(total, f), tuple(range(len(operands))))(*operands)
        return (found[0], *jax.lax.psum(found[1:], "data"))

    ours, theirs = (
        jax.jit(
            jax.shard_map(
                functools.partial(sharded, f), mesh=mesh, in_specs=specs, out_specs=specs, check_vma=check_vma
            )
        )(x, *rest)
        for f in (fast, plain)
    )
    assert_same(ours, theirs)
    if name != "batch norm":  # its statistics are those of each device
        alone = jax.jit(jax.grad(functools.partial(total, plain), tuple(range(len(shapes)))))(x, *rest)
        assert_same(ours, alone)
    placed = [jax.device_put(a, NamedSharding(mesh, spec)) for a, spec in zip((x, *rest), specs, strict=True)]
    by_xla = jax.jit(functools.partial(gradient, fast))(*placed)
    assert_same(by_xla, jax.jit(functools.partial(gradient, plain))(x, *rest))
