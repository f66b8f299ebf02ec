"""What a process sets before JAX starts, and what it finds: homes, caches, cores, locks."""

import errno
import importlib.metadata
import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import platformdirs
import pytest

from dlc import __main__, data, files, process
from dlc.data import pictures
from dlc.errors import UserError

MATRIX = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 10]])


@pytest.mark.parametrize(("dtype", "x64"), [("float32", False), ("float64", True)])
def test_sums_over_many_rows_are_right(dtype, x64):
    """On a CPU, jaxlib 0.10.2 without the flag is wrong from 32,769 rows of float32 and 16,385 of float64 on."""
    rows = np.random.default_rng(0).normal(size=(40_000, 3)).astype(dtype)
    with jax.enable_x64(x64):
        matrix = jnp.asarray(MATRIX, dtype)
        sums = jax.jit(jax.vmap(lambda row: jnp.sum((matrix @ row) ** 2)))(rows)
    np.testing.assert_allclose(sums, ((rows @ MATRIX.T) ** 2).sum(1), rtol=1e-4)


def version(monkeypatch, jaxlib):
    monkeypatch.setattr(importlib.metadata, "version", {"jaxlib": jaxlib}.get)


def test_the_flag_is_set_for_the_versions_that_need_it(monkeypatch):
    for jaxlib in process.WRONG_SUMS:
        version(monkeypatch, jaxlib)
        monkeypatch.delenv("XLA_FLAGS", raising=False)
        assert process.wrong_sums()
        process.prepare()
        assert os.environ["XLA_FLAGS"] == process.RIGHT_SUMS
        assert not process.wrong_sums()


def test_versions_that_are_right_get_no_flag(monkeypatch):
    version(monkeypatch, "0.10.1")
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    process.prepare()
    assert "XLA_FLAGS" not in os.environ
    assert not process.wrong_sums()


@pytest.mark.parametrize("flags", ["", "--xla_cpu_enable_fast_min_max=false"])
def test_the_users_flags_are_kept(monkeypatch, flags):
    version(monkeypatch, process.WRONG_SUMS[0])
    monkeypatch.setenv("XLA_FLAGS", flags)
    process.prepare()
    assert os.environ["XLA_FLAGS"] == flags
    assert process.wrong_sums()


@pytest.mark.parametrize(
    ("jaxlib", "flags", "sentence"),
    [
        (process.WRONG_SUMS[0], None, f"for your own programs, set XLA_FLAGS={process.RIGHT_SUMS}"),
        (process.WRONG_SUMS[0], "--xla_cpu_enable_fast_min_max=false", f"add {process.RIGHT_SUMS} to XLA_FLAGS"),
        (process.WRONG_SUMS[0], f"--xla_cpu_enable_fast_min_max=false {process.RIGHT_SUMS}", None),
        ("0.10.1", None, None),
    ],
)
def test_python_m_dlc_warns_of_wrong_sums(monkeypatch, capsys, jaxlib, flags, sentence):
    monkeypatch.setattr(sys, "argv", ["dlc"])
    if flags is None:
        monkeypatch.delenv("XLA_FLAGS", raising=False)
    else:
        monkeypatch.setenv("XLA_FLAGS", flags)
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: jaxlib if name == "jaxlib" else real(name))
    __main__.main()
    printed = capsys.readouterr().out
    assert ("computes wrong sums on a CPU" in printed) == bool(sentence)
    assert (sentence or "") in printed


@pytest.mark.parametrize(
    ("allotted", "quota", "cores"),
    [
        ({3}, None, 1),
        ({0, 1, 2, 3}, "max 100000", 4),
        (set(range(64)), "150000 100000", 2),
        (set(range(64)), "50000 100000", 1),
        ({0, 1}, "800000 100000", 2),
        (None, None, 64),  # no Linux
    ],
)
def test_cores_are_those_that_the_process_may_use(monkeypatch, tmp_path, allotted, quota, cores):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    if allotted is None:
        monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    else:
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: allotted, raising=False)
    monkeypatch.setattr(process, "QUOTA", tmp_path / "cpu.max")
    if quota:
        (tmp_path / "cpu.max").write_text(quota + "\n")
    assert process.cores() == cores


@pytest.mark.parametrize("answer", [RuntimeError("no home"), KeyError("uid not found: 54321"), Path("~/.cache/dlc")])
def test_without_a_home_there_is_no_cache(monkeypatch, answer):
    def user_cache_path(*_, **__):
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(platformdirs, "user_cache_path", user_cache_path)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.delenv("DLC_DATA")
    process.prepare()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ
    with pytest.raises(UserError, match=r"^this user has no home folder to keep data in: set DLC_DATA to the path of"):
        data.data_dir()
    assert len(data.load("digits").train["label"]) == 1437


def test_a_cache_that_cannot_be_written_is_not_used(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    process.prepare()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    process.prepare()
    assert Path(os.environ["JAX_COMPILATION_CACHE_DIR"]) == tmp_path / "dlc" / "xla"


def test_a_home_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setenv("DLC_DATA", "~no-such-user/data")
    with pytest.raises(
        UserError, match=r"^DLC_DATA is ~no-such-user/data, but that home folder does not exist: set it to"
    ):
        data.data_dir()


# Locks


@pytest.mark.parametrize("answer", [errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_said_and_used(monkeypatch, tmp_path, capsys, answer):
    fcntl = pytest.importorskip("fcntl")

    def flock(*_):
        raise OSError(answer, os.strerror(answer))

    monkeypatch.setattr(fcntl, "flock", flock)
    said = []
    with files.lock(tmp_path / ".lock", said.append):
        pass
    assert said == [f"{tmp_path} is on a file system without locks: let no other process write there at the same time"]
    assert len(pictures.load("digits32").train) == 1437
    assert "is on a file system without locks" in capsys.readouterr().err
    answer = errno.EIO
    with pytest.raises(OSError, match=os.strerror(errno.EIO)), files.lock(tmp_path / ".lock", said.append):
        pass


def test_a_lock_is_held_once(tmp_path):
    said = []
    with files.lock(tmp_path / ".lock", said.append), pytest.raises(TimeoutError):
        files.lock(tmp_path / ".lock", said.append)
    with files.lock(tmp_path / ".lock", said.append):
        pass
    assert not said


@pytest.mark.parametrize("harm", ["cut", "full disk"])
def test_a_program_that_was_written_in_part_is_written_again(tmp_path, monkeypatch, harm):
    lru_cache = pytest.importorskip("jax._src.lru_cache")
    monkeypatch.setattr(lru_cache.LRUCache, "put", lru_cache.LRUCache.put)  # which is set again after this test
    for _ in range(2):
        process.keep_programs_whole()
    cache = lru_cache.LRUCache(str(tmp_path), max_size=-1)
    if harm == "cut":
        (tmp_path / "program-cache").write_bytes(b"whol")
    else:
        replace = os.replace
        monkeypatch.setattr(os, "replace", fail(errno.ENOSPC))
        with pytest.raises(OSError, match="No space left"):
            cache.put("program", b"whole")
        monkeypatch.setattr(os, "replace", replace)
    cache.put("program", b"whole")
    assert cache.get("program") == b"whole"
    assert [path.name for path in tmp_path.iterdir()] == ["program-cache"]


def fail(number):
    def failing(*arguments):
        raise OSError(number, os.strerror(number))

    return failing


@pytest.mark.parametrize("at", ["write_bytes", "replace"])
def test_a_file_that_cannot_be_written_is_named_and_the_old_one_stays(tmp_path, monkeypatch, at):
    path = tmp_path / "file"
    files.write_whole(path, "old")
    monkeypatch.setattr(Path, at, fail(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left") as caught:
        files.write_whole(path, "new")
    assert caught.value.filename == str(path)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("file", "old")]
