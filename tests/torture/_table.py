"""What the parts of the torture are told, and the rows that they answer with."""

import time
from pathlib import Path
from typing import NamedTuple

HEAD = f"{'part':12} {'what':46} {'tried':>5} {'survived':>8} {'seconds':>7}  notes"


class How(NamedTuple):
    """How often and how long a part may try, from which seed, and where it writes.

    `folder` is not there yet. `until` is a time of `time.monotonic`.
    """

    times: int
    seed: int
    folder: Path
    until: float

    def seconds(self) -> float:
        """Those that are left."""
        return max(0.0, self.until - time.monotonic())


class Row(NamedTuple):
    """How many times one kind of harm was tried, and how many times nothing was lost."""

    what: str
    tried: int
    survived: int
    seconds: float
    notes: str = ""

    def line(self, part: str) -> str:
        """The row of the table."""
        return f"{part:12} {self.what:46} {self.tried:5} {self.survived:8} {self.seconds:7.0f}  {self.notes}".rstrip()
