"""The exceptions for what users can correct, and the sentence for a package that is not installed."""

import importlib.util
import re

# What a terminal obeys: control characters, but not the end of a line and the tabulator, and changes of direction
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class UserError(ValueError):
    """A mistake that users can correct: an experiment prints its sentence without a traceback and exits non-zero.

    The message is one clear sentence that says what is wrong and what to do; details may follow on further lines. In
    a program of your own it is an ordinary ValueError.
    """

    exit_code = 2

    def __str__(self) -> str:
        return printable(super().__str__())


class Stopped(UserError):
    """Something other than its flags stopped a run, such as a full disk or a worker that died: it can be resumed."""


def printable(text: str) -> str:
    """The text with escapes for what is not UTF-8, as names of files need not be, and what a terminal would obey."""
    return CONTROL.sub(lambda found: ascii(found[0])[1:-1], text.encode(errors="backslashreplace").decode())


def needs(extra: str, *packages: str) -> None:
    """Raises UserError, which names the extra to install, unless these packages of it are installed."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f'missing: {", ".join(missing)}; pip install "dlc[{extra}]" installs it, or make in a checkout')
