"""What experiments on image classification share: training on the device, evaluating every epoch, three figures."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

from dlc import losses, metrics, plot, train
from dlc.data import Dataset
from dlc.run import Run


def fit(
    run: Run,
    dataset: Dataset,
    model: Any,
    tx: optax.GradientTransformation,
    *,
    prepare: losses.Prepare,
    criterion: losses.Criterion = losses.cross_entropy,
    augment: Callable[[Any, Any], Any] | None = None,
    epochs: int | float,
    batch: int,
    shuffle: bool = False,
    seed: int = 0,
    seeds: int = 1,
) -> tuple[train.State, np.ndarray]:
    """Trains `model` for `epochs` epochs; returns the last state and its logits on the test set, [N, K].

    `prepare` maps uint8 images to what the model takes; the loss is the mean of `criterion`. `augment(key, batch)`
    changes what is trained on, after `prepare`. With several seeds state and logits have a leading axis [S].

    Saves the figures "curves", "confusion" and "mistakes", the last two of the first seed.
    """
    train_set, test_set = dataset.train, dataset.test
    label = test_set["label"]
    run.facts |= {"dataset": dataset.name, "source": dataset.source}
    numbers = range(seed, seed + seeds)
    steps_per_epoch = train.steps_per_epoch(len(train_set["label"]), batch)

    def init(key: Any) -> train.State:
        variables = model.init(key, prepare(train_set["image"][:1]))
        params = variables.pop("params")
        return train.init(params, tx, key, aux=variables or None)

    def augmented(key: Any, batch: Any) -> Any:
        batch = {**batch, "image": prepare(batch["image"])}
        return augment(key, batch) if augment else batch

    def forward(state: train.State, batch: Any) -> Any:
        return model.apply({"params": state.params, **(state.aux or {})}, prepare(batch["image"]))

    @jax.jit
    def measure(logits: Any) -> dict[str, Any]:
        return {"test_loss": criterion(logits, label).mean(-1), "test_error": metrics.error(logits, label)}

    state, logits = run.fit(
        init,
        train.on_device(train.make_step(losses.classify(model, criterion=criterion), tx), train_set, augmented),
        train.minibatches(len(train_set["label"]), batch, shuffle, numbers),
        steps=round(epochs * steps_per_epoch),
        keys=train.seed_keys(seed, seeds),
        predict=train.in_batches(forward, test_set, size=100),
        measure=measure,
        evaluate_every=steps_per_epoch,
        batch_axis=0 if shuffle and seeds > 1 else None,
    )
    logits = np.asarray(logits, np.float32)
    run.figure("curves", plot.curves(run.history, steps_per_epoch, seeds))
    answers(run, dataset, logits if seeds == 1 else logits[0])
    return state, logits


def answers(run: Run, dataset: Dataset, logits: np.ndarray) -> None:
    """Saves the figures "confusion" and "mistakes" of logits [N, K] on the test set."""
    image, label = dataset.test["image"], dataset.test["label"]
    counts = metrics.confusion(logits.argmax(-1), label, len(dataset.classes))
    run.figure("confusion", plot.confusion(np.asarray(counts), dataset.classes))
    run.figure("mistakes", plot.mistakes(image, logits, label, dataset.classes))


def first_seed(params: Any, seeds: int) -> Any:
    """The weights of the first of `seeds` runs trained at once (with one seed there is no axis to take it from)."""
    return jax.tree.map(lambda leaf: np.asarray(leaf if seeds == 1 else leaf[0]), params)
