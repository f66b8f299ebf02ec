"""Time to accuracy: seeds trained one after another, or several at once, each against the clock.

The clock covers everything that a seed needs once its programs and its data are on the device: the first state (and
what it computes from the data), the training steps, and the final answers. Loading, compiling, saving, and the
evaluations during training are outside.

Source: the rule of the CIFAR-10 records since DAWNBench (Coleman et al. 2017), as cifar10-airbench applies it.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from dlc import losses, metrics, sharding, train
from dlc.batches import BatchesOf
from dlc.errors import UserError
from dlc.run import plot
from dlc.run.fit import Plan, fit, start
from dlc.run.run import Run
from dlc.tasks import images


class Finish(NamedTuple):
    """The result of a race: answers [S, ...] of every seed, seconds of each heat, and the runs of the heats."""

    outputs: np.ndarray
    seconds: list[float]
    runs: list[Run]

    @property
    def seeds_per_second(self) -> float:
        return len(self.outputs) / sum(self.seconds)


@dataclasses.dataclass(frozen=True)
class Contest:
    """What every seed does. The plan is that of one heat.

    `init` gives the first state, as `dlc.run.fit.start` calls it, and `batches(numbers)` the batches of the seeds with
    these numbers, as `batches.minibatches` does. `answer(state)` is computed from the last state, inside the clock.
    `measure(outputs)` is reported during training, for `outputs = predict(state)`.
    """

    init: Callable[..., train.State]
    step: train.Step
    batches: Callable[[Sequence[int]], BatchesOf]
    plan: Plan
    answer: Callable[[train.State], Any]
    predict: Callable[[train.State], Any] | None = None
    measure: Callable[[Any], dict[str, Any]] = lambda outputs: {}
    model: Any = None  # saved with the weights of the first seed of every heat


def race(run: Run, contest: Contest, seed: int = 0, seeds: int = 1, at_once: int = 1) -> Finish:
    """Trains the seeds `seed`, `seed` + 1, ..., `at_once` of them in one program, and times each such heat.

    If there are several heats, each is a part of the run: when the run is resumed, finished heats are read back. On a
    GPU or TPU a short heat that is not timed comes first.

    Raises UserError if the seeds do not divide into heats.
    """
    if seeds % at_once:
        raise UserError(f"{seeds} seeds are not a multiple of {at_once} at once: change --seeds or --at-once")
    outputs, seconds, runs = [], [], []
    for first in range(seed, seed + seeds, at_once):
        part = run.part(f"seed-{first}") if seeds > at_once else run
        part.clock.programs = run.clock.programs
        if first == seed and jax.default_backend() != "cpu" and not run.plan:
            # The libraries that a GPU loads on its first call must not be charged to any seed.
            warm = Run(console=run.console, mesh=run.mesh)
            warm.clock.programs = run.clock.programs
            short = dataclasses.replace(contest.plan, steps=contest.plan.evaluate_every or contest.plan.steps)
            _heat(warm, dataclasses.replace(contest, plan=short), first, at_once)
        found = _heat(part, contest, first, at_once)
        outputs.append(found if at_once > 1 else found[None])
        seconds.append(sum(part.clock.seconds[name] for name in ("start", "train", "answer")))
        runs.append(part)
        if part is not run:
            part.close()
    run.facts["seeds"] = seeds
    return Finish(np.concatenate(outputs), seconds, runs)


def on_test_set(task: images.Task, size: int, devices: jax.sharding.Mesh | None = None) -> dict[str, Any]:
    """The fields of a `Contest` of image classifiers: one view of the test set during training, six in the answer."""
    return {
        "answer": dataclasses.replace(task, level=2).on_test_set(size, devices),
        "predict": task.on_test_set(size, devices),
        "measure": task.measure(),
        "model": task.model,
    }


def judge(run: Run, finish: Finish, task: images.Task, target: int | float) -> dict[str, Any]:
    """Test accuracy, seconds and seeds a second of a race to `target` % whose answers are logits on the test set.

    Draws the first heat's curves and the first seed's answers; a mean accuracy below the target is a miss.
    """
    run.facts |= {"dataset": task.dataset.name, "source": task.dataset.source}
    run.history = finish.runs[0].history
    images.draw_curves(run, losses.unit(task.criterion))
    draw_seconds(run, target)
    images.draw_answers(run, task.dataset, finish.outputs[0])
    accuracy = 1 - np.asarray(metrics.error(finish.outputs, task.dataset.test["label"]))
    if (mean := 100 * accuracy.mean()) < target:
        run.miss(f"the test accuracy is {mean:.2f} %, below the target of {target} %")
    return {"test_accuracy": accuracy, "seconds": finish.seconds, "seeds_per_second": finish.seeds_per_second}


def draw_seconds(run: Run, target: int | float) -> None:
    """Saves the figure "seconds" from the log of the run, or of the run that is shown."""
    if run.history:
        run.figure("seconds", against_seconds(run.history, target))


def _heat(run: Run, contest: Contest, first: int, at_once: int) -> np.ndarray:
    """Trains the seeds from `first` on together, and returns their answers."""
    wrap = train.for_each_seed if at_once > 1 else None
    plan = dataclasses.replace(contest.plan, seeds=at_once, batch_axis=0 if at_once > 1 else None)
    batches = contest.batches(range(first, first + at_once))
    if contest.model is not None:
        run.keep(contest.model)
    state = start(run, contest.init, train.seed_keys(first, at_once), contest.model)
    evaluate = None
    if contest.predict:
        predict = run.clock.compiled(contest.predict, state, wrap=wrap)
        evaluate = lambda state: contest.measure(predict(state))  # noqa: E731
    state = fit(run, state, contest.step, batches, plan, evaluate)
    answer = run.clock.compiled(contest.answer, state, wrap=wrap)
    answers = np.asarray(run.clock.timed("answer", answer, state))
    if contest.model is not None:
        run.keep(contest.model, sharding.whole(images.first_seed(train.variables_of(state), at_once)))
    return answers


def against_seconds(history: list[dict[str, Any]], target: int | float) -> Figure:
    """Test accuracy (%) against the seconds of training it took, with a line at the accuracy `target` (%)."""
    lines = [line for line in history if "test_error" in line]
    errors = [np.mean(e["values"] if isinstance(e := line["test_error"], dict) else e) for line in lines]
    figure = plot.canvas(5.6, 3.6)
    axis = figure.subplots()
    seconds = [line["seconds"]["train"] + line["seconds"]["start"] for line in lines]
    accuracy = [100 * (1 - error) for error in errors]
    axis.plot(seconds, accuracy, color=plot.ACCENT, marker="o", markersize=3, linewidth=1.4)
    axis.axhline(target, color=plot.INK, linewidth=0.8, linestyle=":", label=f"the target, {target:g} %")
    axis.set(xlabel="seconds of training", ylabel="test accuracy (%), of one view", xlim=(0, None))
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axis.grid(alpha=0.25)
    figure.legend(frameon=False, loc="outside upper center")
    return figure
