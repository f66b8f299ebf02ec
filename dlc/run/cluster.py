"""How several processes come together for one run, through `jax.distributed`, and how they end together.

    with together(place("0/2@10.0.0.1:1234"), say, last):    # JAX then offers the devices of all processes
        ...

Every process says once a second that it lives. When one ends early, however it ends, all others do.
"""

import atexit
import contextlib
import ctypes
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, NamedTuple, NoReturn

import jax

# JAX has no public name for where process 0 can be reached.
from jax._src.distributed import global_state as _joined

from dlc import hosts
from dlc.errors import UserError

DIED = 6  # the exit code if another process has died
SILENT = 30  # seconds without a sign of life after which a process counts as dead
WAIT = 300  # seconds for which a process waits for the others to come
LEAVING = 5  # seconds for which the lead waits for the others to leave
ENDING = (signal.SIGINT, signal.SIGTERM)
LEFT = "left"  # the last sign of life

_ends = threading.Lock()  # held by the thread that ends this process


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
    if hosts.count() == 1:
        yield
        return
    _sign(str(time.monotonic()))
    hosts.gathered(None)  # from now on the lead knows a sign of every process
    left = threading.Event()
    watcher = threading.Thread(target=_watch, args=(say, last, left), daemon=True)
    watcher.start()
    try:
        yield
        hosts.told(None)  # the lead has written everything
    except SystemExit:  # which all reach
        hosts.told(None)
        raise
    except BaseException as error:
        _hold_back(error)
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
    """Whether the lead's process may still be running: False if a connection to it is refused."""
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
    store, now = hosts.store(), time.monotonic()
    _sign(str(now))
    for key, sign in store.key_value_dir_get("dlc/live/") if hosts.lead() else ():
        if signs.get(key, ("", 0))[0] != sign:
            signs[key] = sign, now
        elif now - signs[key][1] > SILENT and not sign.startswith(LEFT):
            _, _, process = key.rpartition("/")
            _declare(f"process {process} on {sign.split()[1]} has died: nothing was heard of it for {SILENT} s", DIED)
            store.key_value_set(key, LEFT, allow_overwrite=True)
    ends = store.key_value_dir_get("dlc/end/")
    return json.loads(ends[0][1]) if ends else None


def _sign(what: str) -> None:
    hosts.store().key_value_set(f"dlc/live/{hosts.index()}", f"{what} {socket.gethostname()}", allow_overwrite=True)


def _declare(sentence: str, code: int) -> None:
    """Tells all processes to end. The first one that says so counts."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        hosts.store().key_value_set("dlc/end/first", json.dumps([sentence, code]))


def _hold_back(error: BaseException) -> None:
    """Returns when this process is to end itself with its error, unless `_watch` ends it first with another's."""
    if _of_another(error):
        time.sleep(SILENT + 10)
    if not _ends.acquire(blocking=False):
        time.sleep(2 * SILENT)


def _tell(error: BaseException) -> None:
    """Tells the others that this process ends with an error, and lets it end without them."""
    known = hasattr(error, "exit_code") or isinstance(error, OSError)
    code, what = (getattr(error, "exit_code", 2), str(error)) if known else (1, repr(error))
    _declare(f"process {hosts.index()} on {socket.gethostname()} stopped: {what}", code)
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
        while hosts.lead() and time.monotonic() < deadline:
            if all(sign.startswith(LEFT) for _, sign in hosts.store().key_value_dir_get("dlc/live/")):
                break
            time.sleep(0.1)


def _exit(code: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        if stream:
            stream.flush()
    os._exit(code)
