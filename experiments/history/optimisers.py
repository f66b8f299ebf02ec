"""Gradient descent, momentum, Adam and Muon race to the same validation loss, each at its best rate.

Claim: on a small GPT, Muon needs at most 0.6 of Adam's steps.

Source: Jordan 2024, "Muon: an optimizer for hidden layers in neural networks"; Kingma, Ba 2014, "Adam: a method for
stochastic optimization". Each optimizer is swept over as many rates, a factor of two apart, and runs again with other
seeds at the best one. Rates are constant after 20 steps of warm-up. p is that of the Mann-Whitney
test after Holm's correction for six pairs; ratios have Welch's interval of 95 %. Steps are counted, not seconds.

Expect: Muon in 0.41 (0.34 to 0.50) of Adam's steps on the GPT, 0.78 on the convnet; four minutes on two CPU cores.

    python -m experiments.history.optimisers
    python -m experiments.history.optimisers --seeds 16 --rates 6
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import optax
from matplotlib.figure import Figure

from dlc import data, optim
from dlc.analysis import trials
from dlc.models.convnet import Convnet
from dlc.prepare import mean_and_std, standardise
from dlc.run import plot
from dlc.run.flags import NotNegative, Positive
from dlc.run.launch import launch
from dlc.run.run import Run
from dlc.tasks import sweep


@dataclass(frozen=True)
class Config:
    dataset: Literal["tiny_shakespeare", "python"] = "tiny_shakespeare"  # the data set; of the GPT
    pictures: Literal["mnist", "fashion_mnist", "digits"] = "mnist"  # the data set of the convnet
    layers: Positive[int] = 2  # number of blocks; of the GPT
    steps: Positive[int] = 200  # training steps; of the GPT
    convnet_steps: Positive[int] = 80  # training steps of the convnet
    gpt_loss: Positive[float] = 2.55  # the loss that the GPT races to, nats a character
    convnet_loss: Positive[float] = 0.4  # the loss that the convnet races to, nats an image
    rates: Positive[int] = 4  # learning rates of each sweep
    seed: NotNegative[int] = 0  # of all random numbers
    seeds: Positive[int] = 8  # number of runs, the first with `seed`; of each optimizer at its best rate


SMOKE = Config(
    "python", "digits", layers=1, steps=40, convnet_steps=20, gpt_loss=4.0, convnet_loss=1.8, rates=2, seeds=4
)


RISE = 20  # steps of the warm-up


def warmed(optimiser: Any) -> Any:
    """The optimizer of a rate that rises linearly over the first steps and then stays."""
    rise = optax.linear_schedule(1 / RISE, 1.0, RISE)
    return lambda rate: optax.chain(optimiser(rate), optax.scale_by_schedule(rise))


# Name -> the optimizer and, for the GPT and the convnet, the rate in the middle of its sweep
OPTIMISERS = {
    "SGD": (optax.sgd, 0.125, 0.1),
    "momentum": (lambda rate: optax.sgd(rate, 0.9), 0.05, 0.04),
    "Adam": (lambda rate: optax.adam(rate, b2=0.99), 2e-3, 8e-3),
    "Muon": (lambda rate: optim.muon_for_kernels(lambda step: rate, 0.5, 0.99), 2e-2, 2e-2),
}


def gpt(config: Config, run: Run) -> sweep.Problem:
    return sweep.of_corpus(
        run, config.dataset, {"context": 32, "layers": config.layers, "heads": 4, "width": 64}, batch=16
    )


def convnet(config: Config) -> sweep.Problem:
    found = data.load(config.pictures)
    learn, held = sweep.held_out(found.train, 500)
    prepare = standardise(*mean_and_std(found.train["image"]))
    return sweep.of_images(learn, {"validation": held}, Convnet(len(found.classes)), prepare, batch=50)


def train(config: Config, run: Run) -> dict:
    learnt = {
        "GPT": (gpt(config, run), sweep.Length(config.steps, 10), config.gpt_loss),
        "convnet": (convnet(config), sweep.Length(config.convnet_steps, 5), config.convnet_loss),
    }
    seeds = sweep.several(config)
    around = 2.0 ** (np.arange(config.rates) - config.rates // 2)
    found = {}
    for place, (what, (problem, length, loss)) in enumerate(learnt.items()):
        run.say(f"{what}, to a validation loss of {loss} nats")
        entries = {
            name: (problem, warmed(optimiser), middles[place] * around)
            for name, (optimiser, *middles) in OPTIMISERS.items()
        }
        found[what] = sweep.compared(run, entries, seeds, length, sweep.Target("validation_loss", loss))
    run.facts |= {"dataset": f"{run.facts['dataset']}, {config.pictures}", "seeds": config.seeds}
    run.figure("optimisers", draw(found, {what: loss for what, (*_, loss) in learnt.items()}))

    steps = {name: np.minimum(best.steps, config.steps) for name, best in found["GPT"].items()}  # at least
    (ratio, low, high), p = trials.ratio_interval(steps["Muon"], steps["Adam"]), trials.pairwise(steps)["Adam", "Muon"]
    if not np.isfinite(found["GPT"]["Muon"].steps).all() or ratio > 0.6 or p > 0.05:
        run.miss(f"Muon needs {ratio:.2f} of Adam's steps on the GPT, and not at most 0.6 (p = {p:.2g})")
    figures = {"muon_over_adam": ratio, "muon_over_adam_low": low, "muon_over_adam_high": high, "p": p}
    for what, name in ((what, name) for what, bests in found.items() for name in bests):
        if np.isfinite(found[what][name].steps).all():
            figures[f"{what}_{name}_steps".lower()] = found[what][name].steps
    return figures


def draw(found: dict, targets: dict[str, float]) -> Figure:
    figure = plot.canvas(9.6, 6.6)
    for axes, (what, bests) in zip(figure.subplots(2, 2, width_ratios=(1.2, 1)), found.items(), strict=True):
        unit = f"{what}: validation loss (nats {'a character' if what == 'GPT' else 'an image'})"
        sweep.draw(axes, bests, targets[what], unit, "Adam")
        first = [best.curves[:, 0].mean() for best in bests.values()]
        axes[0].set_ylim(None, min(max(first), 1.6 * min(first)))
    return figure


if __name__ == "__main__":
    launch(train, Config(), SMOKE)
