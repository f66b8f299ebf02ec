"""Random arrays and weights for tests, from NumPy: XLA takes a third of a second to compile each draw of jax.random."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np


def normal(*shape, seed=0, dtype=jnp.float32):
    """Standard normal numbers."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def variables(model, *inputs, **options):
    """Random variables of a model: weights that keep the variance of their input, and scales near one. None is zero."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        z = rng.normal(size=leaf.shape)
        if path[-1].key in ("scale", "var"):
            z = 1 + abs(z) / 10
        elif leaf.ndim < 2:
            z = z / 10
        else:
            z = z / math.sqrt(math.prod(leaf.shape[:-1]))
        return jnp.asarray(z, leaf.dtype)

    shapes = jax.eval_shape(functools.partial(model.init, **options), jax.random.key(0), *inputs)
    return jax.tree_util.tree_map_with_path(draw, shapes)


def initial(model, *inputs):
    """The model's own initial variables, for tests of how it starts.

    Drawing them is compiled without optimisation, which takes a third of the time. The random bits are the same.
    """
    quickly = {"xla_backend_optimization_level": 0}
    return jax.jit(model.init, compiler_options=quickly)(jax.random.key(0), *inputs)
