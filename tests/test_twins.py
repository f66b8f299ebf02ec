"""Every function with a form of its own for CPUs equals its plain twin: one list of twins, one of transformations.

Most comparisons are in float64, where no mistake hides behind rounding. Programs are compiled without LLVM's
optimizations, which take most of the time and decide nothing here.
"""

import collections
import functools
import re
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dlc import layers
from dlc.layers import attention, cpu, norms, pooling

compiled = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)


def conv_twins(image, kernel, **how):
    fast, plain = (functools.partial(f, **how) for f in (layers.conv, layers.plain_conv))
    return fast, plain, (image, kernel)


def conv_pool_twins(image, kernel, window):
    def plain(x, kernel, bias):
        return pooling.plain_max_pool(layers.plain_conv(x, kernel) + bias.reshape(1, 1, 1, -1), window)

    return functools.partial(layers.conv_max_pool, window=window), plain, (image, kernel, kernel[-1:])


def max_pool_twins(image, *how):
    return lambda x: pooling.max_pool(x, *how), lambda x: pooling.plain_max_pool(x, *how), (image,)


def mean_pool_twins(image, window, *how):
    return (
        lambda x: pooling.avg_pool(x, window, *how),
        lambda x: pooling.plain_sum_pool(x, window, *how) / np.prod(window),
        (image,),
    )


def normed(f):
    return lambda x, scale, bias: f(x, scale, bias, 1e-3)[0]


def plain_response_norm(x):
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    pads = ((0, 0), (0, 0), (0, 0), (2, 2))
    total = jax.lax.reduce_window(jnp.square(wide), 0.0, jax.lax.add, (1, 1, 1, 5), (1, 1, 1, 1), pads)
    return (wide * (2 + 0.1 * total) ** -0.75).astype(x.dtype)


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
    "conv and pool": conv_pool_twins((3, 8, 7, 2), (3, 3, 2, 3), (2, 2)),
    "max pool": max_pool_twins((3, 7, 6, 4), (2, 3)),
    "max pool, overlapping": max_pool_twins((3, 7, 6, 4), (3, 3), (2, 2), ((1, 1), (1, 0))),
    "mean pool": mean_pool_twins((3, 6, 7, 4), (3, 3), (2, 2), ((1, 1), (1, 1))),
    "batch norm": (normed(layers.batch_norm), normed(layers.plain_batch_norm), ((3, 4, 5, 4), (4,), (4,))),
    "dense": (layers.dense, jnp.matmul, ((3, 5, 4), (4, 6))),
    "response norm": (lambda x: norms.local_response_norm(x, 5, 0.1, 0.75, 2), plain_response_norm, ((3, 2, 3, 7),)),
    "causal attention": (attend(attention.attention), attend(attention.plain_attention), ((3, 8, 1, 2),)),
}
# Shapes for which the same functions choose other forms. How they are transformed does not depend on the form.
SHAPES = {
    "conv, many channels": conv_twins((3, 5, 4, 64), (3, 3, 64, 64), padding="SAME"),
    "conv, very many channels": conv_twins((2, 5, 4, 128), (3, 3, 128, 128), padding=((2, 0), (1, 1))),
    "conv, many channels out": conv_twins((2, 4, 4, 64), (3, 3, 64, 256), padding="SAME"),
    "conv, many images": conv_twins((27, 5, 5, 4), (3, 3, 4, 5), padding="SAME"),
    "conv, many images, strided": conv_twins((17, 6, 6, 3), (3, 3, 3, 5), strides=(2, 2), padding="SAME"),
    "conv, depthwise": conv_twins((3, 5, 4, 12), (3, 3, 1, 12), groups=12, padding="SAME"),
    "conv, dilated": conv_twins((2, 7, 6, 4), (3, 2, 4, 5), dilation=(2, 3)),
    "conv and pool, few windows": conv_pool_twins((2, 7, 6, 2), (3, 3, 2, 3), (2, 3)),
    "conv and pool, apart": conv_pool_twins((1, 64, 64, 24), (3, 3, 24, 2), (2, 2)),
}
twins = pytest.mark.parametrize(("fast", "plain", "shapes"), TWINS.values(), ids=TWINS)
every = pytest.mark.parametrize(("fast", "plain", "shapes"), (TWINS | SHAPES).values(), ids=TWINS | SHAPES)


def arrays(shapes, seed=0, dtype="float64"):
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes)


def directions(operands):
    return arrays([a.shape for a in operands], seed=1)


def scalar(f, *operands):
    """A number that depends on every output in a way of its own, and not linearly."""
    y = f(*operands)
    return jnp.sum(jnp.tanh(y) * jnp.cos(jnp.arange(y.size)).reshape(y.shape))


def value(f, *operands):
    return f(*operands)


def gradient(f, *operands):
    return jax.grad(functools.partial(scalar, f), tuple(range(len(operands))))(*operands)


def jvp(f, *operands):
    return jax.jvp(f, operands, directions(operands))


def hessian(f, *operands):
    """Second derivatives along one direction: forward over reverse."""
    return jax.jvp(functools.partial(gradient, f), operands, directions(operands))


def reverse_over_reverse(f, *operands):
    def along(*operands):
        return sum(jnp.vdot(g, w) for g, w in zip(gradient(f, *operands), directions(operands), strict=True))

    return jax.grad(along, tuple(range(len(operands))))(*operands)


def linearize(f, *operands):
    y, linear = jax.linearize(f, *operands)
    return y, linear(*directions(operands))


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
    return f(x[:1], *rest), gradient(f, x[:1], *rest)


def no_example(f, x, *rest):
    return f(x[:0], *rest), gradient(f, x[:0], *rest)


def stacked(axes, operands):
    """The operands that have an axis have three entries along it."""
    return [a if axis is None else jnp.stack([a, a + 1, 2 * a], axis) for a, axis in zip(operands, axes, strict=True)]


def vmapped(axes, out_axis=0):
    return lambda f, *operands: jax.vmap(functools.partial(gradient, f), axes, out_axis)(*stacked(axes, operands))


def nested(f, *operands):
    """Every operand has an axis of its own, and every entry of one meets every entry of the others."""
    mapped = functools.partial(gradient, f)
    for i in range(len(operands)):
        mapped = jax.vmap(mapped, [0 if i == j else None for j in range(len(operands))])
    return mapped(*(jnp.stack([a, a + 1]) for a in operands))


def patterns(count):
    """Every choice of which operands have a new axis; then some with it in the last place."""
    chosen = [vmapped(tuple(0 if i & 1 << n else None for n in range(count))) for i in range(1, 2**count)]
    return [*chosen, vmapped((-1, *[None] * (count - 1)), -1), vmapped((0, *[-1] * (count - 1)), 1)]


TRANSFORMS = [
    value, gradient, jvp, hessian, reverse_over_reverse, linearize, remat, per_example, nested, in_scan, in_cond,
    one_example, no_example,
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
            one = np.where(np.isnan(other), other, one)  # plain batch norm of no example; ours may say more
            largest = np.nan_to_num(np.abs(other)).max()
            np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance * max(1, largest))


def assert_agree(fast, plain, operands, transforms):
    """That the twins agree under all these transformations, in one program each; returns the plain value."""

    @functools.partial(compiled, static_argnums=0)
    def everything(f, operands):
        return [how(f, *operands) for how in transforms]

    ours, theirs = (everything(f, operands) for f in (fast, plain))
    for one, other in zip(ours, theirs, strict=True):
        assert_same(one, other)
    return theirs[0]


@twins
def test_twins_agree_under_every_transformation(fast, plain, shapes):
    expected = assert_agree(fast, plain, arrays(shapes), [*TRANSFORMS, *patterns(len(shapes))])
    assert_same(fast(*arrays(shapes)), expected)  # outside jit


@pytest.mark.parametrize(("fast", "plain", "shapes"), SHAPES.values(), ids=SHAPES)
def test_the_forms_for_other_shapes_agree(fast, plain, shapes):
    assert_agree(fast, plain, arrays(shapes), [value, gradient, per_example, one_example, no_example])


def value_and_gradients(f, *operands):
    """The gradients of a sum in which every output has a weight of its own."""
    y, pullback = jax.vjp(f, *operands)
    return y, *pullback(jnp.cos(jnp.arange(y.size)).reshape(y.shape).astype(y.dtype))


@pytest.mark.parametrize("name", TWINS | SHAPES)
def test_twins_agree_in_float32_and_16_bits(name):
    """Results lie as close to those in float64 as sums of so many rounded terms can be expected to."""
    fast, plain, shapes = (TWINS | SHAPES)[name]
    terms = max(np.prod(shape) for shape in shapes)
    dtypes = ("float32", "bfloat16", "float16")
    operands = {dtype: arrays(shapes, dtype=dtype) for dtype in dtypes}
    exact = {dtype: [a.astype("float64") for a in operands[dtype]] for dtype in dtypes}

    @functools.partial(compiled, static_argnums=0)
    def all_dtypes(f, operands):
        return {dtype: value_and_gradients(f, *operands[dtype]) for dtype in dtypes}

    exact = all_dtypes(plain, exact)
    with jax.enable_x64(False):
        ours = all_dtypes(fast, operands)
    for dtype in dtypes:
        tolerance = float(jnp.finfo(dtype).eps) * np.sqrt(terms)
        assert {one.dtype.name for one in ours[dtype]} == {dtype}
        # Of sums that are rounded to 16 bits, another one may be the maximum and receive the gradient.
        compared = 1 if "and pool" in name and dtype != "float32" else None
        for one, other in zip(ours[dtype][:compared], exact[dtype][:compared], strict=True):
            np.testing.assert_allclose(np.asarray(one, "float64"), other, rtol=0, atol=tolerance * np.abs(other).max())


@every
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_64_bits_change_no_dtype(fast, plain, shapes, dtype):
    """Neither that of values nor those of tangents, gradients and second derivatives."""

    def all_of(*operands):
        slopes = jax.grad(lambda *a: fast(*a).sum(), tuple(range(len(operands))))
        return jax.jvp(fast, operands, operands), jax.jvp(slopes, operands, operands)

    found = jax.eval_shape(all_of, *(jax.ShapeDtypeStruct(shape, dtype) for shape in shapes))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(found)} == {dtype}


@every
def test_twins_are_exported_for_every_platform_and_for_batches_of_any_size(fast, plain, shapes):
    """For a GPU or a TPU, the plain form and nothing else."""
    ours, theirs = (jax.jit(lambda *a, f=f: (f(*a), gradient(f, *a))) for f in (fast, plain))
    first, *rest = [jax.ShapeDtypeStruct(shape, "float64") for shape in shapes]
    elsewhere = operations(theirs, "cuda", first, *rest)
    for platform in ("cuda", "tpu"):
        assert operations(ours, platform, first, *rest) == elsewhere
    (batch,) = jax.export.symbolic_shape("b")
    unknown = first.update(shape=(batch, *first.shape[1:]))
    exported = jax.export.export(ours, platforms=("cpu", "cuda", "tpu"))(unknown, *rest)
    found = compiled(jax.export.deserialize(exported.serialize()).call)(*arrays(shapes))
    assert_same(found, compiled(theirs)(*arrays(shapes)))


def operations(f, platform, *operands):
    """How often each of the operations that take time occurs in the program for this platform."""
    text = jax.export.export(f, platforms=[platform])(*operands).mlir_module()
    slow = r"stablehlo\.(convolution|dot_general|reduce_window|select_and_scatter|optimization_barrier|while)\b"
    return collections.Counter(re.findall(slow, text))


@pytest.mark.parametrize("name", [name for name, (*_, shapes) in (TWINS | SHAPES).items() if shapes[0][0] % 3 == 0])
def test_twins_agree_on_three_devices(name):
    """By hand, with `shard_map`: the batch is split, or the other operands differ; and by XLA (GSPMD)."""
    fast, plain, shapes = (TWINS | SHAPES)[name]
    mesh = Mesh(np.array(jax.devices()[:3]), ("data",))
    x, *rest = arrays(shapes)
    split = (P("data"), *[P()] * len(rest))
    differ = (P(), *[P("data")] * len(rest))

    def total(f, *operands):
        return jnp.sum(jnp.tanh(f(*operands)))

    def on_mesh(f, specs, check_vma):
        """The gradients of the sum over devices."""

        def slopes(*operands):
            every = tuple(range(len(operands)))
            if check_vma:  # the sum is differentiated, too
                return jax.grad(lambda *a: jax.lax.psum(total(f, *a), "data"), every)(*operands)
            found = jax.grad(functools.partial(total, f), every)(*operands)
            return tuple(jax.lax.psum(g, "data") if spec == P() else g for g, spec in zip(found, specs, strict=True))

        return jax.shard_map(slopes, mesh=mesh, in_specs=specs, out_specs=specs, check_vma=check_vma)

    @functools.partial(compiled, static_argnums=0)
    def everything(f, x, *rest):
        others = [jnp.concatenate([a, a + 1, 2 * a]) for a in rest]
        found = [on_mesh(f, split, check)(x, *rest) for check in (True, False)]
        return found + [on_mesh(f, differ, check)(x, *others) for check in (True, False) if rest]

    ours, theirs = (everything(f, x, *rest) for f in (fast, plain))
    assert_same(ours, theirs)
    assert_same(ours[::2], ours[1::2])
    if name != "batch norm":  # its statistics are those of each device
        alone = compiled(jax.grad(functools.partial(total, plain), tuple(range(len(shapes)))))(x, *rest)
        assert_same(ours[0], alone)
    placed = [jax.device_put(a, NamedSharding(mesh, spec)) for a, spec in zip((x, *rest), split, strict=True)]
    by_xla, alone = (compiled(functools.partial(gradient, f))(*a) for f, a in ((fast, placed), (plain, (x, *rest))))
    assert_same(by_xla, alone)


def test_no_form_is_missing_here():
    """Every function of cpu.py, and every function of `dlc.layers` that chooses by platform, is called by a twin."""
    folder, needed, seen = Path(cpu.__file__).parent, set(), set()
    for path in folder.glob("*.py"):
        whole = compile(path.read_text("utf-8"), path, "exec")
        outermost = functions_of(whole) if path.name == "cpu.py" else []
        needed |= {(str(path), code.co_name) for code in (*outermost, *filter(chooses, nested_in(whole)))}

    def watch(frame, event, _):
        if event == "call":
            seen.add((frame.f_code.co_filename, frame.f_code.co_name))

    jax.clear_caches()  # what was traced before is traced again
    sys.setprofile(watch)
    try:
        for fast, _, shapes in (TWINS | SHAPES).values():
            jax.jit(functools.partial(gradient, fast)).lower(*arrays(shapes))
        fast, _, shapes = TWINS["conv, few channels"]
        jax.block_until_ready(fast(*arrays(shapes)))  # outside jit
        jax.jit(functools.partial(per_example, fast)).lower(*arrays(shapes))
    finally:
        sys.setprofile(None)
    assert needed - seen == set()


def functions_of(code):
    return [part for part in code.co_consts if isinstance(part, types.CodeType) and part.co_name != "<lambda>"]


def nested_in(code):
    return [each for part in functions_of(code) for each in (part, *nested_in(part))]


def chooses(code):
    return {"is_default", "platform_dependent"} & set(code.co_names)
