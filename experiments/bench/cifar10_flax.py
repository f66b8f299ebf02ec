"""ResNet-20 on CIFAR-10 in Flax, as one would first write it: its own layers, one jitted step at a time."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax


class Block(nn.Module):
    width: int
    stride: int
    dtype: Any

    @nn.compact
    def __call__(self, x):
        y = nn.Conv(self.width, (3, 3), self.stride, padding=1, use_bias=False, dtype=self.dtype)(x)
        y = nn.relu(nn.BatchNorm(use_running_average=False, dtype=self.dtype)(y))
        y = nn.Conv(self.width, (3, 3), padding=1, use_bias=False, dtype=self.dtype)(y)
        y = nn.BatchNorm(use_running_average=False, dtype=self.dtype)(y)
        x = x[:, :: self.stride, :: self.stride]
        return nn.relu(y + jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, self.width - x.shape[3]))))


class ResNet20(nn.Module):
    dtype: Any

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(16, (3, 3), padding=1, use_bias=False, dtype=self.dtype)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=False, dtype=self.dtype)(x))
        for width, stride in ((16, 1), (32, 2), (64, 2)):
            for i in range(3):
                x = Block(width, stride if i == 0 else 1, self.dtype)(x)
        return nn.Dense(10)(x.mean((1, 2)))


def training(
    image: np.ndarray, label: np.ndarray, batch: int, chunk: int, dtype: str
) -> tuple[Callable[[Any, int], Any], Any]:
    """`run(state, at)`, which takes `chunk` steps from step `at` on, and the first state."""
    model = ResNet20(dtype)
    tx = optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(0.1, momentum=0.9))
    variables = model.init(jax.random.key(0), image[:1])

    @jax.jit
    def step(variables, opt_state, image, label):
        def loss(params):
            logits, aux = model.apply({**variables, "params": params}, image, mutable=["batch_stats"])
            return optax.losses.softmax_cross_entropy_with_integer_labels(logits, label).mean(), aux

        grads, aux = jax.grad(loss, has_aux=True)(variables["params"])
        updates, opt_state = tx.update(grads, opt_state, variables["params"])
        return {"params": optax.apply_updates(variables["params"], updates), **aux}, opt_state

    def run(state, at):
        for i in range(at, at + chunk):
            first = i % (len(image) // batch) * batch
            state = step(*state, image[first : first + batch], label[first : first + batch])
        return jax.block_until_ready(state)

    return run, (variables, tx.init(variables["params"]))
