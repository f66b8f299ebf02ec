"""A progress bar on a terminal; a plain line every few seconds anywhere else."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

SECONDS_BETWEEN_LINES = 5.0


class Bar:
    """Shows how many of `total` steps are done. `update` is cheap: it may be called after every report."""

    def __init__(self, total: int, done: int, console: Console):
        self.total, self.console = total, console
        self._began, self._first, self._last_line = time.monotonic(), done, -SECONDS_BETWEEN_LINES
        self._bar = None
        if console.is_terminal or console.is_jupyter:
            # The text comes last, so that a narrow terminal cuts it and not the bar.
            columns = [MofNCompleteColumn(), BarColumn(bar_width=12), TimeRemainingColumn(compact=True)]
            text = TextColumn("{task.fields[text]}", table_column=Column(no_wrap=True, overflow="ellipsis"))
            self._bar = Progress(*columns, text, console=console)
            self._task = self._bar.add_task("", total=total, completed=done, text="")

    def update(self, done: int, text: str) -> None:
        """Shows that `done` steps are over; `text` has their metrics."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, text=text)
            return
        now = time.monotonic()
        if now - self._last_line >= SECONDS_BETWEEN_LINES or done == self.total:
            left = (now - self._began) * (self.total - done) / max(done - self._first, 1)
            line = f"{done}/{self.total}  {text}  {timedelta(seconds=round(left))} left"
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)
            self._last_line = now


@contextmanager
def bar(total: int, done: int, console: Console) -> Iterator[Bar]:
    """A bar of `total` steps, `done` of them over, that is shown until the block ends."""
    shown = Bar(total, done, console)
    if shown._bar is None:
        yield shown
    else:
        with shown._bar:
            yield shown
