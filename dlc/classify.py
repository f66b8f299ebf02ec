"""What experiments on image classification share: training, evaluating every epoch, figures.

`fit` trains on a data set that lies on the device, `fit_stream` on pictures that are read as they are needed.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dlc import losses, metrics, plot, sharding, train
from dlc.data import Dataset
from dlc.data.stream import Batches
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


def fit_stream(
    run: Run,
    model: Any,
    tx: optax.GradientTransformation,
    learn: Batches,
    evaluate: Callable[[Any], dict[str, Any]],
    *,
    prepare: losses.Prepare,
    augment: Callable[[Any, Any], Any],
    epochs: int,
    devices: jax.sharding.Mesh,
    seed: int = 0,
) -> Any:
    """Trains `model` for `epochs` epochs on pictures that are read as they are needed; returns its variables.

    `augment(key, images)` changes what `prepare` makes of a batch's images. After each epoch `evaluate(variables)` is
    reported. State and batches lie on `devices`. Saves the figures "curves" and "crops", some of what is trained on.
    """

    def init(key: Any) -> train.State:
        shape = learn.like(0, 1)["image"].shape[2:]
        variables = dict(model.init(key, prepare(jnp.zeros((1, *shape), jnp.uint8))))
        params = variables.pop("params")
        return sharding.kept(train.init(params, tx, key, aux=variables or None), devices)

    def augmented(key: Any, batch: Any) -> Any:
        return {**batch, "image": augment(key, prepare(batch["image"]))}

    steps_per_epoch = train.steps_per_epoch(learn.examples, learn.batch)
    step = train.augmented(train.make_step(losses.classify(model), tx), augmented)
    # About 1,024 pictures a group, 154 MB of 224 x 224 pixels; groups of one size where possible, which compile once.
    groups = -(-steps_per_epoch // max(1, 1024 // learn.batch))
    run.figure("crops", plot.sheet({"trained on": learn.one(0)["image"][:8]}))
    _, variables = run.fit(
        init,
        sharding.on_mesh(step, devices),
        learn,
        steps=epochs * steps_per_epoch,
        keys=train.seed_keys(seed),
        predict=lambda state: {"params": state.params, **(state.aux or {})},
        measure=lambda variables: {f"validation_{name}": value for name, value in evaluate(variables).items()},
        evaluate_every=steps_per_epoch,
        report_every=-(-steps_per_epoch // groups),
    )
    run.figure("curves", plot.curves(run.history, steps_per_epoch, held_out="validation"))
    return variables


def evaluation(
    run: Run, forward: Callable[[Any, Any], Any], held: Batches, classes: tuple[str, ...]
) -> Callable[[Any], dict[str, Any]]:
    """A function of a model's variables: loss, error and top-5 error over one pass of `held`, which comes in order.

    `forward(variables, images)` gives logits for uint8 images [B, H, W, 3]. Saves the figure "mistakes", those of the
    first batch.
    """

    def summed(variables: Any, batch: Any) -> Any:
        batch = jax.tree.map(lambda leaf: leaf[0], batch)
        logits, label, counts = forward(variables, batch["image"]), batch["label"], batch["counts"]
        right = {k: metrics.among_top_k(logits, label, k) for k in (1, 5)}
        each = {"loss": losses.cross_entropy(logits, label), "error": ~right[1], "top5_error": ~right[5]}
        return {name: jnp.where(counts, value, 0).sum(dtype=jnp.float32) for name, value in each.items()}, logits

    def evaluate(variables: Any) -> dict[str, Any]:
        compiled = run.compiled(summed, variables, held.like(0, 1))
        batch = held(0, 1)
        sums, logits = compiled(variables, batch)
        image, logits, label = (np.asarray(leaf) for leaf in (batch["image"][0], logits, batch["label"][0]))
        pending, shown = [sums], slice(held.examples)  # without the copies that fill up a batch
        for i in range(1, held.steps):
            pending.append(compiled(variables, held(i, 1))[0])
        run.figure("mistakes", plot.mistakes(image[shown], logits[shown].astype(np.float32), label[shown], classes))
        return {name: sum(float(sums[name]) for sums in pending) / held.examples for name in sums}

    return evaluate


def answers(run: Run, dataset: Dataset, logits: np.ndarray) -> None:
    """Saves the figures "confusion" and "mistakes" of logits [N, K] on the test set."""
    image, label = dataset.test["image"], dataset.test["label"]
    counts = metrics.confusion(logits.argmax(-1), label, len(dataset.classes))
    run.figure("confusion", plot.confusion(np.asarray(counts), dataset.classes))
    run.figure("mistakes", plot.mistakes(image, logits, label, dataset.classes))


def first_seed(params: Any, seeds: int) -> Any:
    """The weights of the first of `seeds` runs trained at once (with one seed there is no axis to take it from)."""
    return jax.tree.map(lambda leaf: np.asarray(leaf if seeds == 1 else leaf[0]), params)
