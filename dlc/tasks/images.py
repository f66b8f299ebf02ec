"""What experiments on image classification share: training, evaluating after every epoch, figures.

`fit` trains on a data set that lies on the device, `fit_stream` on pictures that are read when they are needed.

Shapes: B batch, N images of the test set, K classes, S seeds.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax.sharding import NamedSharding, PartitionSpec

from dlc import batches, losses, metrics, optim, sharding, train
from dlc.data import Dataset, pictures, stream
from dlc.data.stream import Batches
from dlc.errors import UserError
from dlc.run import plot
from dlc.run.fit import Plan, start
from dlc.run.fit import fit as fit_plan
from dlc.run.flags import Bound
from dlc.run.run import Run
from dlc.views import over_crops, views

Augment = Callable[[Any, Any], Any]


def dataset(*names: str) -> Any:
    """The type of a flag for one of these data sets, or for any image classification set of TensorFlow Datasets."""
    words = f"must be one of {', '.join(names)}, or tfds:NAME, not {{}}"
    known = Bound(lambda name: name in names or name.startswith("tfds:"), words)
    return Annotated[str, known, tyro.conf.arg(metavar="|".join((*names, "tfds:NAME")))]


@dataclass(frozen=True)
class Task:
    """A data set, the model that learns it, and how they meet.

    `prepare` maps uint8 images to what the model takes. The loss is the mean of `criterion`. Logits on the test set are
    means over the test-time views of level `level` (`dlc.views.views`).
    """

    dataset: Dataset
    model: Any
    prepare: losses.Prepare
    criterion: losses.Criterion = losses.cross_entropy
    level: Literal[0, 1, 2] = 0

    def on_test_set(self, size: int = 100, devices: jax.sharding.Mesh | None = None) -> Callable[[Any], Any]:
        """`answer(state or variables) -> logits [N, K]`, from `size` images at a time, split among the devices."""

        def forward(state: Any, batch: Any) -> Any:
            variables = train.variables_of(state) if isinstance(state, train.State) else state
            image = self.prepare(batch["image"])
            if not self.level:
                return self.model.apply(variables, image)
            # Averaged in float32: bfloat16 would make ties.
            return views(lambda image: self.model.apply(variables, image).astype("float32"), image, self.level)

        if devices is None:
            return train.in_batches(forward, self.dataset.test, size)
        among = devices.size // devices.shape["model"]
        size = -(-size // among) * among
        answer = train.in_batches(sharding.shared(forward, devices), self.dataset.test, size)
        return sharding.to_all(sharding.everywhere(answer, devices), devices)

    def measure(self) -> Callable[[Any], dict[str, Any]]:
        """`logits -> {"test_loss", "test_error"}`, arrays [S] for logits [S, N, K]."""
        label = self.dataset.test["label"]

        @jax.jit
        def measure(logits: Any) -> dict[str, Any]:
            return {"test_loss": self.criterion(logits, label).mean(-1), "test_error": metrics.error(logits, label)}

        return measure


@dataclass(frozen=True)
class Epochs:
    """How long to train, in which order, how many seeds at once, and in how many parts each batch."""

    epochs: int | float
    batch: int
    shuffle: bool = False  # a new order every epoch
    seed: int = 0
    seeds: int = 1
    rate: optax.Schedule | float | None = None  # of learning, for the log
    parts: int = 1


def fit(
    run: Run, task: Task, tx: optax.GradientTransformation, epochs: Epochs, augment: Augment | None = None
) -> tuple[Any, dict[str, Any]]:
    """Trains; returns the variables of the first seed and the last evaluation.

    `augment(key, batch)` changes what is trained on, after `task.prepare`. The evaluation has `test_loss` and
    `test_error`, arrays [S] if there are several seeds. Saves the weights and the figures "curves", "confusion" and
    "mistakes", the last two of the first seed.
    """
    dataset, model, seeds = task.dataset, task.model, epochs.seeds
    train_set, examples = dataset.train, len(dataset.train["label"])
    run.facts |= {"dataset": dataset.name, "source": dataset.source}
    run.keep(model)
    tx = optim.accumulated(tx, epochs.parts)

    def init(key: Any, begun: Any = None) -> train.State:
        variables = dict(begun or model.init(key, task.prepare(train_set["image"][:1])))
        params = variables.pop("params")
        return train.init(params, tx, key, aux=variables or None)

    def augmented(key: Any, batch: Any) -> Any:
        batch = {**batch, "image": task.prepare(batch["image"])}
        return augment(key, batch) if augment else batch

    step = train.make_step(losses.classify(model, criterion=task.criterion), tx)
    step = train.on_device(step, train_set, augmented)
    numbers = range(epochs.seed, epochs.seed + seeds)
    steps_per_epoch = batches.steps_per_epoch(examples, epochs.batch)
    plan = Plan(
        round(epochs.epochs * steps_per_epoch),
        evaluate_every=steps_per_epoch,
        seeds=seeds,
        batch_axis=0 if epochs.shuffle and seeds > 1 else None,
        rate=epochs.rate,
    )
    state = start(run, init, train.seed_keys(epochs.seed, seeds), model)
    # Of the variables, so that `show` finds this program in the compilation cache if there is one seed.
    wrap = train.for_each_seed if seeds > 1 else None
    answer = run.clock.compiled(task.on_test_set(devices=run.mesh), train.variables_of(state), wrap=wrap)
    measure, logits = task.measure(), None

    def evaluate(state: train.State) -> dict[str, Any]:
        nonlocal logits
        logits = answer(train.variables_of(state))
        return measure(logits)

    state = fit_plan(
        run,
        state,
        train.in_parts(step, epochs.parts),
        batches.minibatches(examples, epochs.batch, epochs.shuffle, numbers),
        plan,
        evaluate,
    )
    variables = sharding.whole(first_seed(train.variables_of(state), seeds))
    run.keep(model, variables)
    if logits is None:  # the run was resumed after its last step
        logits = run.clock.timed("evaluate", answer, train.variables_of(state))
    draw_curves(run, losses.unit(task.criterion))
    draw_answers(run, dataset, first_seed(logits, seeds))
    return variables, measure(logits)


def learn(
    task: Task, tx: optax.GradientTransformation, epochs: Epochs, loss_fn: train.LossFn | None = None, begun: Any = None
) -> Any:
    """The variables of small networks that an experiment needs besides its subject: trained at once, in one program.

    Nothing is reported or saved. Leaves have a leading axis [S] if there are several seeds. The loss is that of the
    task unless `loss_fn` is another one. Training begins with the variables `begun`, if there are any.
    """
    examples, seeds = len(task.dataset.train["label"]), epochs.seeds
    loss_fn = loss_fn or losses.classify(task.model, task.prepare, task.criterion)

    def init(key: Any) -> train.State:
        variables = dict(begun or task.model.init(key, task.prepare(task.dataset.train["image"][:1])))
        params = variables.pop("params")
        return train.init(params, tx, key, aux=variables or None)

    keys = train.seed_keys(epochs.seed, seeds)
    state = jax.jit(jax.vmap(init) if seeds > 1 else init)(keys if seeds > 1 else keys[0])
    step = train.on_device(train.make_step(loss_fn, tx), task.dataset.train)
    step = train.over_seeds(step, 0 if epochs.shuffle else None) if seeds > 1 else step
    numbers = range(epochs.seed, epochs.seed + seeds)
    rows = batches.minibatches(examples, epochs.batch, epochs.shuffle, numbers)
    steps = round(epochs.epochs * batches.steps_per_epoch(examples, epochs.batch))
    if steps:
        state, _ = train.compiled(train.scanned(step))(state, rows(0, steps))
    return train.variables_of(state)


def show(run: Run, task: Task, variables: Any) -> dict[str, Any]:
    """The test error of one model, and the figures "confusion" and "mistakes"; "curves" if its log is there.

    Raises UserError if the model is for another number of classes.
    """
    dataset = task.dataset
    run.facts |= {"dataset": dataset.name, "source": dataset.source}
    answer = run.clock.compiled(task.on_test_set(), variables)
    logits = run.clock.timed("evaluate", answer, variables)
    _same_classes(logits, dataset)
    draw_curves(run, losses.unit(task.criterion))
    draw_answers(run, dataset, logits)
    return {"test_error": metrics.error(logits, dataset.test["label"])}


def draw_curves(run: Run, unit: str, held_out: str = "test") -> None:
    """Saves the figure "curves" from the log of the run, or of the run that is shown; `unit` is that of the loss."""
    if run.history:
        run.figure("curves", plot.curves(run.history, plot.epoch(run.history, held_out), held_out, unit))


def draw_answers(run: Run, dataset: Dataset, logits: Any) -> None:
    """Saves the figures "confusion" and "mistakes" of logits [N, K] on the test set."""
    logits = np.asarray(logits, np.float32)
    image, label = dataset.test["image"], dataset.test["label"]
    counts = metrics.confusion(logits.argmax(-1), label, len(dataset.classes))
    run.figure("confusion", plot.confusion(np.asarray(counts), dataset.classes))
    run.figure("mistakes", plot.mistakes(image, logits, label, dataset.classes))


def _same_classes(logits: Any, found: Dataset | pictures.Pictures) -> None:
    outputs, classes = logits.shape[-1], len(found.classes)
    if outputs != classes:
        raise UserError(
            f"the weights are for {outputs:,} classes, but {found.name} has {classes:,}: "
            "choose the data set they were trained on"
        )


def first_seed(variables: Any, seeds: int) -> Any:
    """The variables of the first of `seeds` runs that were trained at once."""
    return variables if seeds == 1 else jax.tree.map(lambda leaf: leaf[0], variables)


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures that are read when they are needed, the model that learns them, and how they meet.

    The model sees crops of `size` pixels, in training and in evaluations.
    """

    model: Any
    prepare: losses.Prepare
    size: int
    learn: Batches
    held: Batches
    found: pictures.Pictures
    parts: int = 1  # of a batch, one after another


@dataclass(frozen=True)
class Reading:
    """How pictures are read: `batch` at a time, split among the devices of a mesh, decoded by that many `workers`."""

    batch: int
    mesh: jax.sharding.Mesh | None = None
    workers: int = 0
    seed: int = 0
    parts: int = 1  # in which a batch is trained on, one after another


def find(run: Run, dataset: str, folder: Path | None = None) -> pictures.Pictures:
    """The pictures in the user's `folder`, or else those of the data set. Saves the names of the classes."""
    found = pictures.folder(folder) if folder else pictures.load(dataset)
    run.facts |= {"dataset": found.name, "source": found.source}
    run.text("classes", "\n".join(found.classes))
    return found


@contextlib.contextmanager
def opened(
    found: pictures.Pictures,
    model: Any,
    prepare: losses.Prepare,
    crop: stream.How,
    size: int,
    reading: Reading,
) -> Iterator[Pictures]:
    """The model, and the batches that it learns from and is validated with, of crops of `size` pixels.

    It learns from random parts of pictures, chosen as `crop` says, and is validated with the squares in the middle.
    Raises UserError if a batch cannot be split among the devices.
    """
    if reading.mesh:
        sharding.fits(reading.batch, reading.mesh)
    place = sharding.split(reading.mesh, axis=1) if reading.mesh else None
    part = functools.partial(stream.random_part, how=crop, size=size)
    middle = functools.partial(stream.centre, side=round(size * stream.WHOLE))
    common: dict[str, Any] = {"batch": reading.batch, "workers": reading.workers, "sharding": place}
    learn = Batches(found.train, part, seed=reading.seed, **common)
    held = Batches(found.validation, middle, **common)
    with contextlib.closing(learn), contextlib.closing(held):
        yield Pictures(model, prepare, size, learn, held, found, reading.parts)


def fit_stream(
    run: Run,
    task: Pictures,
    tx: optax.GradientTransformation,
    augment: Augment,
    epochs: int,
    seed: int = 0,
    rate: optax.Schedule | float | None = None,
) -> Any:
    """Trains for `epochs` epochs on pictures that are read when they are needed; returns the variables.

    `augment(key, images)` changes what `task.prepare` makes of a batch's images. After each epoch the crop in the
    middle of every validation picture is evaluated. The learning `rate` goes into the log. Saves the weights and the
    figure "crops", some of the pictures that are trained on.
    """
    model, learn, evaluate = task.model, task.learn, Validation(run, task, crops=1)
    run.keep(model)
    tx = optim.accumulated(tx, task.parts)

    def init(key: Any, begun: Any = None) -> train.State:
        some = jnp.zeros((1, task.size, task.size, 3), jnp.uint8)
        variables = dict(begun or model.init(key, task.prepare(some)))
        params = variables.pop("params")
        return train.init(params, tx, key, aux=variables or None)

    def augmented(key: Any, batch: Any) -> Any:
        return {**batch, "image": augment(key, task.prepare(batch["image"]))}

    steps_per_epoch = batches.steps_per_epoch(learn.examples, learn.batch)
    step = train.augmented(train.make_step(losses.classify(model), tx), augmented)
    # About 1,024 pictures a group, 154 MB at 224 x 224 pixels; groups of one size where possible, which compile once.
    groups = -(-steps_per_epoch // max(1, 1024 // learn.batch))
    run.figure("crops", plot.sheet({"trained on": learn.one(0)["image"][:8]}))
    state = fit_plan(
        run,
        start(run, init, train.seed_keys(seed), model),
        train.in_parts(step, task.parts),
        learn,
        Plan(epochs * steps_per_epoch, steps_per_epoch, report_every=-(-steps_per_epoch // groups), rate=rate),
        lambda state: {f"validation_{name}": value for name, value in evaluate(train.variables_of(state)).items()},
    )
    variables = train.variables_of(state)
    run.keep(model, sharding.whole(variables))
    return variables


def validate(run: Run, task: Pictures, variables: Any, crops: Literal[1, 10]) -> dict[str, float]:
    """The error and the top-5 error on the validation set, and the figure "mistakes"; "curves" if there is a log.

    Raises UserError if the model is for another number of classes.
    """
    validation = Validation(run, task, crops)
    measured = run.clock.timed("evaluate", validation, variables)
    validation.draw(variables)
    draw_curves(run, losses.unit(losses.cross_entropy), "validation")
    return {f"validation_{name}": measured[name] for name in ("error", "top5_error")}


@dataclass(frozen=True)
class Validation:
    """The evaluation of a model's variables over one pass of `task.held`, by 1 or 10 crops of each picture."""

    run: Run
    task: Pictures
    crops: Literal[1, 10]

    def __call__(self, variables: Any) -> dict[str, float]:
        """Loss, error and top-5 error."""
        held, program = self.task.held, self._program(variables)
        pending = [program(variables, held(i, 1))[0] for i in range(held.steps)]
        return {name: sum(float(sums[name]) for sums in pending) / held.examples for name in pending[0]}

    def draw(self, variables: Any) -> None:
        """Saves the figure "mistakes", those of the first batch."""
        held = self.task.held
        batch = held(0, 1)
        _, logits = self._program(variables)(variables, batch)
        found = sharding.whole((batch["image"][0], logits, batch["label"][0]))
        image, logits, label = map(np.asarray, found)
        shown = slice(held.examples)  # without the copies that fill up a batch
        figure = plot.mistakes(image[shown], logits[shown].astype(np.float32), label[shown], self.task.found.classes)
        self.run.figure("mistakes", figure)

    def _program(self, variables: Any) -> Any:
        return self.run.clock.compiled(self._summed, variables, self.task.held.like(0, 1))

    @functools.cached_property  # the clock compiles a function once
    def _summed(self) -> Callable[[Any, Any], Any]:
        """The sums over one batch, and its logits."""
        task, crops = self.task, self.crops

        def summed(variables: Any, batch: Any) -> Any:
            batch = jax.tree.map(lambda leaf: leaf[0], batch)
            apply = lambda crop: task.model.apply(variables, task.prepare(crop))  # noqa: E731
            logits, label, counts = over_crops(apply, batch["image"], task.size, crops), batch["label"], batch["counts"]
            _same_classes(logits, task.found)
            right = {k: metrics.among_top_k(logits, label, k) for k in (1, 5)}
            each = {"loss": losses.cross_entropy(logits, label), "error": ~right[1], "top5_error": ~right[5]}
            sums = {name: jnp.where(counts, value, 0).sum(dtype=jnp.float32) for name, value in each.items()}
            if self.run.mesh is None:
                return sums, logits
            return jax.lax.with_sharding_constraint((sums, logits), NamedSharding(self.run.mesh, PartitionSpec()))

        return summed
