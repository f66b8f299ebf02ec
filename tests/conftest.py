"""The rules that every test runs under: eight CPU devices, no silent rank promotion, nothing of the user's."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session", autouse=True)
def _compilation_cache(tmp_path_factory):
    """Programs that several tests start processes for are compiled once."""
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path_factory.mktemp("xla"))


@pytest.fixture(autouse=True)
def _own_folders(tmp_path_factory, monkeypatch):
    """Nothing is read from, or written to, the user's data, cache or working folder."""
    root = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("DLC_DATA", str(root / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(root / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(root / "tfds"))
    monkeypatch.setenv("HOME", str(root))
    monkeypatch.chdir(root)
