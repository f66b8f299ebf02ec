"""What Hubel and Wiesel did to a cat, done to networks: bars of every orientation, and which units respond to which.

Claim: learning makes filters of 5 x 5 pixels or more selective for orientation, as cells of the visual cortex are: more
than before, and more than with their pixels shuffled; filters of 3 x 3 hardly.

Source: Hubel, Wiesel 1959, "Receptive fields of single neurones in the cat's striate cortex". Here gratings drift, and
selectivity is the vector sum of the responses (`dlc/analysis/tuning.py`): 0 if all orientations are alike. Units that
respond less than a tenth as strongly as the strongest one are left out.

Expect: mean selectivities of 0.36 after and 0.20 before training on MNIST; 0.48 and 0.20 of the published SqueezeNet.

    python -m experiments.history.orientation
    python -m experiments.history.orientation --weights compressed_SqueezeNet.net
"""

import contextlib
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from flax.errors import FlaxError
from matplotlib.figure import Figure

from dlc.analysis import features, tuning
from dlc.errors import UserError
from dlc.run import plot
from dlc.run.flags import NotNegative, Positive, Shown, Some
from dlc.run.launch import launch
from dlc.run.run import Run
from dlc.tasks import subjects
from dlc.train import seed_keys

FREQUENCIES, EXAMPLES = np.geomspace(0.05, 0.4, 6), 8  # periods a pixel; units in the figure
KINDS = {"trained": plot.COLORS[1], "shuffled": plot.COLORS[0], "untrained": plot.COLORS[6]}


@dataclass(frozen=True)
class Config:
    networks: Some[tuple[subjects.Name, ...]] = ("mnist", "cifar10")  # data sets that networks have learnt
    orientations: Shown[Positive[int]] = 24  # of the gratings
    controls: Shown[Positive[int]] = 10  # shufflings of the filters, and draws of untrained weights
    seed: Shown[NotNegative[int]] = 0  # of all random numbers


SMOKE = Config(networks=("digits",), orientations=8, controls=3)


def gratings_for(config: Config, model: Any, variables: dict) -> tuple:
    """The name of the first layer, its filters, all weights by path, and gratings of a size that a network takes."""
    weights = traverse_util.flatten_dict(variables["params"], sep="/")
    channels = min((leaf.shape[2] for leaf in weights.values() if leaf.ndim == 4), default=0)
    for side in (28, 48, 224) if channels else ():
        images = jax.device_put(tuning.gratings(side, FREQUENCIES, config.orientations, 8).repeat(channels, -1))
        with contextlib.suppress(TypeError, ValueError, KeyError, AttributeError, FlaxError):
            name = next(iter(features.shapes(model.apply, variables, images[0, 0])))
            return name, np.asarray(weights[f"{name}/kernel"]), weights, images
    raise UserError(f"{type(model).__name__} does not begin with filters of images: give those of another network")


def examined(config: Config, model: Any, variables: dict) -> dict:
    """The first layer's filters [h, w, C, U], and by kind the tuning curves [U, O] of the network and its controls."""
    name, kernel, weights, images = gratings_for(config, model, variables)

    @jax.jit
    def curves(variables):
        return tuning.curves(lambda x: features.activations(model.apply, variables, x, [name])[name], images)

    def shuffled(key):
        changed = weights | {f"{name}/kernel": tuning.shuffled(key, kernel)}
        return variables | {"params": traverse_util.unflatten_dict(changed, sep="/")}

    keys = seed_keys(config.seed, config.controls)
    networks = [variables], map(shuffled, keys), (model.init(key, images[0, 0]) for key in keys)
    found = {k: [tuning.at_best_frequency(curves(v)) for v in vs] for k, vs in zip(KINDS, networks, strict=True)}
    awake = {kind: [each[tuning.responsive(each)] for each in some] for kind, some in found.items()}
    scaled = (kernel - np.min(kernel, (0, 1, 2))) / np.ptp(kernel, (0, 1, 2))
    return {"filters": scaled[..., tuning.responsive(found["trained"][0])], **awake}


def report(run: Run, every: dict) -> dict:
    run.figure("orientation", slide(every))
    kinds = [(name, kind) for name in every for kind in KINDS]
    means = {kind: np.array([tuning.selectivity(each)[1].mean() for each in every[kind[0]][kind[1]]]) for kind in kinds}
    for name, found in every.items():
        if len(found["filters"]) > 3 and means[name, "trained"] <= max(means[name, k].max() for k in [*KINDS][1:]):
            run.miss(f"the trained units of {name} are not more selective than the others")
    return {"_".join(kind): mean for kind, mean in means.items()}


def train(config: Config, run: Run) -> dict:
    networks = {name: subjects.trained(run, name) for name in config.networks}
    run.facts["dataset"] = " and ".join(networks)
    return report(run, {name: examined(config, one.model, one.variables) for name, one in networks.items()})


def show(config: Config, run: Run, model: Any, variables: dict) -> dict:
    return report(run, {type(model).__name__.lower(): examined(config, model, variables)})


def slide(every: dict) -> Figure:
    grid = (figure := plot.canvas(10.2, 2.7 * len(every))).add_gridspec(2 * len(every), EXAMPLES + 3)
    for row, (name, found) in enumerate(every.items()):
        preferred, index = tuning.selectivity(curves := found["trained"][0])
        best = index.argsort()[::-1][: 2 * EXAMPLES]
        angles = np.arange(2 * curves.shape[1] + 1) * np.pi / curves.shape[1]
        for column, unit in enumerate(best[preferred[best].argsort()][::2]):
            above = figure.add_subplot(grid[2 * row, column])
            above.imshow(found["filters"][..., unit], cmap="gray")
            above.set_axis_off()
            below = figure.add_subplot(grid[2 * row + 1, column], projection="polar")
            below.fill(angles, np.resize(curves[unit], len(angles)), color=KINDS["trained"], alpha=0.6)
            below.set(xticks=np.arange(4) * np.pi / 2, xticklabels=(), yticks=())
        axis = figure.add_subplot(grid[2 * row : 2 * row + 2, EXAMPLES:])
        for kind, color in KINDS.items():
            axis.ecdf(np.concatenate([tuning.selectivity(each)[1] for each in found[kind]]), color=color, label=kind)
        axis.set(xlabel="selectivity", ylabel=f"share of units, {name}", xlim=(0, 1))
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper right", ncols=3, frameon=False, fontsize=9)
    return figure


if __name__ == "__main__":
    launch(train, Config(), SMOKE, show)
