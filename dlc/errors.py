"""The exceptions for what users can correct, and the sentence for a package that is not installed."""

import importlib.util


class UserError(ValueError):
    """A mistake that users can correct: an experiment prints its sentence without a traceback and exits non-zero.

    The message is one clear sentence that says what is wrong and what to do; details may follow on further lines. In
    a program of your own it is an ordinary ValueError.
    """

    exit_code = 2

    def __str__(self) -> str:
        # Names of files need not be UTF-8, and such a name could not be printed.
        return super().__str__().encode(errors="backslashreplace").decode()


class Stopped(UserError):
    """Something other than its flags stopped a run, such as a full disk or a worker that died: it can be resumed."""


def needs(extra: str, *packages: str) -> None:
    """Raises UserError, which names the extra to install, unless these packages of it are installed."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f'missing: {", ".join(missing)}; pip install "dlc[{extra}]" installs it, or make in a checkout')
