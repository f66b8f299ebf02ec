"""A run: one execution of an experiment. It leaves a folder behind:

    config.json          the configuration
    log.jsonl            a line for every report and every evaluation
    origins.json         where, and with which versions and commit, each process trained it
    events.out.*         the same, and the figures, for TensorBoard
    checkpoints/         the newest states; `--resume` continues from there
    model.json           the model, written before training
    weights.safetensors  the model and its weights; `dlc.weights.load` and `--weights` read them
    figures/             PNG, and GIF of what moves
    result.json          claim, figures, seeds, seconds, examples/s, operations, device, versions, commit, command

`.lock` is held by the process that writes the folder.
"""

import contextlib
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image
from rich.console import Console

from dlc import files, hosts
from dlc.errors import printable
from dlc.run import notebook
from dlc.run.clock import Clock, Tracing
from dlc.run.log import Log
from dlc.run.signals import Signals
from dlc.weights import artifact
from dlc.weights.checkpoint import Checkpoints


class Run:
    """Where an experiment reports to. `Run()`, without a folder, works just the same and leaves nothing behind.

    In a notebook it shows its bar and its figures.

    Attributes:
        folder: where files are written, made if it is not there, or None; of several processes, only the lead has it.
        resume: whether training continues from the folder's checkpoints.
        save_every: seconds of training between checkpoints, at least.
        init_from: a file or run whose weights training starts from, or None.
        mesh: the devices among which states and batches are spread, or None for only the first device.
        plan: whether `fit` says what it would do, and how much memory that takes, instead of training.
        weights: the folder or file that holds the weights that are shown.
        history: the lines of the log.
        facts: what the record says besides its figures, such as the data set.
        missed: sentences about targets that were not reached.
        figures: the matplotlib figures, by name.
        clock: seconds by what they were spent on.
        file: that of the experiment, whose commit the record names; by default this checkout's.
        trained: whether this process has trained, which a run that was resumed after its end has not.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        resume: bool = False,
        console: Console | None = None,
        save_every: int | float = 0.0,
        init_from: Path | None = None,
        mesh: jax.sharding.Mesh | None = None,
        plan: bool = False,
    ):
        folder = Path(folder) if folder else None
        if folder and hosts.lead():
            folder.mkdir(parents=True, exist_ok=True)
        self.checkpoints = Checkpoints(folder / "checkpoints") if folder else None
        self._place, folder = folder, folder if hosts.lead() else None
        self.folder, self.resume, self.save_every, self.init_from = folder, resume, save_every, init_from
        self.mesh, self.plan = mesh, plan
        self.console = console or notebook.console()
        self.weights = folder
        self.history: list[dict[str, Any]] = []
        self.facts: dict[str, Any] = {}
        self.missed: list[str] = []
        self.clock = Tracing() if plan else Clock(self.doing)
        self._told: set[str] = set()
        self.network = ""  # the name of the model's class
        self.axes: Any = None  # the logical axes of its weights, which `dlc.sharding` cuts
        self.file: Path | None = None
        self.trained = False
        self.untimed = 0  # steps whose lines in the log were lost
        self.parts: list[Run] = []
        self.figures: dict[str, Any] = {}
        self.work: list[tuple[Callable[[], float], int]] = []  # operations of one step, and how many steps
        self.signals = Signals()
        self.log: Log | None = None

    def __repr__(self) -> str:
        return notebook.line(self)

    def _repr_html_(self) -> str:
        return notebook.html(self)

    def say(self, line: str) -> None:
        """Prints one line for the person who watches."""
        self.console.print(printable(line), highlight=False, markup=False, soft_wrap=True)

    def doing(self, what: str) -> None:
        """Prints what takes time now, each once, unless the bar of training is shown."""
        if what not in self._told and not self.signals.training:
            self.say(f"{what} ...")
            self._told.add(what)

    def figure(self, name: str, figure: Any) -> None:
        """Keeps a matplotlib figure, saves it as figures/<name>.png, and shows it if this is a notebook."""
        self.figures[name] = figure
        notebook.show(figure)
        if self.folder:
            self.doing("drawing figures")
            (self.folder / "figures").mkdir(exist_ok=True)
            png = io.BytesIO()
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a box is drawn, which says enough
                figure.savefig(png, format="png", bbox_inches="tight")
            files.write_whole(self.folder / "figures" / f"{name}.png", png.getvalue())
            if self.log:
                self.log.figure(name, png.getvalue(), self.history[-1]["step"] if self.history else 0)

    def animation(self, name: str, frames: np.ndarray, seconds: int | float) -> None:
        """Saves frames [T, H, W, 3] (uint8) as figures/<name>.gif, which plays for `seconds`, over and over.

        All frames share 64 colours, without dithering, which keeps large areas of one colour small in the file.
        Browsers slow down what changes more than 50 times a second: ValueError.
        """
        ends = np.rint(np.linspace(0, 100 * seconds, len(frames) + 1)).astype(int)  # a GIF counts hundredths
        lasts = np.diff(ends)
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or min(lasts, default=0) < 2:
            raise ValueError(f"an animation takes uint8 frames [T, H, W, 3], at most 50 a second, not {frames.shape}")
        if self.folder:
            self.doing("drawing figures")
            (self.folder / "figures").mkdir(exist_ok=True)
            colours = Image.fromarray(frames.reshape(-1, *frames.shape[2:])).quantize(64, dither=Image.Dither.NONE)
            first, *rest = [Image.fromarray(f).quantize(palette=colours, dither=Image.Dither.NONE) for f in frames]
            gif, times = io.BytesIO(), [10 * int(t) for t in lasts]
            first.save(gif, format="gif", save_all=True, append_images=rest, duration=times, loop=0)
            files.write_whole(self.folder / "figures" / f"{name}.gif", gif.getvalue())

    def text(self, name: str, content: str) -> None:
        """Saves a text as <name>.txt."""
        if self.folder:
            files.write_whole(self.folder / f"{name}.txt", content)

    def keep(self, model: Any, variables: Any = None) -> None:
        """Saves the model and, once it is trained, its variables, so that `dlc.weights.load` can read both.

        Call it without variables before training: the weights of a run that was killed are then read from its newest
        checkpoint. If several seeds are trained at once, give those of the first.
        """
        self.network, self.axes = type(model).__name__, getattr(model, "axes", None)
        if self.folder and variables is None:
            artifact.write_model(self.folder, model)
        elif self.folder:
            self.doing("saving the weights")
            artifact.save(self.folder, model, variables)

    def part(self, name: str) -> "Run":
        """A run inside this one, with a folder of its own, for an experiment that trains several things in turn.

        When the run is resumed, finished parts are read back from their last checkpoints and the others continue.
        """
        folder = self._place and self._place / name
        part = Run(folder, self.resume, self.console, self.save_every, self.init_from, self.mesh, self.plan)
        part.signals, part.file = self.signals, self.file
        self.parts.append(part)
        self.say(f"{name}:")
        return part

    def miss(self, sentence: str) -> None:
        """Records in one sentence that a target was not reached. The process then exits with 5."""
        self.missed.append(sentence)

    def close(self) -> None:
        """Closes the files, if they are open. Their content stays."""
        for part in self.parts:
            part.close()
        for file in (self.log, self.checkpoints):
            if file:
                with contextlib.suppress(OSError):  # a full disk was already reported when it was written to
                    file.close()
        self.log = self.checkpoints = None
