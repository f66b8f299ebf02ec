"""The two ways in which a data set cannot be loaded."""

from dlc.errors import UserError


class DataUnavailable(UserError):
    """The data set is not on this machine and cannot be downloaded. The message lists what to put where.

    `dlc.data._published.unavailable` builds every one of them.
    """

    exit_code = 3

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason  # the cause without the name of the set, for callers that continue with another set


class DataDamaged(UserError):
    """A file differs from what was published or written. The message names the file and says what to do."""
