"""Several processes, most often one on each host, that train one run together through `jax.distributed`.

    with together(place, say, last):       # JAX then offers the devices of all processes
        folder = Path(told(str(folder)))   # the choice of process 0, the lead, on every process

All processes run the same program on arrays that lie on the devices of all. Only the lead writes, apart from the
checkpoints. Whatever could differ between processes, such as a clock, a signal or the name of a new folder, is decided
by the lead and told to the others through the key-value store of JAX's coordination service, which the lead's process
runs. Every process says once a second that it lives. When one ends early, however it ends, all others do.

Without `together` a process is alone: it is the lead, and what it is told is what it said.
"""

import atexit
import contextlib
import ctypes
import itertools
import json
import os
import re
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax

# JAX has no public name for its key-value store, or for the number of processes before the devices are known.
from jax._src.distributed import global_state as _joined

from dlc.errors import UserError

DIED = 6  # the exit code if another process has died
SILENT = 30  # seconds without a sign of life after which a process counts as dead
WAIT = 300  # seconds for which a process waits for the others to come
LEAVING = 5  # seconds for which the lead waits for the others to leave
MANY = 100
LEFT = "left"  # the last sign of life
LATE = 30  # seconds after which a new file is seen on every host, at most
ENDING = (signal.SIGINT, signal.SIGTERM)

_ends = threading.Lock()  # held by the thread that ends this process
_tellings, _gatherings = itertools.count(), itertools.count()  # of `told` and `gathered`, the same on all processes


class Place(NamedTuple):
    """A process among several."""

    process: int | None  # which of them, from 0
    processes: int | None  # how many there are
    coordinator: str | None  # where the others reach process 0, as HOST:PORT


def place(text: str) -> Place:
    """The place that a text such as "0/2@10.0.0.1:1234" says, or "auto", if JAX can find it.

    Raises UserError if the text has another form.
    """
    found = re.fullmatch(r"(\d{1,6})/([1-9]\d{0,5})@((?:\[[0-9a-fA-F:.]+\]|[^\s:@\[\]]+):[1-9]\d{0,4})", text)
    if text != "auto" and not (found and int(found[1]) < int(found[2])):
        raise UserError(
            'several processes are written as "0/2@HOST:PORT", for the first of two with the address of the first, or '
            f'as "auto" where Slurm, Open MPI, Kubernetes or a TPU pod started them, not as "{text}"'
        )
    return Place(int(found[1]), int(found[2]), found[3]) if found else Place(None, None, None)


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
            _store().key_value_delete(f"dlc/told/{number // MANY - 1}/")
    key = f"dlc/told/{number // MANY}/{number}"
    if lead():
        _store().key_value_set(key, json.dumps(value))
    return _heard(key)


def gathered(value: Any) -> list[Any]:
    """The values of all processes, on every process, as JSON gives them back. All call this in the same order."""
    if count() == 1:
        return [value]
    number = next(_gatherings)
    _store().key_value_set(f"dlc/all/{number}/{index()}", json.dumps(value))
    values = [_heard(f"dlc/all/{number}/{i}") for i in range(count())]
    if lead():
        _store().key_value_delete(f"dlc/all/{number - 1}/")  # all have heard that one
    return values


def agreed(stop: int | None) -> int | None:
    """The signal by which all processes stop now, or None. `stop` is the one that this process got, if any."""
    if count() == 1:
        return stop
    if stop and not lead():
        _store().key_value_set(f"dlc/stop/{index()}", str(stop), allow_overwrite=True)
    if lead() and not stop:
        stop = next((int(word) for _, word in _store().key_value_dir_get("dlc/stop/")), None)
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


@contextlib.contextmanager
def together(found: Place | None, say: Callable[[str], None], last: Callable[[], None]) -> Iterator[None]:
    """Inside, this process works with the others, if there are any.

    The block ends when the lead reaches its end. If another process ends early, this one calls `say` with a sentence
    that names it, and `last`, and exits with the code of the other, or with DIED if that has died. If this process ends
    with an error, the others are told.

    Raises UserError if the processes cannot be brought together.
    """
    if found:
        _join(found, say)
    if count() == 1:
        yield
        return
    _sign(str(time.monotonic()))
    gathered(None)  # from now on the lead knows a sign of every process
    left = threading.Event()
    watcher = threading.Thread(target=_watch, args=(say, last, left), daemon=True)
    watcher.start()
    try:
        yield
        told(None)  # the lead has written everything
    except BaseException as error:
        if isinstance(error, SystemExit):  # which all reach
            told(None)
        elif _is_ours(error):
            left.set()
            watcher.join()
            _tell(error)
        raise
    finally:
        left.set()
        watcher.join()


def _join(found: Place, say: Callable[[str], None]) -> None:
    """Lets JAX find the other processes."""
    where = f" at {found.coordinator}" if found.coordinator else ""

    def too_late() -> None:
        say(
            f"error: not all processes came within {WAIT} s: start all of them, with the same flags, and see that they "
            f"can reach process 0{where}"
        )
        os._exit(UserError.exit_code)

    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM away from `dlc.run.signals`
    _abort_later()
    before = {signum: signal.signal(signum, signal.SIG_DFL) for signum in ENDING}  # Python would not run its handlers
    timer = threading.Timer(WAIT, too_late)
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            coordinator_address=found.coordinator,
            num_processes=found.processes,
            process_id=found.process,
            initialization_timeout=WAIT + 60,  # when it is over, JAX aborts
            heartbeat_timeout_seconds=2 * SILENT,
        )
    except Exception as error:
        why = str(error).splitlines()[0]
        if "RPC server" in why:
            raise UserError(f"process 0 cannot listen{where}: choose another port") from None
        if "should be defined" in why or "must be defined" in why:
            raise UserError(
                "--cluster auto finds no Slurm, Open MPI, Kubernetes or TPU pod around this process: "
                "give --cluster I/N@HOST:PORT"
            ) from None
        raise UserError(f"JAX cannot bring the processes together{where}: {why}") from error
    finally:
        timer.cancel()
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _abort_later() -> None:
    """When the lead dies, a thread of XLA's aborts the others at once. Now that thread first sleeps for six seconds.

    SIGABRT is 6, the handler of a signal gets its number, and sleep(3) may be a handler. Meanwhile `_watch` says what
    has happened, and ends the process. JAX takes no function to call instead: its `missed_heartbeat_callback` fails.
    """
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))


def _watch(say: Callable[[str], None], last: Callable[[], None], left: threading.Event) -> None:
    """Says once a second that this process lives. Ends it if another has ended."""
    signs: dict[str, tuple[str, float]] = {}
    with ThreadPoolExecutor(1) as calls:  # a call to a host that has vanished never returns
        while not left.wait(1):
            call, began = calls.submit(_live, signs), time.monotonic()
            while not wait([call], 1).done and time.monotonic() - began < SILENT and _listens():
                pass
            try:
                end, reachable = call.result(0), True
            except Exception:
                reachable = False
                end = ["process 0, on which the others depend, has died or cannot be reached", DIED]
            if left.is_set() or (end and not _ends.acquire(blocking=False)):
                return
            if end:
                say(f"error: {end[0]}")
                last()
                if reachable:
                    _farewell()
                _exit(end[1])


def _listens() -> bool:
    """Whether the lead's process may still be there: its host does not say that nobody listens."""
    host, _, port = str(_joined.coordinator_address).rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), 1).close()
    except TimeoutError:
        return True
    except OSError:
        return False
    return True


def _live(signs: dict[str, tuple[str, float]]) -> list[Any] | None:
    """Gives a sign of life. Returns [sentence, exit code] if a process has ended early.

    The lead finds out which process has died: it keeps the last of the `signs` of each, and when that came.
    """
    store, now = _store(), time.monotonic()
    _sign(str(now))
    for key, sign in store.key_value_dir_get("dlc/live/") if lead() else ():
        if signs.get(key, ("", 0))[0] != sign:
            signs[key] = sign, now
        elif now - signs[key][1] > SILENT and not sign.startswith(LEFT):
            _, _, process = key.rpartition("/")
            _declare(f"process {process} on {sign.split()[1]} has died: nothing was heard of it for {SILENT} s", DIED)
            store.key_value_set(key, LEFT, allow_overwrite=True)
    ends = store.key_value_dir_get("dlc/end/")
    return json.loads(ends[0][1]) if ends else None


def _store() -> Any:
    return _joined.client


def _sign(what: str) -> None:
    _store().key_value_set(f"dlc/live/{index()}", f"{what} {socket.gethostname()}", allow_overwrite=True)


def _declare(sentence: str, code: int) -> None:
    """Tells all processes to end. The first one that says so counts."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        _store().key_value_set("dlc/end/first", json.dumps([sentence, code]))


def _is_ours(error: BaseException) -> bool:
    """True when this process is to end itself with its error; otherwise `_watch` ends it first."""
    if _of_another(error):
        time.sleep(SILENT + 10)
    if not _ends.acquire(blocking=False):
        time.sleep(2 * SILENT)
    return True


def _tell(error: BaseException) -> None:
    """Tells the others that this process ends with an error, and lets it end without them."""
    known = hasattr(error, "exit_code") or isinstance(error, OSError)
    code, what = (getattr(error, "exit_code", 2), str(error)) if known else (1, repr(error))
    _declare(f"process {index()} on {socket.gethostname()} stopped: {what}", code)
    _farewell()
    atexit.register(_exit, code)  # before JAX waits for the others


def _of_another(error: BaseException | None) -> bool:
    """Whether an error may follow from the end of another process: a collective, or Orbax, failed."""
    while error is not None:
        if isinstance(error, jax.errors.JaxRuntimeError) or type(error) is ValueError:
            return True
        error = error.__cause__
    return False


def _farewell() -> None:
    """Says that this process ends. The lead does so last: XLA aborts the processes that are there without it."""
    deadline = time.monotonic() + LEAVING
    with contextlib.suppress(Exception):
        _sign(LEFT)
        while lead() and time.monotonic() < deadline:
            if all(sign.startswith(LEFT) for _, sign in _store().key_value_dir_get("dlc/live/")):
                break
            time.sleep(0.1)


def _exit(code: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        if stream:
            stream.flush()
    os._exit(code)


def _heard(key: str) -> Any:
    """The value of a key, as soon as it has one. If that never comes, `_watch` ends this process."""
    while True:
        try:
            return json.loads(_store().blocking_key_value_get(key, 1000))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise


def _content(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None
