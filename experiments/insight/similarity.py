"""How alike are the layers of two networks, and how well do they explain each other, or a brain?

Claim: of all layers of a network that began with other weights, the most similar one by centred kernel alignment (CKA)
is the same layer or the next one, and its layers explain more of a unit's answers than an untrained network's do.

Source: Kornblith et al. 2019, "Similarity of neural network representations revisited", section 6.1, for CKA; Yamins
and DiCarlo 2016, "Using goal-driven deep learning models to understand sensory cortex", for predicting each unit from a
layer by regression, with a network in the place of the cortex; Kriegeskorte et al. 2008 for dissimilarity matrices.
With --recordings, the sites of a real cortex take that place: an array of images x sites.

Expect: the same layer in 52.08 ± 22.94 %, it or the next in 89.58 ± 12.29 % (untrained: 25.00 ± 0.00 %), one epoch;
81 % of the variance explained by another seed, 61 % by an untrained network. A minute and a half on two CPU cores.

    python -m experiments.insight.similarity
    python -m experiments.insight.similarity --seeds 5
    python -m experiments.insight.similarity --recordings sites.npy --stimuli images/
    python -m experiments.insight.similarity --weights squeezenet.net --recordings sites.npy --stimuli images/
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import numpy as np
import optax

from dlc import data, layers
from dlc.data import recordings
from dlc.errors import UserError
from dlc.prepare import mean_and_std, standardise
from dlc.run.flags import NotNegative, Positive, Shown
from dlc.run.launch import launch
from dlc.run.run import Run
from dlc.tasks import images, likeness, subjects


@dataclass(frozen=True)
class Config:
    dataset: Literal["mnist", "digits"] = "mnist"  # the data set
    epochs: Positive[int] = 1  # passes over the training set
    test_images: Positive[int] = 500  # test images that are looked at
    recordings: Shown[Path | None] = None  # answers of sites to images: an array of images x sites in a .npy file
    stimuli: Shown[Path | None] = None  # the folder of these images, in the order of their names
    seed: NotNegative[int] = 0  # of all random numbers
    seeds: Positive[int] = 3  # number of runs, the first with `seed`; trained at once


SMOKE = Config(dataset="digits", epochs=4, test_images=60, seeds=2)
WIDTHS = (16, 16, 16, 32, 32, 32, 32, 32)
NAMES = tuple(f"conv{i}" for i in range(1, len(WIDTHS) + 1))
OTHER, UNTRAINED = "another seed", "an untrained network"


class Plain(nn.Module):
    """Eight 3x3 convolutions with ReLUs, the first and the fourth of stride 2; the mean of each map; a dense layer."""

    num_classes: int = 10

    @nn.compact
    def __call__(self, x: Any, *, train: bool = False) -> Any:
        for name, width in zip(NAMES, WIDTHS, strict=True):
            how = {"strides": (2, 2) if name in ("conv1", "conv4") else (1, 1), "padding": "SAME"}
            x = nn.relu(layers.Conv(width, (3, 3), **how, kernel_init=nn.initializers.he_normal(), name=name)(x))
        return layers.Dense(self.num_classes, name="dense")(x.mean((1, 2)))


def train(config: Config, run: Run) -> dict:
    if config.recordings or config.stimuli:
        subject, (files, sites) = subjects.trained(run, config.dataset), recorded(config)
        pixels = recordings.squares(files, *subject.image.shape[2:])
        return likeness.of_sites(run, subject.apply, subject.variables, pixels, sites)
    if config.seeds < 2:
        raise UserError("a network needs another one to be compared with: give --seeds 2 or more")
    dataset = data.load(config.dataset)
    run.facts |= {"dataset": dataset.name, "source": dataset.source, "seeds": config.seeds}
    task = images.Task(dataset, Plain(len(dataset.classes)), standardise(*mean_and_std(dataset.train["image"])))
    apply = lambda variables, pixels, **how: task.model.apply(variables, task.prepare(pixels), **how)  # noqa: E731
    shown = dataset.test["image"][np.argsort(dataset.test["label"][: config.test_images], kind="stable")]
    epochs = images.Epochs(config.epochs, 100, True, config.seed, config.seeds)
    groups = {}
    for name, count in (("trained", config.epochs), ("untrained", 0)):
        run.say(f"{config.seeds} networks, {name} ...")
        variables = images.learn(task, optax.adam(2e-3), replace(epochs, epochs=count))
        each = [jax.tree.map(lambda leaf, k=k: leaf[k], variables) for k in range(config.seeds)]
        groups[name] = [likeness.answers(apply, one, shown, NAMES) for one in each]

    learnt, begun = groups["trained"], groups["untrained"]
    alike = {OTHER: likeness.alignments(learnt, learnt), UNTRAINED: likeness.alignments(learnt, begun)}
    off = {name: abs(table.argmax(2) - np.arange(len(NAMES))) for name, table in alike.items()}  # [pairs, layers]
    units = likeness.sampled(learnt[0]["conv8"], 200, config.seed)
    sources = {OTHER: learnt[1], UNTRAINED: begun[1], "pixels": {"pixels": shown}}
    share = {name: likeness.explained(source, units) for name, source in sources.items()}
    best = {name: values.max() for name, values in share.items()}
    means = {name: table.mean(0) for name, table in alike.items()}
    some = {"pixels": shown, "layer 4": learnt[0]["conv4"], "layer 8": learnt[0]["conv8"]}
    some |= {f"layer 8, {OTHER}": learnt[1]["conv8"], "layer 8, untrained": begun[0]["conv8"]}
    run.figure("similarity", likeness.overview(some, means, share, [name.removeprefix("conv") for name in NAMES]))

    if (near := (off[OTHER] <= 1).mean()) < 0.9:
        run.miss(f"the most similar layer is the same one or the next one in only {near:.0%} of the cases")
    if best[OTHER] < max(best[UNTRAINED], best["pixels"]):
        run.miss("an untrained network, or the pixels, explain as much as a trained network does")
    found = {f"{word}_layer_accuracy": (off[OTHER] <= far).mean(1) for word, far in (("same", 0), ("near", 1))}
    found["untrained_near_layer_accuracy"] = (off[UNTRAINED] <= 1).mean(1)
    return found | {f"explained_by_{name.split()[-1]}": value for name, value in best.items()}


def recorded(config: Config) -> tuple[list[Path], np.ndarray]:
    """The files of the images, and what sites answered to them [N, sites]."""
    if not (config.recordings and config.stimuli):
        raise UserError("recordings need their images: give both --recordings FILE.npy and --stimuli FOLDER")
    files = recordings.stimuli(config.stimuli)
    return files, recordings.sites(config.recordings, len(files))


def show(config: Config, run: Run, model: Any, variables: dict) -> dict:
    files, sites = recorded(config)
    subject = subjects.given(run, model, variables, photographs=files)
    return likeness.of_sites(run, subject.apply, variables, subject.image, sites)


if __name__ == "__main__":
    launch(train, Config(), SMOKE, show)
