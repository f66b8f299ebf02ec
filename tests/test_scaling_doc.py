"""The arithmetic of docs/scaling.md, done again: every figure in its tables is what the formulas beside them give."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp

from dlc import costs
from dlc.layers import Conv
from dlc.models.gpt import gpt2_xl
from dlc.models.resnet import resnet50

PAGE = (Path(__file__).parent.parent / "docs" / "scaling.md").read_text()

# An H100 SXM in a DGX H100: bfloat16 operations a second, bytes, bytes a second to the other seven and to other nodes
PEAK, MEMORY, NVLINK, NETWORK, NODE = 989.4e12, 80e9, 450e9, 50e9, 8
L, D, V, T, HEADS = 48, 1600, 50_257, 1024, 25  # of GPT-2 XL
USED = 0.4  # of the peak; assumed


def of_model(make, image):
    """Weights and the multiply-accumulates of one forward pass of one example."""
    model, dtype = make(), jnp.int32 if len(image) == 1 else jnp.float32
    example = jax.ShapeDtypeStruct((1, *image), dtype)
    variables = jax.eval_shape(model.init, jax.random.key(0), example)
    return costs.parameters(variables["params"]), costs.macs(model.apply, variables, example)


@functools.cache
def gpt():
    """The same of GPT-2 XL, from two and three of its 48 blocks, which are traced in a tenth of the time."""
    two, three = (of_model(functools.partial(gpt2_xl, layers=layers), (T,)) for layers in (2, 3))
    return tuple(a + (L - 2) * (b - a) for a, b in zip(two, three, strict=True))


@functools.cache
def resnet():
    return of_model(resnet50, (224, 224, 3))


def summed(size, gpus):
    """Seconds of an all-reduce of `size` bytes: added up inside of nodes, then between them, then spread inside."""
    nodes, inside = gpus // NODE, 2 * (NODE - 1) / NODE * size / NVLINK
    return inside + 2 * (nodes - 1) / nodes * size / NODE / NETWORK


def gathered(size):
    """Seconds of an all-gather, or of a reduce-scatter, of `size` bytes inside of a node."""
    return (NODE - 1) / NODE * size / NVLINK


def said(*figures):
    missing = [figure for figure in figures if figure not in PAGE]
    assert not missing, missing


def gb(size):
    return f"{size / 1e9:.2f} GB"


def ms(seconds):
    return f"{seconds * 1e3:.0f} ms" if seconds >= 9.5e-3 else f"{seconds * 1e3:.1f} ms"


def test_the_sizes_of_gpt2_xl():
    weights, macs = gpt()
    c = gpt2_xl().config
    assert (c.layers, c.width, c.vocab, c.context, c.heads) == (L, D, V, T, HEADS)
    assert macs == T * (12 * L * D**2 + V * D + 2 * L * T * D)
    said(
        f"{weights:,}", f"{macs // T:,}", f"{6 * macs / T / 1e9:.2f} GFLOP", f"{6 * macs * 512:.3g}".replace("e+", "e")
    )


def test_the_memory_of_gpt2_xl():
    weights, _ = gpt()
    said(gb(4 * weights), gb(8 * weights), gb(16 * weights), gb(16 * weights / 8), gb(16 * weights / 64))
    block, plain, kept = 34 * T * D, 5 * HEADS * T * T, 2 * T * D
    said(f"{block / 1e6:.1f} MB", f"{plain / 1e6:.0f} MB", f"{kept / 1e6:.2f} MB")
    said(gb(8 * L * block), gb(8 * L * (block + plain)), gb(8 * (L * kept + block)), gb(8 * 2 * 4 * T * V))
    together = 16 * weights / 8 + 8 * (L * kept + block) + 8 * 2 * 4 * T * V
    said(gb(16 * weights / 8 + 8 * L * block + 8 * 2 * 4 * T * V), gb(together))
    assert 16 * weights + 8 * L * (block + plain) > MEMORY > 16 * weights + 8 * L * block


def test_the_time_of_gpt2_xl():
    weights, macs = gpt()
    compute, size = 6 * macs * 512 / (64 * USED * PEAK), 4 * weights
    alone, cut = summed(size, 64), 3 * gathered(size) + (summed(size, 64) - 2 * gathered(size))
    said(ms(compute), ms(4 / 3 * compute), ms(alone), ms(cut), ms(gathered(size)), ms(alone - 2 * gathered(size)))
    said(f"{64 * compute:.1f} s", f"{round(64 * compute / alone, -1):.0f} GPUs")
    said(
        f"{2e8 / 3 ** (1 / 0.21) / 1e6:.1f} million",
        f"{512 * T:,}",
        f"{512 * T / compute / 1e6:.1f} million tokens a second",
    )
    said(f"{2 * 512 * T / compute / 1e6:.1f} MB a second")


def test_the_sizes_and_the_time_of_resnet50():
    weights, macs = resnet()
    rate, images, bytes_each = 3000, 1_281_167, 147_897_477_120 / 1_281_167
    said(f"{weights:,}", f"{macs:,}", f"{6 * macs / 1e9:.1f} GFLOP", f"{12 * weights / 1e6:.0f} MB")
    said(f"{rate * 6 * macs / PEAK:.1%}".replace("%", " %"), ms(32 / rate), ms(summed(4 * weights, 256)))
    said(
        f"{256 * rate:,} images a second",
        f"{bytes_each / 1e3:.0f} kB",
        f"{256 * rate * bytes_each / 1e9:.0f} GB a second",
    )
    said(
        f"{8 * rate / 577:.0f} cores",
        f"{images / (256 * rate) * 90 / 60:.1f} minutes",
        f"{8192 * 224 * 224 * 3 / 1e9:.2f} GB",
    )


def test_the_activations_of_resnet50():
    image = jnp.zeros((1, 224, 224, 3))
    variables = jax.eval_shape(resnet50().init, jax.random.key(0), image)
    convolutions = functools.partial(resnet50().apply, capture_intermediates=lambda module, _: isinstance(module, Conv))
    outputs = jax.eval_shape(convolutions, variables, image)[1]["intermediates"]
    norms = len(jax.tree.leaves(variables["batch_stats"])) // 2
    count = costs.parameters(outputs)
    said(f"{count:,}", f"{32 * count * 4 / 1e9:.1f} GB", f"{norms} batch norms", f"{3 * norms} small all-reduces")
    said(f"{3 * norms * 20e-6 * 1e3:.1f} ms")


def test_the_operations_of_a_token_of_gpt2_small():
    macs = 12 * 12 * 768**2 + V * 768 + 2 * 12 * T * 768
    said(f"{6 * macs / 1e9:.2f} GFLOP")
