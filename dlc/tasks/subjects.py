"""What the experiments look at that look inside: a trained network, images, and how the two meet.

`trained` gives a network of our own. The first experiment that wants it trains it, and the others find it again in
`<data dir>/networks/`. `given` gives one whose weights the user names.
"""

import functools
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import optax

from dlc import augment, batches, data, files, weights
from dlc.data import imagenet
from dlc.data import images as photographs_of
from dlc.errors import UserError
from dlc.models.convnet import Convnet
from dlc.models.resnet_cifar import CifarResNet
from dlc.prepare import mean_and_std, mean_image, standardise
from dlc.run.run import Run
from dlc.tasks import images

Name = Literal["mnist", "cifar10", "digits", "digits32"]
# Epochs, batch and learning rate of the lecture's program, and of a ResNet of eight layers: minutes on two CPU cores.
RECIPES = {"mnist": (10, 100, 0.1), "digits": (10, 25, 0.1), "cifar10": (6, 128, 0.1), "digits32": (6, 32, 0.05)}


@dataclass(frozen=True)
class Subject:
    """A trained network, images to look at, and how the two meet.

    Attributes:
        name: that of the data set that the network has learnt, or "photographs".
        model, variables: the Flax model and its variables.
        prepare: pixels [B, H, W, C], uint8 or floats of 0 to 255, -> what the model takes; differentiable.
        image: uint8 [N, H, W, C]: the test set, or the photographs.
        label: int [N], or None for photographs.
        classes: the names of the K classes.
        train: {"image", "label"} of the training set, or None for photographs.
    """

    name: str
    model: Any
    variables: dict[str, Any]
    prepare: Any
    image: np.ndarray
    label: np.ndarray | None
    classes: tuple[str, ...]
    train: dict[str, np.ndarray] | None = None

    def apply(self, variables: Any, pixels: Any, **how: Any) -> Any:
        """Logits [B, K] of pixels [B, H, W, C]; `how` is passed on to the model's `apply`."""
        return self.model.apply(variables, self.prepare(pixels), **how)


def problem(name: Name) -> images.Task:
    """The data set and the untrained network: the lecture's for MNIST's images, ResNet-8 for those of CIFAR-10."""
    found = data.load(name)
    return images.Task(found, _network(name, len(found.classes)), _preparation(found))


def trained(run: Run, name: Name, seed: int = 0) -> Subject:
    """Our own network for a data set, trained unless an earlier run has done so. Says so if it trains, and where it is.

    Raises UserError if the data are not there, if the data directory cannot be written, or if the run was to begin with
    given weights: what all experiments find again must not depend on the flags of one.
    """
    if run.init_from:
        raise UserError("leave out --init-from: this experiment looks into a network that is trained from the start")
    task = problem(name)
    kept = data.data_dir() / "networks" / _file(task, seed)
    run.facts |= {"dataset": name, "source": task.dataset.source, "network": kept.name}
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with files.lock(kept.with_suffix(".lock"), run.say, f"waiting for another process that trains {kept.name}"):
            if not kept.is_file():
                run.say(f"the network for {name} is trained first, and kept for every later run ...")
                weights.save(kept, task.model, _trained(run.part(f"network_{seed}"), task, seed))
    except OSError as error:
        raise UserError(
            f"{kept} cannot be written: {error.strerror or error}; set DLC_DATA to another folder"
        ) from None
    run.say(f"the network is {kept.name}, of {kept.parent}")
    model, variables = weights.load(kept)
    return _of_dataset(task, model, variables)


def given(run: Run, model: Any, variables: Any, name: Name | None = None, photographs: Sequence[Path] = ()) -> Subject:
    """A network whose weights the user gave, with photographs if there are any, else with the data set `name`.

    Photographs are resized and cropped as published networks expect it. A network for a data set takes its images as
    `problem` prepares them.

    Raises UserError if the network does not classify images, or is for other images or another number of classes.
    """
    if photographs:
        rule = imagenet.Rule()
        squares = np.stack([imagenet.square(photographs_of.decode(path), rule) for path in photographs])
        run.say(f"photographs are resized and cropped to {rule.crop}x{rule.crop} pixels")
        prepare = standardise(np.asarray(rule.mean, np.float32), np.asarray(rule.std, np.float32))
        subject = Subject("photographs", model, variables, prepare, squares, None, imagenet.classes())
    elif name:
        subject = _of_dataset(problem(name), model, variables)
        run.facts |= {"dataset": name}
    else:
        raise UserError("there is nothing to look at: name the file of at least one photograph")
    kind = type(model).__name__
    try:
        logits = jax.eval_shape(subject.apply, variables, subject.image[:1])
    except Exception as error:  # of whatever kind the model raises
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{kind} cannot take the images of {subject.name}: {first}") from None
    if not isinstance(logits, jax.ShapeDtypeStruct) or logits.ndim != 2:
        raise UserError(f"{kind} does not classify images: name a network that returns logits")
    outputs = logits.shape[-1]
    if outputs != len(subject.classes):
        known = f"{subject.name} {'have' if photographs else 'has'} {len(subject.classes):,}"
        raise UserError(f"the weights are for {outputs:,} classes, but {known}: name the data set they have learnt")
    return subject


def asked(run: Run, config: Any, model: Any = None, variables: Any = None) -> Subject:
    """What the flags `dataset`, `photographs` and `seed` ask for: `given` with a model, else `trained`.

    Raises UserError for photographs without a model that knows them.
    """
    if model is not None:
        return given(run, model, variables, config.dataset, config.photographs)
    if config.photographs:
        raise UserError("our own networks know no photographs: name a network that does, with --weights")
    return trained(run, config.dataset, config.seed)


def _network(name: Name, classes: int) -> Convnet | CifarResNet:
    return Convnet(classes) if name in ("mnist", "digits") else CifarResNet((1, 1, 1), num_classes=classes)


def _preparation(found: data.Dataset) -> Any:
    pixels = found.train["image"]
    return standardise(*mean_and_std(pixels)) if pixels.shape[-1] == 1 else standardise(mean_image(pixels))


def _of_dataset(task: images.Task, model: Any, variables: Any) -> Subject:
    found = task.dataset
    test = found.test
    return Subject(found.name, model, variables, task.prepare, test["image"], test["label"], found.classes, found.train)


def _trained(run: Run, task: images.Task, seed: int) -> dict[str, Any]:
    epochs, batch, lr = RECIPES[task.dataset.name]
    if isinstance(task.model, Convnet):
        plan = images.Epochs(epochs, batch, False, seed, rate=lr)
        return images.fit(run, task, optax.sgd(lr), plan)[0]
    steps = epochs * batches.steps_per_epoch(len(task.dataset.train["label"]), batch)
    rate = optax.linear_onecycle_schedule(steps, lr, 0.2, 0.9, 10, 100)
    tx = optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(rate, momentum=0.9))
    moved = augment.of_images(functools.partial(augment.translate, pixels=4, mode="constant"))
    return images.fit(run, task, tx, images.Epochs(epochs, batch, True, seed, rate=rate), moved)[0]


def _file(task: images.Task, seed: int) -> str:
    """The name of the file of weights: another entry of RECIPES, model or number of examples has another name."""
    name = task.dataset.name
    recipe = [weights.describe(task.model), RECIPES[name], len(task.dataset.train["label"])]
    return f"{name}-{seed}-{zlib.crc32(json.dumps(recipe).encode()):08x}.safetensors"
