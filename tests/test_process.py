"""What a process sets before JAX starts: correct sums on a CPU, and the user's settings kept."""

import importlib.metadata
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlc import __main__, process

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
