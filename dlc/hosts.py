"""What several processes of one run, most often one on each host, tell each other.

    folder = Path(told(str(folder)))   # the choice of process 0, the lead, on every process

All processes run the same program on arrays that lie on the devices of all. Only the lead writes, apart from the
checkpoints. Whatever could differ between processes, such as a clock, a signal or the name of a new folder, is decided
by the lead and told to the others through the key-value store of JAX's coordination service, which the lead's process
runs. `dlc.run.cluster` brings the processes together.

A process that is alone is the lead, and what it is told is what it said.
"""

import itertools
import json
import secrets
import time
from pathlib import Path
from typing import Any

import jax

# JAX has no public name for its key-value store, or for the number of processes before the devices are known.
from jax._src.distributed import global_state as _joined

from dlc.errors import UserError

MANY = 100
LATE = 30  # seconds after which a new file is seen on every host, at most

_tellings, _gatherings = itertools.count(), itertools.count()  # of `told` and `gathered`, the same on all processes


def store() -> Any:
    """The key-value store of JAX's coordination service."""
    return _joined.client


def count() -> int:
    """The number of processes."""
    return _joined.num_processes


def index() -> int:
    """The number of this process, from 0."""
    return _joined.process_id


def lead() -> bool:
    """Whether this process writes the log, the figures and the record: process 0 does."""
    return index() == 0


def told(value: Any) -> Any:
    """The lead's `value`, on every process, as JSON gives it back. All processes call this in the same order."""
    if count() == 1:
        return value
    number = next(_tellings)
    if number % MANY == 0:  # now and then the others have heard everything, and the lead forgets it
        gathered(None)
        if lead():
            store().key_value_delete(f"dlc/told/{number // MANY - 1}/")
    key = f"dlc/told/{number // MANY}/{number}"
    if lead():
        store().key_value_set(key, json.dumps(value))
    return _heard(key)


def gathered(value: Any) -> list[Any]:
    """The values of all processes, on every process, as JSON gives them back. All call this in the same order."""
    if count() == 1:
        return [value]
    number = next(_gatherings)
    store().key_value_set(f"dlc/all/{number}/{index()}", json.dumps(value))
    values = [_heard(f"dlc/all/{number}/{i}") for i in range(count())]
    if lead():
        store().key_value_delete(f"dlc/all/{number - 1}/")  # all have heard that one
    return values


def agreed(stop: int | None) -> int | None:
    """The signal by which all processes stop now, or None. `stop` is the one that this process got, if any."""
    if count() == 1:
        return stop
    if stop and not lead():
        store().key_value_set(f"dlc/stop/{index()}", str(stop), allow_overwrite=True)
    if lead() and not stop:
        stop = next((int(word) for _, word in store().key_value_dir_get("dlc/stop/")), None)
    return told(stop)


def same(what: str, value: Any) -> None:
    """Raises UserError unless `what` has the same `value` on all processes, as the flags must."""
    values = gathered(value)
    if other := next((i for i, one in enumerate(values) if one != values[0]), 0):
        raise UserError(f"process {other} has other {what} than process 0: start all processes with the same")


def shared(folder: Path) -> None:
    """Raises UserError unless all processes see the same `folder`."""
    if count() == 1:
        return
    mark, word = folder / ".shared", secrets.token_hex(8)
    if lead():
        mark.write_text(word)
    word, deadline = told(word), time.monotonic() + LATE
    while not (seen := _content(mark) == word) and time.monotonic() < deadline:
        time.sleep(0.1)
    blind = [i for i, sees in enumerate(gathered(seen)) if not sees]
    if lead():
        mark.unlink(missing_ok=True)
    if blind:
        raise UserError(
            f"process {blind[0]} does not see the files that process 0 writes to {folder}: "
            "choose a folder on a file system that all hosts share"
        )


def _heard(key: str) -> Any:
    """The value of a key, as soon as it has one. If that never comes, `dlc.run.cluster` ends this process."""
    while True:
        try:
            return json.loads(store().blocking_key_value_get(key, 1000))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise


def _content(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None
