"""A GPT in Flax, as one would first write it: its own layers, one jitted step at a time."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax


class GPT(nn.Module):
    vocab: int
    context: int
    layers: int
    heads: int
    width: int

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(self.vocab, self.width)
        x = embed(tokens) + nn.Embed(self.context, self.width)(jnp.arange(tokens.shape[1]))
        for _ in range(self.layers):
            y = nn.LayerNorm(use_bias=False)(x)
            attend = nn.MultiHeadDotProductAttention(self.heads, use_bias=False)
            x = x + attend(y, mask=nn.make_causal_mask(tokens))
            y = nn.gelu(nn.Dense(4 * self.width, use_bias=False)(nn.LayerNorm(use_bias=False)(x)))
            x = x + nn.Dense(self.width, use_bias=False)(y)
        return embed.attend(nn.LayerNorm(use_bias=False)(x))


def training(
    model: GPT, tokens: np.ndarray, starts: Callable[[int], np.ndarray]
) -> tuple[Callable[[Any, int], Any], Any]:
    """`run(state, at)`, which takes a step for each row of `starts(at)` [chunk, B], and the first state."""
    params = model.init(jax.random.key(0), tokens[None, : model.context])
    decays = jax.tree.map(lambda weight: weight.ndim > 1, params)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, b2=0.99, weight_decay=0.1, mask=decays))

    @jax.jit
    def step(params, opt_state, tokens):
        def loss(params):
            logits = model.apply(params, tokens[:, :-1])
            return optax.losses.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

        updates, opt_state = tx.update(jax.grad(loss)(params), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    def run(state, at):
        for row in starts(at):
            state = step(*state, tokens[row[:, None] + np.arange(model.context + 1)])
        return jax.block_until_ready(state)

    return run, (params, tx.init(params))
