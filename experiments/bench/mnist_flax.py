"""The lecture's MNIST program in Flax, as one would first write it: one jitted step at a time."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from dlc import data


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.max_pool(nn.Conv(32, (5, 5), padding="VALID")(x), (3, 3), (3, 3)))
        x = nn.relu(nn.max_pool(nn.Conv(64, (5, 5), padding="VALID")(x), (2, 2), (2, 2)))
        return nn.Dense(10)(nn.relu(nn.Dense(200)(x.reshape(len(x), -1))))


def training(batch: int, chunk: int) -> tuple[Callable[[Any, int], Any], Any]:
    """`run(state, at)`, which takes `chunk` steps from step `at` on, and the first state."""
    mnist = data.load("mnist")
    images = (mnist.train["image"].astype(np.float32) / 255 - 0.1307) / 0.3081
    model, tx = Net(), optax.sgd(0.1)
    params = model.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))

    @jax.jit
    def step(params, opt_state, image, label):
        def loss(params):
            return optax.losses.softmax_cross_entropy_with_integer_labels(model.apply(params, image), label).mean()

        updates, opt_state = tx.update(jax.grad(loss)(params), opt_state)
        return optax.apply_updates(params, updates), opt_state

    def run(state, at):
        for i in range(at, at + chunk):
            rows = slice(i % 600 * batch, (i % 600 + 1) * batch)
            state = step(*state, images[rows], mnist.train["label"][rows])
        return jax.block_until_ready(state)

    return run, (params, tx.init(params))
