"""A run: one execution of an experiment, what is seen of it, and the folder it leaves behind.

    config.json      the configuration
    log.jsonl        a line per report and per evaluation
    tensorboard/     the same for TensorBoard
    checkpoints/     the newest states; `--resume` continues from there
    figures/         PNG
    result.json      claim, figures, seeds, seconds, examples/s, device, versions, commit, command

An experiment is a function `main(config, run) -> figures`, where `figures` maps names to numbers (or to one number per
seed); its last two lines are `if __name__ == "__main__": launch(main, Config(), SMOKE)`.
"""

import contextlib
import errno
import inspect
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from jax.tree_util import Partial
from rich.console import Console

from dlc import config as configs
from dlc import progress, record, train
from dlc.checkpoint import Checkpoints, Unwritten
from dlc.errors import UserError

UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR}


class Diverged(UserError):
    """A loss or a weight that is not finite."""

    exit_code = 4


class Interrupted(Exception):
    """Ctrl-C or SIGTERM, after everything was saved."""

    def __init__(self, signum: int):
        self.signum = signum
        super().__init__(signal.Signals(signum).name)


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
        self.seconds = {"compile": 0.0, "train": 0.0, "evaluate": 0.0}
        self.stop: int | None = None  # the signal that asked the run to stop
        self.training = False
        self._checkpoints = Checkpoints(folder / "checkpoints") if folder else None
        self._log: Any = None
        self._tensorboard: Any = None

    def fit(
        self,
        init: Callable[[Any], train.State],
        step: train.Step,
        batches: train.BatchesOf,
        *,
        steps: int,
        keys: Any,
        predict: Callable[[train.State], Any] | None = None,
        measure: Callable[[Any], dict[str, Any]] = lambda outputs: {},
        evaluate_every: int | None = None,
        report_every: int = 100,
        batch_axis: int | None = None,
    ) -> tuple[train.State, Any]:
        """Trains for `steps` steps; returns the last state and what `predict` made of it.

        `init(key)` gives the first state; with several `keys` [S] all runs are trained at once, and everything gains a
        leading axis [S]. `batches(first, count)` gives that many batches, stacked (with `batch_axis=0`, batches of
        each seed's own). Every `evaluate_every` steps `measure(predict(state))` is reported; the state is saved then
        if the last time was `save_every` seconds ago.

        Reports come from `report_every` steps that are one compiled program, or from the greatest number below it that
        divides the whole, so that only one program is ever compiled.

        Raises Diverged at the first loss that is not finite, naming the step, and Interrupted once a signal came.
        """
        evaluate_every = evaluate_every or steps
        chunk = next(n for n in range(min(report_every, steps), 0, -1) if steps % n == 0 == evaluate_every % n)
        seeds = len(keys)
        if seeds > 1:
            init, step = jax.vmap(init), train.over_seeds(step, batch_axis)
            predict = predict and Partial(lambda predict, state: train.for_each_seed(predict)(state), predict)

        began = time.perf_counter()
        state, first = self._restore(jax.jit(init)(keys if seeds > 1 else keys[0]))
        example = batches(0, chunk)
        examples = jax.tree.leaves(example)[0].shape[1 + (seeds > 1 and batch_axis == 0)] * seeds
        run_step = train.compiled(train.scanned(step), state, example)
        run_predict = train.compiled(predict, state, donate=False) if predict else (lambda state: None)
        self.seconds["compile"] += time.perf_counter() - began
        self.facts |= {"seeds": seeds, "steps": steps, "examples_per_step": examples}

        outputs, pending = None, None
        self._open(first)
        self.training = True
        with progress.bar(steps, first, self.console) as bar:
            clock = saved = time.perf_counter()
            for at in range(first, steps, chunk):
                state, metrics = run_step(state, batches(at, chunk))
                # The device already works on these steps while the host reads those before them.
                if pending:
                    clock = self._report(*pending, clock, examples, bar)
                pending = (at + 1, metrics)
                done = at + chunk
                if done % evaluate_every == 0 or done == steps or self.stop:
                    clock = self._report(*pending, clock, examples, bar)
                    pending = None
                    outputs = run_predict(state)
                    self._evaluate(done, measure(outputs) if predict else {})
                    if done == steps or self.stop or clock - saved >= self.save_every:
                        self._save(done, state)
                        saved = clock
                    self.seconds["evaluate"] += time.perf_counter() - clock
                    clock = time.perf_counter()
                if self.stop:
                    self._finish_saving()
                    raise Interrupted(self.stop)
        self.training = False
        self._finish_saving()
        if outputs is None:
            outputs = run_predict(state)
        return state, outputs

    def figure(self, name: str, figure: Any) -> None:
        """Saves a matplotlib figure as figures/<name>.png."""
        if self.folder:
            (self.folder / "figures").mkdir(exist_ok=True)
            figure.savefig(self.folder / "figures" / f"{name}.png", bbox_inches="tight")

    def say(self, line: str) -> None:
        """One line for the person who watches."""
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Closes the files. What they hold stays."""
        for file in (self._log, self._tensorboard, self._checkpoints):
            if file:
                with contextlib.suppress(OSError):  # of a full disk, which was said when it was written to
                    file.close()

    # What follows is between `fit` and the disk.

    def _restore(self, state: train.State) -> tuple[train.State, int]:
        if not (self.resume and self._checkpoints):
            return state, 0
        restored = self._checkpoints.restore(state, self.say) if self._checkpoints.steps() else None
        step = 0 if restored is None else int(np.max(np.asarray(restored.step)))
        self.history = [line for line in self._read_log() if line["step"] <= step]
        for line in self.history:
            self.seconds |= line.get("seconds", {})
        self.say(f"resuming after step {step}" if step else "no checkpoint yet: starting from the beginning")
        return (state if restored is None else restored), step

    def _read_log(self) -> Iterator[dict[str, Any]]:
        path = self.folder / "log.jsonl"  # type: ignore[operator]
        with contextlib.suppress(FileNotFoundError):
            for line in path.read_text().splitlines():
                try:
                    yield json.loads(line)
                except ValueError:
                    return  # the line that was being written when the run was killed

    def _open(self, step: int) -> None:
        """Opens log and TensorBoard after `step` steps, and imports what is slow to import, before the clock runs."""
        if not (self.folder and self._checkpoints):
            return
        # The log begins with what came before the checkpoint; lines from after it are about to be written again.
        fresh = self.folder / "log.jsonl.new"
        fresh.write_text("".join(json.dumps(line) + "\n" for line in self.history))
        fresh.replace(self.folder / "log.jsonl")
        self._log = open(self.folder / "log.jsonl", "a", buffering=1)  # noqa: SIM115 (closed in `close`)
        # Where PyTorch is installed tensorboardX imports it, for two seconds and for nothing: it is not to find it.
        hidden = sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
        from tensorboardX import SummaryWriter

        if hidden is None:
            del sys.modules["torch"]
        self._tensorboard = SummaryWriter(str(self.folder / "tensorboard"), purge_step=step + 1)
        self._checkpoints.open()

    def _write(self, line: dict[str, Any]) -> None:
        self.history.append(line)
        if self._log is None:
            return
        try:
            self._log.write(json.dumps(line) + "\n")
        except OSError as error:
            raise OSError(error.errno, error.strerror, self._log.name) from None  # Python does not name the file
        for name, value in line.items():
            if name not in ("step", "seconds"):
                several = isinstance(value, dict)
                self._tensorboard.add_scalar(name, value["mean"] if several else value, line["step"])

    def _report(self, first: int, metrics: train.Metrics, clock: float, examples: int, bar: progress.Bar) -> float:
        """Logs the means of the metrics of steps `first`, `first` + 1, ...; returns the time they were there."""
        values = {name: np.asarray(value, np.float64) for name, value in metrics.items()}
        now = time.perf_counter()
        self.seconds["train"] += now - clock
        loss = values["loss"].reshape(len(values["loss"]), -1)
        if not np.isfinite(loss).all():
            row, seed = np.argwhere(~np.isfinite(loss))[0]
            which = f" of seed {seed}" if loss.shape[1] > 1 else ""
            self._diverged(f"the loss became {loss[row, seed]} at step {first + row}{which}")
        count, speed = len(loss), len(loss) * examples / (now - clock)
        means = {name: record.summary(value.mean(0)) for name, value in values.items()}
        self._write({"step": first + count - 1, **means, "examples_per_second": speed, "seconds": dict(self.seconds)})
        bar.update(first + count - 1, f"{_shown(means)}  {speed:,.0f} examples/s")
        return now

    def _evaluate(self, step: int, measured: dict[str, Any]) -> None:
        if measured:
            means = {name: record.summary(value) for name, value in measured.items()}
            self._write({"step": step, **means, "seconds": dict(self.seconds)})
            self.say(f"step {step}  {_shown(means)}")

    def _save(self, step: int, state: train.State) -> None:
        for leaf in jax.tree.leaves(state.params):
            if not np.isfinite(np.asarray(leaf, np.float32)).all():
                self._diverged(f"a weight is no longer finite after step {step}")
        if self._checkpoints:
            self._checkpoints.save(step, state)

    def _diverged(self, what: str) -> NoReturn:
        self._finish_saving()
        steps = self._checkpoints.steps() if self._checkpoints else []
        kept = f"; the checkpoint of step {steps[-1]} is the last good one" if steps else ""
        raise Diverged(f"{what}{kept}: try a lower learning rate")

    def _finish_saving(self) -> None:
        if self._checkpoints:
            self._checkpoints.wait()

    def finish(self, name: str, claim: str, config: Any, figures: dict[str, Any], command: str) -> dict[str, Any]:
        """Writes result.json, whole or not at all, and returns what it holds."""
        trained = self.facts.get("steps", 0) * self.facts.get("examples_per_step", 0)
        seed = getattr(config, "seed", 0)
        result = {
            "experiment": name,
            "claim": claim,
            "figures": {key: record.summary(value) for key, value in figures.items()},
            **self.facts,
            "seeds": list(range(seed, seed + self.facts.get("seeds", 1))),
            "seconds": {key: round(value, 3) for key, value in self.seconds.items()},
            "examples_per_second": round(trained / self.seconds["train"], 1) if self.seconds["train"] else None,
            "config": configs.to_json(config),
            **record.origin(command),
        }
        if self.folder:
            record.write(self.folder, result)
        return result


def launch(main: Callable[[Any, Run], dict[str, Any]], default: Any, smoke: Any, argv: list[str] | None = None) -> None:
    """Runs an experiment from the command line and exits: 0, or non-zero with one sentence for what went wrong.

    2 a mistake in the flags, a file or the disk; 3 data that cannot be had; 4 diverged; 130 and 143 interrupted.
    """
    module = sys.modules[main.__module__]
    name = (module.__spec__.name if module.__spec__ else module.__name__).removeprefix("experiments.")
    argv = sys.argv[1:] if argv is None else argv
    console = Console(stderr=True)
    folder = None
    sys.unraisablehook = _say_no_late_futures
    try:
        config, options = configs.parse(name, *_described(module), default, smoke, argv)
        require(options.require)
        folder = options.resume or new_folder(options.out, name)
        if not options.resume:
            configs.save(folder, name, config)
        run = Run(folder, bool(options.resume), console, options.save_every)
        with _signals(run), contextlib.closing(run):
            figures = main(config, run)
            command = shlex.join(["python", "-m", f"experiments.{name}", *argv])
            result = run.finish(name, _claim(module), config, figures, command)
        _conclude(run, result)
    except Interrupted as interrupted:
        console.print(f"{interrupted}: stopped", highlight=False)
        _say_how_to_resume(console, name, folder)
        sys.exit(128 + interrupted.signum)
    except UserError as error:
        _say_error(console, str(error))
        if isinstance(error, Unwritten):
            _say_how_to_resume(console, name, folder)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        _say_error(console, f"cannot write{f' {error.filename}' if error.filename else ''}: {os.strerror(error.errno)}")
        _say_how_to_resume(console, name, folder)
        sys.exit(2)


def require(platform: str | None) -> None:
    """Raises UserError unless JAX computes on `platform`."""
    try:
        found = jax.default_backend()
    except RuntimeError as error:  # JAX_PLATFORMS names one that is not there
        raise UserError(f"JAX finds no device: {str(error).splitlines()[0]}") from None
    if platform and found != platform:
        extra = {"gpu": "cuda", "tpu": "tpu"}.get(platform)
        hint = f"on a machine that has one, pip install -e .[{extra}]" if extra else "unset JAX_PLATFORMS"
        raise UserError(f"a {platform} is required, but JAX finds only {found} here: {hint}")


def _described(module: Any) -> tuple[str]:
    """The experiment's docstring up to its first blank line: what --help shows."""
    return (inspect.cleandoc(module.__doc__ or "").split("\n\n")[0].replace("\n", " "),)


def _claim(module: Any) -> str:
    """The paragraph of the experiment's docstring that begins with "Claim:"."""
    paragraphs = inspect.cleandoc(module.__doc__ or "").split("\n\n")
    return next(" ".join(p.removeprefix("Claim:").split()) for p in paragraphs if p.startswith("Claim:"))


def new_folder(out: Path, name: str) -> Path:
    """A folder of its own for a run begun now: `out`/`name`/date-and-time."""
    (out / name).mkdir(parents=True, exist_ok=True)
    stamp = datetime.now().strftime("%Y-%m-%d-%H%M%S")
    for suffix in ("", *(f"-{n}" for n in range(2, 1000))):
        with contextlib.suppress(FileExistsError):
            (out / name / (stamp + suffix)).mkdir()
            return out / name / (stamp + suffix)
    raise UserError(f"{out / name} is full of runs begun at {stamp}; choose another folder with --out")


@contextlib.contextmanager
def _signals(run: Run) -> Iterator[None]:
    """Ctrl-C and SIGTERM stop training after the steps under way, and anything else, or a second one, at once."""

    def handle(signum: int, frame: Any) -> None:
        if run.training and not run.stop:
            run.stop = signum
        else:
            raise Interrupted(signum)

    before = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _say_no_late_futures(unraisable: Any) -> None:
    """Where one file of a checkpoint cannot be written, TensorStore's threads print a traceback for every other one."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def _say_error(console: Console, sentence: str) -> None:
    console.print(f"error: {sentence}", style="red", highlight=False, markup=False, soft_wrap=True)


def _say_how_to_resume(console: Console, name: str, folder: Path | None) -> None:
    if folder and (folder / "config.json").exists():
        line = f"continue with: python -m experiments.{name} --resume {shlex.quote(str(folder))}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _shown(means: dict[str, Any]) -> str:
    return "  ".join(f"{name.replace('_', ' ')} {record.show(name, value)}" for name, value in means.items())


def _conclude(run: Run, result: dict[str, Any]) -> None:
    rows = {key.replace("_", " "): record.show(key, value) for key, value in result["figures"].items()}
    rows["claim"] = result["claim"]
    seconds = result["seconds"]
    spent = ("train", "training"), ("evaluate", "evaluating"), ("compile", "compiling")
    rows["time"] = ", ".join(f"{seconds[key]:.1f} s {word}" for key, word in spent)
    if result["examples_per_second"]:
        rows["speed"] = f"{result['examples_per_second']:,.0f} examples/s on {result['device']['kind']}"
    rows["figures"] = f"{run.folder}/figures"
    rows["record"] = f"{run.folder}/result.json"
    width = max(map(len, rows))
    for key, value in rows.items():
        print(f"{key:{width}}  {value}")
