"""Disks, folders, locks and clocks that fail at random moments.

The run has to end with one sentence and a status that is not 0, or as if nothing had happened; when the disk is there
again, it has to go on, and become the run that nobody disturbed.
"""

import contextlib
import ctypes
import errno
import os
import re
import resource
import shutil
import subprocess
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from dlc.run import launch, record
from tests.torture import _programs
from tests.torture._cases import LOST, Try, cases, each, logged, shares
from tests.torture._programs import Program
from tests.torture._table import How, Row
from tests.torture.kills import kill


def rows(how: How) -> Iterator[Row]:
    """A row for each kind of failure; each is tried on runs of all kinds."""
    full = {"a full disk (tmpfs)": full_disk} if can_mount() else {}
    harms = {
        **full,
        "a limit of the size of files": limited_files,
        "a folder that becomes read-only": read_only,
        "a folder that vanishes": vanished,
        "a clock that jumps": jumping_clock,
        "a file system without locks": no_locks,
    }
    for i, ((what, harm), until) in enumerate(zip(harms.items(), shares(how.seconds(), len(harms)), strict=True)):
        yield each(what, harm, cases(how), how.folder / f"{i}", (how.seed, i), (how.times, until))


def full_disk(one: Try) -> list[str]:
    """A disk of random size, which may be just large enough; then the folder is copied to a larger one."""
    disk = one.out.with_suffix(".disk")
    disk.mkdir(parents=True)
    kilobytes = int(one.rng.uniform(4, 500))
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "torture", disk], check=True)
    try:
        program = one._replace(out=disk).start()
        notes = refused(program, program.end(), disk)
        shutil.copytree(disk, one.out)
    finally:
        subprocess.run(["umount", disk], check=True)
        disk.rmdir()
    return notes and [*notes, *begun(one)]


def can_mount() -> bool:
    """Whether this process may mount a file system."""
    return hasattr(os, "geteuid") and os.geteuid() == 0 and subprocess.run(["unshare", "-m", "true"]).returncode == 0


def limited_files(one: Try) -> list[str]:
    """No file may become larger than a random size: the system answers as on a full disk."""
    size = int(10 ** one.rng.uniform(2.5, 5))
    program = one.start(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)))
    notes = refused(program, program.end(), one.out)
    return notes and [*notes, *begun(one)]


def read_only(one: Try) -> list[str]:
    """Nothing in the run's folder can be written any more."""
    program = one.start(give_up_rights)
    program.wait(one.moment())
    run = _programs.run_in(one.out)
    assert run
    paths = [run, *run.rglob("*")]
    for path in paths:
        change_mode(path, lambda mode: mode & ~0o222)
    notes = refused(program, program.end(), one.out)
    for path in paths:
        change_mode(path, lambda mode: mode | 0o200)
    return notes


def vanished(one: Try) -> list[str]:
    """The run's folder is gone, as a disk that was taken out, and comes back when the run has ended."""
    program = one.start()
    program.wait(one.moment())
    run = _programs.run_in(one.out)
    assert run
    away = run.rename(run.with_name("away"))
    code = program.end()
    notes = refused(program, code, run.parents[1])
    if run.exists():
        left = sorted(str(path.relative_to(run)) for path in run.rglob("*"))
        notes.append(f"made anew, with {left[0] if left else 'nothing'}")
        shutil.rmtree(run)
    away.rename(run)
    return notes


def jumping_clock(one: Try) -> list[str]:
    """The time of day is up to a day off, by another amount every time somebody looks; then the run is killed."""
    seed = int(one.rng.integers(2**32))
    notes = kill(one, one.start(lambda: jump(seed)), one.moment())
    if notes:
        program = one.resume(lambda: jump(seed + 1))
        notes += kill(one, program, one.moment())
    return notes


def jump(seed: int) -> None:
    """Makes the clocks of this process jump. `time.monotonic` and `time.perf_counter` do not."""
    rng, now, real = np.random.default_rng(seed), time.time, datetime

    class Jumping(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return real.now(tz) + timedelta(seconds=float(rng.uniform(-86400, 86400)))

    time.time = lambda: now() + float(rng.uniform(-86400, 86400))
    time.time_ns = lambda: int(1e9 * time.time())
    launch.datetime = record.datetime = Jumping  # type: ignore[attr-defined]


def no_locks(one: Try) -> list[str]:
    """Every lock is refused, as NFS without its daemon does; the run is killed, and resumed so, too."""
    number = int(one.rng.choice([errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP]))
    notes = kill(one, one.start(lambda: refuse_locks(number)), one.moment())
    if notes:
        program = one.resume(lambda: refuse_locks(number))
        notes += kill(one, program, one.moment())
        if "on a file system without locks" not in program.said():
            notes.append(f"{LOST}: nobody said that there are no locks, see {one.told}")
    return notes


def refuse_locks(number: int) -> None:
    """Makes flock fail in this process."""
    import fcntl

    def flock(*arguments: Any) -> None:
        raise OSError(number, os.strerror(number))

    fcntl.flock = fcntl.lockf = flock


def give_up_rights() -> None:
    """Makes root a user for whom modes of files count, as they do for all others: capabilities of Linux."""
    if os.geteuid():
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice
    assert libc.capget(header, sets) == 0
    for i in range(3):
        sets[i] &= ~0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
    assert libc.capset(header, sets) == 0


def change_mode(path: Path, how: Any) -> None:
    """Changes the mode of a file, if it is still there."""
    with contextlib.suppress(FileNotFoundError):
        path.chmod(how(path.stat().st_mode))


def refused(program: Program, code: int, out: Path) -> list[str]:
    """Notes of how a program ended that could not write below `out`; nothing if it could."""
    if code == 0 and list(out.glob("*/*/result.json")):
        return []
    if code != 2 or not re.search("error: (cannot|.* is gone|.* does not exist)", program.said()):
        return [f"{LOST}: ended with {code}, see {program.told}"]
    return ["said"]


def begun(one: Try) -> list[str]:
    """Starts the run if it could not even begin."""
    if logged(one.out) or _programs.run_in(one.out):
        return []
    if code := one.start().end():
        return [f"{LOST}: ended with {code}, see {one.told}"]
    return ["had not begun"]
