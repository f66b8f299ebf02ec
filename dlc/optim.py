"""What Optax does not have: schedules (step -> learning rate) and optimizers of several papers."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dlc.errors import UserError


def by_epoch(lr: float, factors: dict[int, float], steps_per_epoch: int) -> optax.Schedule:
    """`lr` times a factor that changes at the given epochs: `{0: 1, 10: 0.1}` divides by 10 after ten epochs.

    Epochs count from 0. Before the first given epoch the factor is 1.
    """
    starts = sorted(set(factors) - {0})
    rates = [lr * factors.get(0, 1.0), *(lr * factors[start] for start in starts)]
    boundaries = [start * steps_per_epoch for start in starts]
    return optax.join_schedules([optax.constant_schedule(rate) for rate in rates], boundaries)


def triangle(peak: float, steps: int, rise: float, start: float = 0.0, end: float = 0.0) -> optax.Schedule:
    """`peak` times a factor that rises linearly from `start` to 1 over the fraction `rise` of the steps, then to `end`.

    This is the one-cycle policy without its third phase (Smith, Topin 2017, "Super-convergence"). airbench94 rises from
    0.2 over 0.23 of the steps and falls to 0.07.
    """
    up = round(rise * steps)
    rising = optax.linear_schedule(start * peak, peak, max(up, 1))
    return optax.join_schedules([rising, optax.linear_schedule(peak, end * peak, max(steps - up, 1))], [up])


def drops(lr: float, steps: int, count: int, rise: int = 0, start: float = 0.0) -> optax.Schedule:
    """`lr`, divided by ten `count` times, at equal intervals within the steps.

    In the first `rise` steps it rises linearly from `start`, or from `lr` if that is less. In Goyal et al. 2017,
    "Accurate, large minibatch SGD", section 2.2, `start` is the learning rate of a small batch.

    Raises UserError if the first division comes before the end of the rise.
    """
    places = [round(i * steps / (count + 1)) for i in range(1, count + 1)]
    if rise >= min([*places, steps]):
        raise UserError(f"a warm-up of {rise} steps must end before the rate falls at step {min([*places, steps])}")
    falling = optax.piecewise_constant_schedule(lr, {place - rise: 0.1 for place in places})
    if not rise:
        return falling
    return optax.join_schedules([optax.linear_schedule(min(start, lr), lr, rise), falling], [rise])


def papers_momentum(
    rate: float | jax.Array | optax.Schedule, momentum: float, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """v <- momentum v - rate (gradient + weight_decay w),  w <- w + v

    The form in the papers of 2012 to 2016 and in Caffe. In PyTorch and `optax.sgd` the rate is outside of v. The two
    are the same until the rate changes; then the v of this form still contains the old rate.

    References: Krizhevsky, Sutskever, Hinton 2012, "ImageNet classification with deep convolutional neural networks",
    section 5; Goyal et al. 2017, section 3, on the difference.
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay), optax.scale_by_learning_rate(rate), optax.trace(momentum)
    )


def matrices(params: Any) -> Any:
    """A mask for weight decay: True for weights with two or more axes, False for biases and the scales of norms."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def within(limit: float) -> optax.GradientTransformation:
    """Max-norm: after each step the weights into a unit, a column of a kernel, have a norm of at most `limit`.

    It comes last in a chain. Columns beyond the limit are scaled back to it; other weights stay as they are.

    References: Srivastava et al. 2014, "Dropout: a simple way to prevent neural networks from overfitting", section
    5.1.
    """

    def scaled_back(update: jax.Array, weight: jax.Array) -> jax.Array:
        if weight.ndim < 2:
            return update
        moved = weight + update
        norm = jnp.sqrt(jnp.square(moved).sum(tuple(range(moved.ndim - 1)), keepdims=True))
        return moved * jnp.minimum(1, limit / jnp.maximum(norm, 1e-12)) - weight

    return optax.stateless(lambda updates, params: jax.tree.map(scaled_back, updates, params))


def muon(
    lr: float | optax.Schedule, momentum: float = 0.6, newton_schulz_steps: int = 3
) -> optax.GradientTransformation:
    """Muon for convolution kernels HWIO, as in airbench94_muon: each is treated as a matrix [O, KH KW I].

    The update is the Nesterov momentum of the gradient with orthogonalised rows. Before it, each kernel is scaled to
    the norm sqrt(O). `optax.contrib.scale_by_muon` does the orthogonalisation; its own momentum, a debiased average, is
    turned off (beta 0), because the momentum here is a plain sum.

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


def muon_for_kernels(
    rate: optax.Schedule, adam: float = 1.0, beta2: float = 0.999, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """Muon for the kernels of dense layers, [I, O]; for embeddings, norms and biases Adam, at `adam` times the rate.

    Muon orthogonalises the momentum of a matrix and multiplies it by sqrt(max(1, O / I)). Only kernels decay: in a step
    each loses a share of its rate times `weight_decay`.

    References: Jordan 2024, "Muon: an optimizer for hidden layers in neural networks".
    """

    def kernels(params: Any) -> Any:
        def dimensions(path: Any, leaf: Any) -> Any:
            return optax.contrib.MuonDimensionNumbers() if path[-1].key == "kernel" and leaf.ndim == 2 else None

        return jax.tree_util.tree_map_with_path(dimensions, params)

    return optax.contrib.muon(
        rate, weight_decay=weight_decay, adam_b2=beta2, adam_learning_rate=lambda step: adam * rate(step),
        muon_weight_dimension_numbers=kernels,
    )  # fmt: skip


class Accumulated(NamedTuple):
    """The state of `accumulated`: the weight of the last part, and the sums over the parts so far."""

    weight: Any
    sums: optax.MultiStepsState


def accumulated(tx: optax.GradientTransformation, parts: int) -> optax.GradientTransformation:
    """`tx` for batches that come in several parts: it waits for the last, and then takes the mean of their gradients.

    Until then the updates are zero. A part counts as much as the extra argument `weight` of `update` says, such as its
    number of tokens (1): so the mean over the tokens of all parts is that of one large batch, also where the parts
    differ in padding. The schedules of `tx` count batches. `optax.MultiSteps` keeps the sums, which need as much memory
    as the weights. It would compute the updates of `tx` for every part and drop all but the last; here they are
    computed once.
    """
    if parts == 1:
        return tx

    def of_mean(sums: Any, state: Any, params: Any, *, last: Any) -> tuple[Any, Any]:
        def update() -> tuple[Any, Any]:
            heavy, weight = sums
            mean = jax.tree.map(lambda leaf: (leaf / jnp.maximum(weight, 1e-30)).astype(leaf.dtype), heavy)
            updates, new = tx.update(mean, state, params[0])
            return updates, jax.tree.map(lambda leaf, old: leaf.astype(old.dtype), new, state)

        waiting = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(update)[0])
        updates, state = jax.lax.cond(last, update, lambda: (waiting, state))
        return (updates, jnp.zeros_like(sums[1])), state

    inner = optax.GradientTransformationExtraArgs(lambda params: tx.init(params[0]), of_mean)
    multi = optax.MultiSteps(inner, parts, accumulator_dtype=float)  # float64 in a process that has it

    def init(params: Any) -> Accumulated:
        one = jnp.ones((), float)
        return Accumulated(one, multi.init((params, one)))

    def update(grads: Any, state: Any, params: Any = None, *, weight: Any = 1, **_: Any) -> tuple[Any, Accumulated]:
        weight = jnp.asarray(weight, float)
        heavy = jax.tree.map(lambda grad: (weight * grad).astype(grad.dtype), grads)
        last = state.sums.mini_step == parts - 1
        (updates, _), sums = multi.update((heavy, weight), state.sums, (params, weight), last=last)
        return updates, Accumulated(weight, sums)

    return optax.GradientTransformationExtraArgs(init, update)


def descent(surface: Callable[[Any], Any], tx: optax.GradientTransformation, start: Any, steps: int) -> Any:
    """The points that `tx` visits on its way down `surface(point) -> scalar`; leaves gain an axis [steps + 1]."""

    def step(state: Any, _: None) -> Any:
        point, memory = state
        updates, memory = tx.update(jax.grad(surface)(point), memory, point)
        return (optax.apply_updates(point, updates), memory), point

    (last, _), path = jax.lax.scan(step, (start, tx.init(start)), length=steps)
    return jax.tree.map(lambda before, end: jnp.concatenate([before, end[None]]), path, last)


def lowest_descents(surface: Callable[[Any], Any], make: Any, rates: Any, starts: Any, steps: int) -> tuple[Any, Any]:
    """`descent` from each of `starts` [S, ...] with `make(schedule)`, whose rate falls from one of `rates` [R] to 0.

    Returns the paths [S, steps + 1, ...] for the rate whose ends are lowest, and how high they are on the way,
    [steps + 1]: the geometric mean over the starts. The surface must not be negative.
    """

    def ways(rate: Any) -> tuple[Any, Any]:
        tx = make(lambda step: rate * (1 - step / steps))
        paths = jax.vmap(lambda start: descent(surface, tx, start, steps))(starts)
        height = jnp.log(jax.vmap(jax.vmap(surface))(paths) + 1e-12)
        return paths, jnp.exp(jnp.where(jnp.isfinite(height), height, jnp.inf).mean(0))

    paths, height = jax.jit(jax.vmap(ways))(jnp.asarray(rates, jnp.float32))
    best = height[:, -1].argmin()
    return paths[best], height[best]
