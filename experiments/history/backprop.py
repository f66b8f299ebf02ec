"""Back-propagation by hand, and the ways down that its derivatives show.

Claim: the chain rule, from the loss back, gives the derivatives by all weights for three times the operations of the
loss; gradient descent with them settles only if its step, times the curvature, is less than 2.

Source: Werbos 1982, "Applications of advances in nonlinear sensitivity analysis"; Rumelhart, Hinton, Williams 1986,
"Learning representations by back-propagating errors". To Jordan's Muon of 2024 a point is a matrix of one row.

Expect: derivatives that differ by 6e-16; the largest step at 1.00 of 2 / curvature; half a minute on two CPU cores.

    python -m experiments.history.backprop
    python -m experiments.history.backprop --descent 50
"""

import itertools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from dlc import costs
from dlc.optim import descent, lowest_descents
from dlc.run import plot
from dlc.run.flags import NotNegative, Positive
from dlc.run.launch import launch
from dlc.run.run import Run

SIZES = (20, 30, 20, 10)  # of the layers of the perceptron
STEEP = 20  # curvature of the bowl across; along it is 1
OPTIMIZERS = {
    "gradient descent": optax.sgd,
    "momentum": lambda rate: optax.sgd(rate, 0.9),
    "Nesterov": lambda rate: optax.sgd(rate, 0.9, nesterov=True),
    "RMSProp": optax.rmsprop,
    "Adam": optax.adam,
    "Muon": optax.contrib.muon,
}


@dataclass(frozen=True)
class Config:
    descent: Positive[int] = 100  # steps down the valley
    starts: Positive[int] = 64  # points at which descents begin
    seed: NotNegative[int] = 0  # of all random numbers


SMOKE = Config(descent=30, starts=4)


def forward(params, x, label):
    """The cross-entropy of a multi-layer perceptron, each layer's input, and the derivative by its output."""
    inputs = [x]
    for weight, bias in params[:-1]:
        inputs.append(jnp.maximum(inputs[-1] @ weight + bias[None], 0))
    weight, bias = params[-1]
    powers = jnp.exp(inputs[-1] @ weight + bias[None])
    probability = powers / powers.sum(1, keepdims=True)
    right = label[:, None] == np.arange(len(bias))[None]
    return -(right * jnp.log(probability)).sum(1).mean(), inputs, (probability - right) / len(x)


def backward(params, inputs, error):
    """The derivatives by weights, x^T error, and biases, the sum of the error; the error goes back as error W^T."""
    grads = []
    for (weight, _), x in zip(reversed(params), reversed(inputs), strict=True):
        grads.append((x.T @ error, error.sum(0)))
        error = (error @ weight.T) * (x > 0)
    return grads[::-1]


def bowl(point):
    return (point[..., 0] ** 2 + STEEP * point[..., 1] ** 2).sum() / 2


def valley(point):  # Rosenbrock's, with its lowest point at (1, 1)
    return ((1 - point[..., 0]) ** 2 + 10 * (point[..., 1] - point[..., 0] ** 2) ** 2).sum()


def train(config: Config, run: Run) -> dict:
    rng = np.random.default_rng(config.seed)
    params = [(rng.normal(size=(i, o)) / i, rng.normal(size=o)) for i, o in itertools.pairwise(SIZES)]
    batch = rng.normal(size=(100, SIZES[0])), rng.integers(0, SIZES[-1], 100)
    loss = lambda params: forward(params, *batch)[0]  # noqa: E731
    by_hand = lambda params: backward(params, *forward(params, *batch)[1:])  # noqa: E731
    with jax.enable_x64(True):
        pairs = zip(*map(jax.tree.leaves, (by_hand(params), jax.grad(loss)(params))), strict=True)
        difference = max(float(abs(ours - theirs).max() / abs(theirs).max()) for ours, theirs in pairs)
        times = costs.macs(by_hand, params) / costs.macs(loss, params)
    shares = jnp.linspace(0.5, 1.5, 1001)
    ends = jax.vmap(lambda share: bowl(descent(bowl, optax.sgd(share * 2 / STEEP), jnp.ones(2), 1000)[-1]))(shares)
    largest = float(shares[ends < bowl(jnp.ones(2))].max())
    if difference > 1e-12 or times > 3 or abs(largest - 1) > 0.01:
        run.miss("the derivatives differ from JAX's, or cost more, or the largest step is another one")
    starts = rng.uniform((-1.6, 0), (-0.8, 1.6), (config.starts, 1, 2))
    rates = np.geomspace(1e-4, 1, 41)
    ways = {name: lowest_descents(valley, make, rates, starts, config.descent) for name, make in OPTIMIZERS.items()}
    run.figure("backprop", slide(ways))
    heights = {f"{name.replace(' ', '_').lower()}_ends_at": float(height[-1]) for name, (_, height) in ways.items()}
    return {"difference": difference, "times_the_loss": times, "largest_step": largest, **heights}


def slide(ways: dict) -> Figure:
    left, middle, right = (figure := plot.canvas(10.2, 4.2)).subplots(1, 3)
    for share, color in zip((0.1, 0.95, 1.02), ("#009e73", "#0072b2", "#d55e00"), strict=True):
        path = np.asarray(descent(bowl, optax.sgd(share * 2 / STEEP), jnp.array([-1.8, 0.4]), 25))
        left.plot(*path.T, color=color, marker="o", markersize=3, linewidth=1, label=f"{share:g} of 2 / curvature")
    for (name, (paths, height)), color in zip(ways.items(), plot.COLORS, strict=False):
        middle.plot(*np.asarray(paths)[0, :, 0].T, color=color, linewidth=1.4, label=name)
        right.semilogy(height, color=color)
    for axis, surface, x, y in ((left, bowl, (-2, 1), (-1, 1)), (middle, valley, (-1.8, 1.6), (-0.9, 1.8))):
        plane = np.stack(np.meshgrid(np.linspace(*x, 150), np.linspace(*y, 150)), -1)
        heights, levels = jax.vmap(jax.vmap(surface))(plane), np.geomspace(0.05, 100, 12)
        axis.contour(*np.moveaxis(plane, -1, 0), heights, levels, colors="grey", linewidths=0.4)
        axis.plot(*(0, 0) if axis is left else (1, 1), marker="*", color="black", markersize=10)
        axis.set(xlabel="x", ylabel="y", xlim=x, ylim=y)
        axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=1 + (axis is middle), frameon=False, fontsize=9)
    right.set(xlabel="step", ylabel="height above the end of the valley")
    return figure


if __name__ == "__main__":
    launch(train, Config(), SMOKE)
