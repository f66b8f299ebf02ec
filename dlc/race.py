"""Time to accuracy: seeds trained one after another, or several at once, each against the clock.

Inside the clock is all that a seed needs once its programs and its data are on the device: the first state (and what it
computes from the data), the training steps, and the final answers. Loading, compiling, saving, and the evaluations on
the way are outside.

Source: the rule of the CIFAR-10 records since DAWNBench (Coleman et al. 2017) as cifar10-airbench applies it.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from dlc import train
from dlc.batches import BatchesOf
from dlc.errors import UserError
from dlc.run import Run

Batches = Callable[[Sequence[int]], BatchesOf]


class Finish(NamedTuple):
    """What a race leaves: answers [S, ...] of every seed, seconds of each heat, the history of the first heat."""

    outputs: np.ndarray
    seconds: list[float]
    history: list[dict[str, Any]]

    @property
    def seeds_per_second(self) -> float:
        return len(self.outputs) / sum(self.seconds)


def race(
    run: Run,
    init: Callable[[Any], train.State],
    step: train.Step,
    batches: Batches,
    *,
    answer: Callable[[train.State], Any],
    seed: int = 0,
    seeds: int = 1,
    at_once: int = 1,
    **options: Any,
) -> Finish:
    """Trains the seeds `seed`, `seed` + 1, ..., `at_once` of them in one program, and times each such heat.

    `batches(numbers)` gives the batches of those seeds, as `batches.minibatches` does; `answer` is what is asked of the
    last state, inside the clock; the other options are those of `Run.fit`. Where there are several heats, each is a
    part of the run: resumed, those that were finished are read back. On a GPU or TPU the first is preceded by a short
    one that nobody times.

    Raises UserError if the seeds do not divide into heats.
    """
    if seeds % at_once:
        raise UserError(f"{seeds} seeds are not a multiple of {at_once} at once: choose --seeds and --at-once so")
    outputs: list[np.ndarray] = []
    seconds: list[float] = []
    history: list[dict[str, Any]] = []
    for first in range(seed, seed + seeds, at_once):
        numbers = range(first, first + at_once)
        several = len(numbers) > 1
        part = run.part(f"seed-{first}") if seeds > at_once else run
        part.programs = run.programs
        axis: Literal[0] | None = 0 if several else None
        keys = train.seed_keys(first, len(numbers))
        if first == seed and jax.default_backend() != "cpu":
            # Libraries that a GPU loads at the first call are nobody's seconds.
            warm = Run()
            warm.programs = run.programs
            short = {**options, "steps": options.get("evaluate_every") or options["steps"]}
            warm.fit(init, step, batches(numbers), keys=keys, batch_axis=axis, **short)
        state, _ = part.fit(init, step, batches(numbers), keys=keys, batch_axis=axis, **options)
        final = part.compiled(answer, state, made=train.for_each_seed if several else lambda answer: answer)
        found = np.asarray(part.timed("answer", final, state))
        outputs.append(found if several else found[None])
        seconds.append(sum(part.seconds[name] for name in ("start", "train", "answer")))
        history = history or part.history
        if part is not run:
            part.close()
    run.facts["seeds"] = seeds
    return Finish(np.concatenate(outputs), seconds, history)
