"""The one exception for mistakes that a user can mend."""


class UserError(ValueError):
    """A mistake the user can mend: an experiment shows its sentence alone, without a traceback, and exits non-zero.

    The message is one clear sentence that says what is wrong and what to do; details may follow on further lines. In
    a program of your own it is an ordinary ValueError.
    """

    exit_code = 2
