"""A run: one execution of an experiment, what is seen of it, and the folder it leaves behind.

    config.json      the configuration
    log.jsonl        a line per report and per evaluation
    tensorboard/     the same for TensorBoard
    checkpoints/     the newest states; `--resume` continues from there
    figures/         PNG
    result.json      claim, figures, seeds, seconds, examples/s, operations, device, versions, commit, command

An experiment is a function `main(config, run) -> figures`, where `figures` maps names to numbers (or to one number per
seed); its last two lines are `if __name__ == "__main__": launch(main, Config(), SMOKE)`.
"""

import contextlib
import functools
import signal
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from dlc import config as configs
from dlc import costs, host, log, progress, record, train
from dlc.batches import BatchesOf
from dlc.checkpoint import Checkpoints
from dlc.errors import UserError


class Diverged(UserError):
    """A loss or a weight that is not finite."""

    exit_code = 4


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM, after everything was saved. Like KeyboardInterrupt it is no Exception, and passes through."""

    def __init__(self, signum: int):
        self.signum = signum
        super().__init__(signal.Signals(signum).name)


@dataclass
class Signals:
    """What a signal handler and a run tell each other."""

    training: bool = False
    stop: int | None = None  # the signal that asked the run to stop


class Run:
    """Where an experiment reports to. `Run()`, without a folder, trains just the same and leaves nothing behind."""

    def __init__(
        self,
        folder: Path | None = None,
        resume: bool = False,
        console: Console | None = None,
        save_every: float = 0.0,
    ):
        self.folder, self.resume, self.save_every = folder, resume, save_every
        self.console = console or Console(quiet=True)
        self.history: list[dict[str, Any]] = []
        self.facts: dict[str, Any] = {}
        self.seconds = {"compile": 0.0, "start": 0.0, "train": 0.0, "evaluate": 0.0, "save": 0.0}
        self.missed: list[str] = []
        self.programs: dict[Any, Any] = {}
        self.parts: list[Run] = []
        self.work: list[tuple[Callable[[], float], int]] = []
        self.signals = Signals()
        self._checkpoints = Checkpoints(folder / "checkpoints") if folder else None
        self._log: log.Log | None = None

    def fit(
        self,
        init: Callable[[Any], train.State],
        step: train.Step,
        batches: BatchesOf,
        *,
        steps: int,
        keys: Any,
        predict: Callable[[train.State], Any] | None = None,
        measure: Callable[[Any], dict[str, Any]] = lambda outputs: {},
        evaluate_every: int | None = None,
        report_every: int = 100,
        batch_axis: Literal[0] | None = None,
    ) -> tuple[train.State, Any]:
        """Trains for `steps` steps; returns the last state and what `predict` made of it.

        `init(key)` gives the first state; with several `keys` [S] all runs are trained at once, and everything gains a
        leading axis [S]. The metrics of `step` must have a `loss`. `batches(first, count)` gives that many batches,
        stacked: leaves [count, B, ...], or [count, S, B, ...] with `batch_axis=0`. Every group that will come is asked
        for once before the first step, for its shapes; where it costs more to make them, give `batches` a method
        `like(first, count)` that says them, a tree of ShapeDtypeStructs, with the sharding if there is one.

        Every `evaluate_every` steps `measure(predict(state))` is reported. The state is saved then if the last time was
        `save_every` seconds ago, the first time and the last time in any case.

        Every `report_every` steps are one compiled program; what is left of them before an evaluation is another, and
        so is every other shape of batch: `batches(first, count)` may give another from one such group to the next.

        Raises Diverged at the first loss that is not finite, naming the step, and Interrupted once a signal came.
        """
        evaluate_every = evaluate_every or steps
        plan = _plan(steps, report_every, evaluate_every)
        seeds = len(keys)
        several: Callable[[Any], Any] = train.for_each_seed if seeds > 1 else lambda function: function
        keys = keys if seeds > 1 else keys[0]

        state = self.timed("start", self.compiled(init, keys, made=several), keys)

        def examples_of(batch: Any) -> int:  # of a group of steps
            count, *shape = jax.tree.leaves(batch)[0].shape
            return count * shape[seeds > 1 and batch_axis == 0] * seeds

        one = train.over_seeds(step, batch_axis) if seeds > 1 else step

        def many(step: train.Step) -> train.Step:
            return train.scanned(one)

        like = getattr(batches, "like", batches)
        run_step, examples = {}, 0
        kinds: dict[Any, tuple[Any, int]] = {}  # of batches: the shapes of one, and how many come
        for at, count in plan:  # every shape that will come, so that nothing compiles later
            batch = like(at, count)
            examples += examples_of(batch)
            if (shape := _shape(batch)) not in run_step:
                run_step[shape] = self.compiled(step, state, batch, made=many, donate=True)
            kind = tuple(dims[1:] for dims in shape)
            kinds[kind] = _one_of(batch), count + kinds.get(kind, (None, 0))[1]
        run_predict = self.compiled(predict, state, made=several) if predict else (lambda state: None)
        finite = self.compiled(_finite, state.params)

        state, first = self._restore(state)
        if self.folder:
            self._log = log.Log(self.folder, self.history, first)
        shapes = jax.eval_shape(lambda state: state, state)
        self.work += [(functools.partial(costs.flops, one, shapes, batch), count) for batch, count in kinds.values()]
        self.facts |= {
            "seeds": seeds,
            "steps": steps,
            "examples_per_step": examples // steps if examples % steps == 0 else examples / steps,
        }
        self.facts["seconds_to_first_step"] = round(time.perf_counter() - host.STARTED, 3)

        outputs, pending, saved = None, None, -float("inf")
        self.signals.training = True
        with progress.bar(steps, first, self.console) as bar:
            clock = time.perf_counter()
            for at, count in plan:
                if at < first:
                    continue
                batch = batches(at, count)
                state, metrics = run_step[_shape(batch)](state, batch)
                stop, done = self.signals.stop, at + count
                # The device already works on these steps while the host reads those before them.
                if pending:
                    clock = self._report(*pending, clock, bar)
                pending = (at + 1, metrics, examples_of(batch))
                if stop or done == steps or done % evaluate_every == 0:
                    clock = self._report(*pending, clock, bar)
                    pending = None
                    outputs = run_predict(state)
                    clock = self._evaluate(done, measure(outputs) if predict else {}, clock)
                    if stop or done == steps or clock - saved >= self.save_every:
                        if not finite(state.params):
                            self._diverged(f"a weight is no longer finite after step {done}")
                        saved = clock = self._save(done, state, clock)
                if stop:
                    self._wait()
                    raise Interrupted(stop)
        self.signals.training = False
        self._wait()
        return state, run_predict(state) if outputs is None else outputs

    def compiled(
        self,
        function: Callable[..., Any],
        *example: Any,
        made: Callable[[Any], Any] = lambda function: function,
        donate: bool = False,
    ) -> Callable[..., Any]:
        """`made(function)` as one program for the shapes of these arguments; "compile" is the time that takes.

        It is kept: asked for the same function and shapes again, also by a part that shares `programs`, it is there.
        """
        shapes = [(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in jax.tree.leaves(example)]
        key = (id(function), str(shapes), donate)
        if key not in self.programs:
            began = time.perf_counter()
            # The function is kept beside its program, so that no other can come to have its id.
            self.programs[key] = (train.compiled(made(function), *example, donate=donate), function)
            self.seconds["compile"] += time.perf_counter() - began
        return self.programs[key][0]

    def timed(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """What `function` returns, once it is there; the time it took is added to `seconds[name]`."""
        began = time.perf_counter()
        value = jax.block_until_ready(function(*arguments))
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began
        return value

    def part(self, name: str) -> "Run":
        """A run inside this one, in a folder of its own, for an experiment that trains one thing after another.

        Resumed, a part that was finished is read back from its last checkpoint, and the others go on.
        """
        folder = self.folder and self.folder / name
        if folder:
            folder.mkdir(exist_ok=True)
        part = Run(folder, self.resume, self.console, self.save_every)
        part.signals = self.signals
        self.parts.append(part)
        self.say(f"{name}:")
        return part

    def miss(self, sentence: str) -> None:
        """Says at the end that a target was not reached, in one sentence; the process then ends with 5."""
        self.missed.append(sentence)

    def figure(self, name: str, figure: Any) -> None:
        """Saves a matplotlib figure as figures/<name>.png."""
        if self.folder:
            (self.folder / "figures").mkdir(exist_ok=True)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Glyph .* missing from font")  # it draws a box, which says enough
                figure.savefig(self.folder / "figures" / f"{name}.png", bbox_inches="tight")

    def text(self, name: str, content: str) -> None:
        """Saves a text as <name>.txt, whole or not at all."""
        if self.folder:
            record.write_whole(self.folder / f"{name}.txt", content)

    def say(self, line: str) -> None:
        """One line for the person who watches."""
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def flops(self) -> float | None:
        """Operations of the training of this run and of all parts; None where nothing was trained."""
        try:
            own = [count() * steps for count, steps in self.work]
        except Exception:  # whatever it is, it is no reason to lose a result
            return None
        return sum(own + [part.flops() or 0.0 for part in self.parts]) or None

    def finish(self, name: str, claim: str, config: Any, figures: dict[str, Any], command: str) -> dict[str, Any]:
        """Writes result.json, whole or not at all, and returns what it holds. Seconds are those of all parts."""
        for part in self.parts:
            self.facts = {**part.facts, **self.facts}
            for key, value in part.seconds.items():
                self.seconds[key] = self.seconds.get(key, 0.0) + value
        facts = [part.facts for part in self.parts] or [self.facts]
        trained = sum(each.get("steps", 0) * each.get("examples_per_step", 0) for each in facts)
        seed = getattr(config, "seed", 0)
        result = {
            "experiment": name,
            "claim": claim,
            "figures": {key: record.summary(value) for key, value in figures.items()},
            **self.facts,
            "seeds": list(range(seed, seed + self.facts.get("seeds", 1))),
            "seconds": {key: round(value, 3) for key, value in self.seconds.items()},
            "examples_per_second": round(trained / self.seconds["train"], 1) if self.seconds["train"] else None,
            **({"missed": self.missed} if self.missed else {}),
            "train_flops": self.flops(),
            "peak_memory_bytes": record.peak_memory(),
            "config": configs.to_json(config),
            **record.origin(command),
        }
        if self.folder:
            record.write(self.folder, result)
        return result

    def close(self) -> None:
        """Closes the files, which may be closed already. What they hold stays."""
        for part in self.parts:
            part.close()
        for file in (self._log, self._checkpoints):
            if file:
                with contextlib.suppress(OSError):  # of a full disk, which was said when it was written to
                    file.close()
        self._log = self._checkpoints = None

    # What follows is between `fit` and the disk.

    def _restore(self, state: train.State) -> tuple[train.State, int]:
        if not (self.folder and self._checkpoints):
            return state, 0
        self._checkpoints.open()
        if not self.resume:
            return state, 0
        restored = self._checkpoints.restore(state, self.say)
        step = 0 if restored is None else int(np.max(np.asarray(restored.step)))
        self.history = [line for line in log.read(self.folder) if line["step"] <= step]
        for line in self.history:
            self.seconds |= line.get("seconds", {})
        self.say(f"resuming after step {step}" if step else "no checkpoint yet: starting from the beginning")
        return (state if restored is None else restored), step

    def _write(self, line: dict[str, Any]) -> None:
        line = {**line, "seconds": dict(self.seconds)}
        self.history.append(line)
        if self._log:
            self._log.write(line)

    def _report(self, first: int, metrics: train.Metrics, examples: int, clock: float, bar: progress.Bar) -> float:
        """Logs the means of the metrics of steps `first`, `first` + 1, ..., which saw so many examples in all.

        Returns the time they were there.
        """
        values = {name: np.asarray(value, np.float64) for name, value in metrics.items()}
        now = time.perf_counter()
        self.seconds["train"] += now - clock
        loss = values["loss"].reshape(len(values["loss"]), -1)
        if not np.isfinite(loss).all():
            row, run = np.argwhere(~np.isfinite(loss))[0]
            which = f" of run {run + 1} of {loss.shape[1]}" if loss.shape[1] > 1 else ""
            self._diverged(f"the loss became {loss[row, run]} at step {first + row}{which}")
        last, speed = first + len(loss) - 1, examples / (now - clock)
        means = {name: record.summary(value.mean(0)) for name, value in values.items()}
        self._write({"step": last, **means, "examples_per_second": speed})
        bar.update(last, f"{_shown(means)}  {speed:,.0f} examples/s")
        return now

    def _evaluate(self, step: int, measured: dict[str, Any], clock: float) -> float:
        means = {name: record.summary(value) for name, value in measured.items()}
        now = time.perf_counter()
        self.seconds["evaluate"] += now - clock
        if means:
            self._write({"step": step, **means})
            self.say(f"step {step}  {_shown(means)}")
        return now

    def _save(self, step: int, state: train.State, clock: float) -> float:
        if self._checkpoints:
            self._checkpoints.save(step, state)
        now = time.perf_counter()
        self.seconds["save"] += now - clock
        return now

    def _wait(self) -> None:
        if self._checkpoints:
            self._checkpoints.wait()

    def _diverged(self, what: str) -> NoReturn:
        self._wait()
        steps = self._checkpoints.steps() if self._checkpoints else []
        kept = f"; the checkpoint of step {steps[-1]} is the last good one" if steps else ""
        raise Diverged(f"{what}{kept}: try a lower learning rate")


def _plan(steps: int, report_every: int, evaluate_every: int) -> list[tuple[int, int]]:
    """(first, count) of each program: `report_every` steps, or what is left of them before an evaluation or the end."""
    plan, at = [], 0
    while at < steps:
        count = min(report_every, evaluate_every - at % evaluate_every, steps - at)
        plan.append((at, count))
        at += count
    return plan


def _one_of(batches: Any) -> Any:
    """The shapes of one batch of a group."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), batches)


def _shape(batch: Any) -> tuple[tuple[int, ...], ...]:
    return tuple(leaf.shape for leaf in jax.tree.leaves(batch))


def _finite(params: Any) -> Any:
    checks = (jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    return jnp.stack(list(checks)).all()


def _shown(means: dict[str, Any]) -> str:
    return "  ".join(f"{name.replace('_', ' ')} {record.show(name, value)}" for name, value in means.items())
