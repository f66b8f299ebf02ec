"""The parts of a training loop: resuming, the bar, the log, evaluations, checkpoints, signals, divergence.

    with training(run, state, steps=1000) as loop:
        state = loop.state                              # the one given or, when the run is resumed, the newest saved
        for done in range(loop.done + 1, 1001):
            state, metrics = step(state, batch(done))
            loop.report(done, metrics)
            if loop.due(done, every=100):
                loop.evaluate(done, evaluate, state)    # `evaluate(state) -> numbers`
                loop.save(done, state)
    count_operations(run, step, state, batch(0), 1000)  # for the record

`fit` is this loop for steps that JAX compiles. A state is any pytree of arrays; whatever decides the next step belongs
into it, so that a resumed run equals an uninterrupted one.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from dlc import costs, hosts, process, train
from dlc.errors import UserError
from dlc.run import log, progress, record
from dlc.run.run import Run

LINES = 10_000  # of reports in a log, and as many of evaluations: a longer run logs some of them, evenly spread


class Diverged(UserError):
    """A loss or a weight is no longer finite."""

    exit_code = 4


@contextlib.contextmanager
def training(run: Run, state: Any, steps: int) -> Iterator["Loop"]:
    """The loop of a run of `steps` steps. Inside, Ctrl-C and SIGTERM wait for the next `save`, or for the end.

    Raises UserError if the run is resumed and none of its checkpoints can be read.
    """
    every = -(-steps // LINES) or 1
    done, state = _restored(run, state, every)
    run.facts["steps"] = steps
    run.facts["seconds_to_first_step"] = round(time.perf_counter() - process.STARTED, 3)
    if run.folder:
        run.log = log.Log(run.folder, run.history)
    run.trained |= done < steps
    if run.folder and run.trained:
        record.add_origin(run, done)
    run.signals.training = True
    hosts.gathered(None)  # on CPUs a sum among processes fails if one of them comes 30 seconds later
    try:
        with progress.bar(steps, done, run.console) as bar:
            yield Loop(run, state, done, steps, every, bar)
    finally:
        run.signals.training = False
    if run.checkpoints:
        run.checkpoints.wait()
    run.signals.obey()


def count_operations(run: Run, step: train.Step, state: Any, batch: Any, steps: int) -> None:
    """Adds `steps` times the operations of `step(state, batch)` to the record. They are counted after training."""
    shapes = jax.eval_shape(lambda *tree: tree, state, batch)
    run.work.append((functools.partial(costs.flops, step, *shapes), steps))


class Loop:
    """What a training loop reports to; made by `training`.

    Attributes:
        state: the state to begin with.
        done: the number of steps that led to it.
    """

    def __init__(self, run: Run, state: Any, done: int, steps: int, every: int, bar: progress.Bar):
        self.state, self.done = state, done
        self._run, self._steps, self._every, self._bar = run, steps, every, bar
        self._logged = {True: -1, False: -1}  # the step of the last line of an evaluation, and of a report
        for line in run.history:
            self._logged[log.is_evaluation(line)] = line["step"]
        self._pending: tuple[int, Any, int | float] | None = None
        self._last, self._clock, self._saved = done, time.perf_counter(), -float("inf")

    def due(self, done: int, every: int) -> bool:
        """Whether to evaluate and save now: every `every` steps, after the last one, and when a signal came."""
        return done % every == 0 or done == self._steps or self._run.signals.agree() is not None

    def report(self, done: int, metrics: train.Metrics, examples: int | float = 0) -> None:
        """Logs the means of `metrics`, those of the steps since the last report up to number `done`.

        Every metric is one number or, with a leading axis, one for each of these steps; a further axis [S] is that of
        the seeds. `examples` is how many these steps saw, for the speed. The metrics are read when the next ones come,
        while the device is already working on those.

        Raises Diverged if a metric whose name ends with "loss" is not finite, naming the step; UserError if one has a
        name that the log needs.
        """
        self._flush()
        self._pending = done, metrics, examples

    def evaluate(self, done: int, evaluate: Callable[[Any], dict[str, Any]], state: Any) -> dict[str, Any]:
        """Logs, prints and returns the numbers `evaluate(state)`; with several seeds each is an array [S].

        Of more than `LINES` evaluations only every second, third, ... one is logged and printed.
        """
        self._flush()
        if done == self._steps:
            self._run.say("evaluating ...")
        numbers = self._run.clock.timed("evaluate", evaluate, state)
        means = {name: record.summary(value) for name, value in numbers.items()}
        if means and self._write(done, means):
            self._run.say(f"step {done}  {_shown(means)}")
        self._clock = time.perf_counter()
        return numbers

    def save(self, done: int, state: Any) -> None:
        """Saves the state, unless the last time is less than `save_every` seconds ago; the last state in any case.

        Raises Interrupted, once the state is on the disk, if a signal came; Diverged if a weight is not finite (of any
        `train.State` in the state); UserError if the disk is full.
        """
        self._flush()
        run, stop = self._run, self._run.signals.agree()
        if stop or done == self._steps or hosts.told(time.perf_counter() - self._saved >= run.save_every):
            params = params_of(state)
            if params and not run.clock.compiled(_finite, params)(params):
                self._diverged(f"a weight is no longer finite after step {done}")
            if run.checkpoints:
                run.clock.timed("save", run.checkpoints.save, done, state)
            self._saved = time.perf_counter()
        if stop:
            if run.checkpoints:
                run.checkpoints.wait()
            run.signals.obey()
        self._clock = time.perf_counter()

    def _flush(self) -> None:
        if self._pending is None:
            return
        (done, metrics, examples), self._pending = self._pending, None
        values = {name: np.atleast_1d(np.asarray(value, np.float64)) for name, value in metrics.items()}
        now = time.perf_counter()
        elapsed, steps = now - self._clock, done - self._last
        self._run.clock.seconds["train"] += elapsed
        for name, value in values.items():
            if name.endswith("loss"):
                self._check_finite(name, value.reshape(len(value), -1), done)
        means = {name: record.summary(value.mean(0)) for name, value in values.items()}
        speed = {"examples_per_second": examples / elapsed} if examples else {"steps_per_second": steps / elapsed}
        self._write(done, {**speed, **means})
        ((unit, rate),) = speed.items()
        self._bar.update(done, f"{_shown(means)}  {rate:,.0f} {unit.removesuffix('_per_second')}/s")
        self._last, self._clock = done, now

    def _write(self, done: int, values: dict[str, Any]) -> bool:
        """Logs a line, unless the log would become too long: whether it does is a matter of steps only."""
        for name in ("step", "seconds"):
            if name in values:
                raise UserError(f"a metric cannot be called {name}, which the log needs: give it another name")
        kind = log.is_evaluation(values)
        last = self._logged[kind]
        if done // self._every == last // self._every and done not in (last, self._steps):
            return False
        self._logged[kind] = done
        line = {"step": done, **values, "seconds": dict(self._run.clock.seconds)}
        self._run.history.append(line)
        if self._run.log:
            self._run.log.write(line)
        return True

    def _check_finite(self, name: str, values: np.ndarray, done: int) -> None:
        if np.isfinite(values).all():
            return
        row, run = np.argwhere(~np.isfinite(values))[0]
        which = f" of run {run + 1} of {values.shape[1]}" if values.shape[1] > 1 else ""
        what = name.replace("_", " ")
        self._diverged(f"the {what} became {values[row, run]} at step {done - len(values) + 1 + row}{which}")

    def _diverged(self, what: str) -> NoReturn:
        checkpoints = self._run.checkpoints
        if checkpoints:
            checkpoints.wait()
        steps = checkpoints.steps() if checkpoints else []
        kept = f"; the checkpoint of step {steps[-1]} is the last good one" if steps else ""
        raise Diverged(f"{what}{kept}: try a lower learning rate")


def _restored(run: Run, state: Any, every: int) -> tuple[int, Any]:
    if not run.checkpoints:
        return 0, state
    run.checkpoints.open()
    if not run.resume:
        return 0, state
    done, state = run.checkpoints.restore(state, run.say) or (0, state)
    run.history = [line for line in log.read(run.checkpoints.folder.parent) if line["step"] <= done]
    logged = max((line["step"] for line in run.history), default=0)
    run.untimed = done - logged
    if run.untimed >= every:
        run.say(f"log.jsonl is damaged: steps {logged + 1} to {done} are missing from it and from the curves")
    for line in run.history:
        run.clock.seconds |= line.get("seconds", {})
    run.say(f"resuming after step {done}" if done else "no checkpoint yet: starting from the beginning")
    return done, state


def params_of(state: Any) -> list[Any]:
    """The weights of every `train.State` in a state of any kind."""
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, train.State))
    return [node.params for node in nodes if isinstance(node, train.State)]


def _finite(params: list[Any]) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]).all()


def _shown(means: dict[str, Any]) -> str:
    return "  ".join(f"{name.replace('_', ' ')} {record.show(name, value)}" for name, value in means.items())
