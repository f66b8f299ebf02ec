"""What several papers share around Optax: schedules (step -> learning rate), averages of the weights, Muon for filters.

Averages and Muon are Optax transformations: links of a chain, whose state is part of the optimizer's.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dlc.errors import UserError


def by_epoch(lr: float, factors: dict[int, float], steps_per_epoch: int) -> optax.Schedule:
    """`lr` times the factor that holds since the latest of the epochs given: `{0: 1, 10: 0.1}` divides by 10 after ten.

    Epochs count from 0. Before the first one given the factor is 1.
    """
    starts = sorted(set(factors) - {0})
    rates = [lr * factors.get(0, 1.0), *(lr * factors[start] for start in starts)]
    boundaries = [start * steps_per_epoch for start in starts]
    return optax.join_schedules([optax.constant_schedule(rate) for rate in rates], boundaries)


def triangle(peak: float, steps: int, rise: float, start: float = 0.0, end: float = 0.0) -> optax.Schedule:
    """Linear from `start` to 1 over the share `rise` of the steps, then to `end`, all times `peak`.

    The one-cycle policy without its third part (Smith, Topin 2017, "Super-convergence"); airbench94 rises from 0.2 over
    0.23 of the steps and falls to 0.07.
    """
    up = round(rise * steps)
    rising = optax.linear_schedule(start * peak, peak, max(up, 1))
    return optax.join_schedules([rising, optax.linear_schedule(peak, end * peak, max(steps - up, 1))], [up])


def drops(lr: float, steps: int, count: int, rise: int = 0, start: float = 0.0) -> optax.Schedule:
    """`lr`, divided by ten `count` times within the steps, at equal distances.

    In the first `rise` steps it rises in a line from `start`, which for Goyal et al. 2017, "Accurate, large minibatch
    SGD", section 2.2, is the rate of a small batch; never from more than `lr`.

    Raises UserError if it has not risen when it is to be divided first.
    """
    places = [round(i * steps / (count + 1)) for i in range(1, count + 1)]
    if rise >= min([*places, steps]):
        raise UserError(f"a warm-up of {rise} steps leaves none before the rate falls at {min([*places, steps])}")
    falling = optax.piecewise_constant_schedule(lr, {place - rise: 0.1 for place in places})
    if not rise:
        return falling
    return optax.join_schedules([optax.linear_schedule(min(start, lr), lr, rise), falling], [rise])


def papers_momentum(
    rate: float | optax.Schedule, momentum: float, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """v <- momentum v - rate (gradient + weight_decay w),  w <- w + v

    The form of the papers of 2012 to 2016 and of Caffe. PyTorch's and `optax.sgd` have the rate outside of v: the same
    until it changes, when this form's v still has the old one in it.

    References: Krizhevsky, Sutskever, Hinton 2012, "ImageNet classification with deep convolutional neural networks",
    section 5; Goyal et al. 2017, section 3, on the difference.
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay), optax.scale_by_learning_rate(rate), optax.trace(momentum)
    )


def matrices(params: Any) -> Any:
    """Where weight decay belongs: True for weights of two axes and more, False for biases and the scales of norms."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


class Averaged(NamedTuple):
    """State of `weight_average`; `average` has the shapes of the parameters."""

    count: Any
    average: Any


def weight_average(decay: float) -> optax.GradientTransformation:
    """Keeps an exponential moving average of the weights: average = decay * average + (1 - decay) * weights.

    The last link of a chain; it changes no update. The decay of update t is min(decay, t / (t + 9)), so that the first
    weights are soon forgotten. `averaged(opt_state)` gives the weights to evaluate with.

    References: Polyak, Juditsky 1992, "Acceleration of stochastic approximation by averaging"; the warm-up is that of
    TensorFlow's ExponentialMovingAverage.
    """

    def init(params: optax.Params) -> Averaged:
        return Averaged(jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, params))

    def update(updates: Any, state: Averaged, params: Any = None) -> tuple[Any, Averaged]:
        now = jnp.minimum(decay, (1 + state.count) / (10 + state.count))
        new = optax.apply_updates(params, updates)
        return updates, Averaged(state.count + 1, _mixed(new, state.average, now))

    return optax.GradientTransformation(init, update)


def averaged(opt_state: optax.OptState) -> Any:
    """The average that a `weight_average` in the chain has kept. Raises UserError if there is none."""
    found = [s for s in jax.tree.leaves(opt_state, is_leaf=_is_average) if _is_average(s)]
    if not found:
        raise UserError("there is no weight_average in this optimizer: add one to its chain")
    return found[0].average


def _is_average(state: Any) -> bool:
    return isinstance(state, Averaged)


class Lookahead(NamedTuple):
    """State of `lookahead`; `slow` has the shapes of the parameters."""

    count: Any
    slow: Any


def lookahead(every: int = 5, keep: float | optax.Schedule = 0.5) -> optax.GradientTransformation:
    """Every `every` updates: slow = keep * slow + (1 - keep) * weights, and the weights become the slow ones.

    The last link of a chain. `keep` may be a schedule over the updates made; airbench94's is
    0.95^5 (t / T)^3, which begins as plain descent and ends as an average.

    References: Zhang, Lucas, Hinton, Ba 2019, "Lookahead optimizer: k steps forward, 1 step back", algorithm 1, whose
    alpha is 1 - keep. `optax.lookahead` does the same with a pair of trees in the place of the parameters.
    """

    def init(params: optax.Params) -> Lookahead:
        return Lookahead(jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, params))

    def update(updates: Any, state: Lookahead, params: Any = None) -> tuple[Any, Lookahead]:
        count = state.count + 1
        share = keep(count) if callable(keep) else keep
        fast = optax.apply_updates(params, updates)
        mixed = _mixed(fast, state.slow, share)
        due = count % every == 0
        slow = jax.tree.map(lambda new, old: jnp.where(due, new, old), mixed, state.slow)
        updates = jax.tree.map(lambda new, old, update: jnp.where(due, new - old, update), mixed, params, updates)
        return updates, Lookahead(count, slow)

    return optax.GradientTransformation(init, update)


def _mixed(new: Any, old: Any, keep: Any) -> Any:
    return jax.tree.map(lambda a, b: (keep * b + (1 - keep) * a).astype(b.dtype), new, old)


def muon(
    lr: float | optax.Schedule, momentum: float = 0.6, newton_schulz_steps: int = 3
) -> optax.GradientTransformation:
    """Muon for convolution kernels HWIO as airbench94_muon has it: each is a matrix [O, KH KW I] of orthogonal rows.

    The Nesterov momentum of the gradient, orthogonalised, is the update; before it each kernel is scaled to the norm
    sqrt(O). `optax.contrib.scale_by_muon` orthogonalises here; its momentum, a debiased average, is turned off (beta
    0), because this one is a plain sum.

    References: Jordan 2024, cifar10-airbench, airbench94_muon.py.
    """

    def filters(params: Any) -> Any:
        return jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers((0, 1, 2), 3), params)

    def unit_filters(updates: Any, params: Any) -> Any:
        def scaled(update: jax.Array, kernel: jax.Array) -> jax.Array:
            return update + kernel * (jnp.sqrt(kernel.shape[-1]) / jnp.linalg.norm(kernel.ravel()) - 1)

        return jax.tree.map(scaled, updates, params)

    return optax.chain(
        optax.trace(momentum, nesterov=True),
        optax.contrib.scale_by_muon(beta=0.0, ns_steps=newton_schulz_steps, eps=1e-7, weight_dimension_numbers=filters),
        optax.scale_by_learning_rate(lr),
        optax.stateless(unit_filters),
    )
