"""How large should the first weights be? Signals through 30 layers, for six answers, and training from two of them.

Claim: in a 30-layer plain ReLU network, weights of variance 2/n keep the variance of signals and gradients from layer
to layer, and 1/n halves it; the loss falls with 2/n and stalls with 1/n, in 8 of 8 seeds.

Source: He, Zhang, Ren, Sun 2015, "Delving deep into rectifiers", section 2.2 and figure 3: a 30-layer network converges
with 2/n, and with 1/n ("Xavier") it stalls completely. Theirs has 27 convolutions and learns ImageNet; this one is
dense and learns digits by SGD with momentum 0.9. Dashed lines are predictions of the variance: a layer of linear units
multiplies it by n Var(w) (Glorot, Bengio 2010), one of ReLU by half of that. dlc/analysis/signals.py has all sources.

Expect: a loss of 0.48 ± 0.04 with 2/n, at the smaller rate, and 2.30 with 1/n; about a minute on two CPU cores.

    python -m experiments.history.initialisation
    python -m experiments.history.initialisation --depth 14
"""

import itertools
import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from optax import inject_hyperparams, sgd

from dlc import batches, data
from dlc.analysis import signals
from dlc.prepare import mean_and_std, standardise
from dlc.run import plot
from dlc.run.flags import Bound, NotNegative, Positive, Some
from dlc.run.launch import launch
from dlc.run.run import Run
from dlc.train import init, make_step, on_device, over_seeds, scanned, seed_keys


@dataclass(frozen=True)
class Config:
    dataset: Literal["mnist", "fashion_mnist", "digits"] = "mnist"  # the data set
    depth: Annotated[int, Bound(lambda n: n > 2, "must be at least 3, not {}")] = 30  # layers with weights
    width: Positive[int] = 128  # size of the vectors between layers
    steps: Positive[int] = 400  # training steps; ten or more
    batch: Positive[int] = 64  # examples in a batch
    lrs: Some[tuple[Positive[float], ...]] = (0.003, 0.1)  # learning rates, each with both initialisations
    seed: NotNegative[int] = 0  # of all random numbers
    seeds: Positive[int] = 8  # number of runs, the first with `seed`; trained at once


SMOKE = Config(dataset="digits", depth=12, width=32, steps=60, batch=32, lrs=(0.01,), seeds=2)

EVERY = 10  # steps, whose mean loss is drawn
momentum = inject_hyperparams(sgd)  # the rate is then a part of the state, and differs between runs
UNITS = {"tanh": (jnp.tanh, 1.0), "ReLU": (jax.nn.relu, 0.5)}  # with the predicted share of n Var(w)


def train(config: Config, run: Run) -> dict:
    digits = data.load(config.dataset)
    run.facts |= {"dataset": digits.name, "source": digits.source, "seeds": config.seeds}
    prepare = standardise(*mean_and_std(digits.train["image"]))
    vectors = lambda image: prepare(image).reshape(len(image), -1)  # noqa: E731
    keys, sizes = seed_keys(config.seed, config.seeds), (digits.train["image"][0].size, config.width, 10)
    networks = signals.every_initial(keys, sizes, config.depth)

    x, label = vectors(digits.test["image"][:300]), digits.test["label"][:300]
    deviations: dict = {}  # (unit, initialisation) -> of signals and of gradients, [2, S, depth - 1]
    for kind, (unit, _) in UNITS.items():
        look = jax.jit(jax.vmap(lambda params, unit=unit: signals.deviations(params, x, label, unit)))
        deviations |= {(kind, name): np.float64(look(params)) for name, params in networks.items()}

    def start(name: str, rate: float) -> Any:
        return jax.vmap(lambda params, key: init(params, momentum(rate, 0.9), key))(networks[name], keys)

    tried = [(name, rate) for name in ("2/n", "1/n") for rate in config.lrs]
    state = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *(start(*each) for each in tried))
    numbers = range(config.seed, config.seed + config.seeds)
    rows = batches.minibatches(len(digits.train["label"]), config.batch, True, numbers)(0, config.steps)
    rows = np.tile(rows.reshape(config.steps, config.seeds, -1).swapaxes(0, 1), (len(tried), 1, 1))
    step = on_device(make_step(signals.classify(jax.nn.relu, vectors), momentum(0.0, 0.9)), digits.train)
    program = run.clock.compiled(over_seeds(scanned(step), batch_axis=0), state, rows)
    _, metrics = run.clock.timed("train", program, state, rows)
    means = metrics["loss"][:, : config.steps // EVERY * EVERY].reshape(len(tried), config.seeds, -1, EVERY).mean(-1)
    lost = dict(zip(tried, np.asarray(means), strict=True))

    run.figure("initialisation", draw(config, deviations, lost))
    final = {name: np.fmin.reduce([lost[name, lr][:, -2:].mean(1) for lr in config.lrs]) for name in ("2/n", "1/n")}
    fell, stalled = (final["2/n"] < 0.5 * math.log(10)).sum(), (final["1/n"] > 0.95 * math.log(10)).sum()
    if min(fell, stalled) < config.seeds:
        run.miss(f"of {config.seeds} seeds, the loss fell in {fell} with 2/n and stalled in {stalled} with 1/n")
    factors = {name: signals.factors(*deviations["ReLU", name]) for name in ("2/n", "1/n")}  # [2, S]
    if np.abs(factors["2/n"].mean(1) - 1).max() > 0.1 or np.abs(factors["1/n"].mean(1) - 0.5).max() > 0.05:
        run.miss("a layer of ReLU does not multiply variances by 1 with 2/n and by 0.5 with 1/n")
    found = {"loss_2n": final["2/n"], "loss_1n": final["1/n"], "fell": fell, "stalled": stalled}
    for name, (forth, back) in factors.items():
        found |= {f"signal_factor_{name[0]}n": forth, f"gradient_factor_{name[0]}n": back}
    return found


def draw(config: Config, deviations: dict, lost: dict) -> Figure:
    figure = plot.canvas(10.2, 5.8)
    grid = figure.add_gridspec(2, 3, width_ratios=(1, 1, 1.15))
    shades = dict(zip(signals.INITIALISATIONS, (plot.COLORS[i] for i in (1, 0, 4, 2, 3, 6)), strict=True))
    for (row, what), (column, kind) in itertools.product(enumerate(("signals", "gradients")), enumerate(UNITS)):
        axis = figure.add_subplot(grid[row, column])
        for place, (name, how) in enumerate(signals.INITIALISATIONS.items()):
            found = np.exp(2 * np.log(np.maximum(deviations[kind, name][row], 1e-150)).mean(0))
            factor = UNITS[kind][1] * config.width * how.variance(config.width, config.width)
            powers = factor ** np.arange(config.depth - 1)[:: 1 - 2 * row]
            label = f"{name} ({how.source})" if row + column == 0 else None
            axis.plot(range(1, config.depth), found, color=shades[name], linewidth=4.5 - 0.6 * place, label=label)
            axis.plot(range(1, config.depth), found[-row] * powers, "k--", linewidth=0.8)
        axis.set(yscale="log", ylim=(1e-16, 1e3), title=f"variance of {what}, {kind}", xlabel="layer")
    axis = figure.add_subplot(grid[:, 2])
    for (name, rate), values in lost.items():
        steps, style = EVERY * np.arange(1, values.shape[1] + 1), "-" if rate == config.lrs[0] else ":"
        axis.plot(steps, values.T, style, color=shades[name])
    axis.axhline(math.log(10), color="grey", linestyle=":", label="guessing")
    axis.set(xlabel="step", ylabel="loss (nats)", ylim=(0, 3), title="training, ReLU: 2/n falls, 1/n stalls")
    figure.axes[0].plot([], [], "k--", linewidth=0.8, label="predicted")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


if __name__ == "__main__":
    launch(train, Config(), SMOKE)
