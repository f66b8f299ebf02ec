"""The rules that every test runs under: eight CPU devices, no silent rank promotion, no files of the user.

All workers, the processes that tests start, and later runs share one cache of compiled programs. It lies in the user's
cache directory, in a folder for these versions of Python and jaxlib, and may be deleted at any time. JAX does not write
its entries atomically: an entry that another process is still writing, or was killed while writing, cannot be read.
JAX then warns, which pyproject.toml allows, and compiles the program again.
"""

import importlib.metadata
import os
import signal
import sys

from dlc import process

PYTHON = "python{}.{}".format(*sys.version_info[:2])
JAXLIB = f"jaxlib{importlib.metadata.version('jaxlib')}"

os.environ["JAX_PLATFORMS"] = "cpu"
if cache := process.cache_dir():
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(cache / "tests" / f"{PYTHON}-{JAXLIB}")
process.prepare()

# Workers of pytest-xdist share the cores: PyTorch's threads wait for each other by spinning.
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, process.cores() // workers)))

# A shell starts a background job with SIGINT ignored, and the processes that tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import jax  # noqa: E402, after the environment is set
import pytest  # noqa: E402

from dlc.layers import cpu  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
# The environment sets these for the processes that tests start; in this one, jaxtyping's plugin imported JAX earlier.
jax.config.update("jax_compilation_cache_dir", os.environ.get("JAX_COMPILATION_CACHE_DIR"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True)
def _own_folders(tmp_path_factory, monkeypatch):
    """Nothing is read from, or written to, the user's data, cache or working folder."""
    root = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("DLC_DATA", str(root / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(root / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(root / "tfds"))
    monkeypatch.setenv("HOME", str(root))
    monkeypatch.chdir(root)


@pytest.fixture
def _plain(monkeypatch):
    """Traces only the forms for GPU and TPU, for tests of how a network is built: the forms for a CPU take long to
    trace and to compile, and test_layers.py tests them."""
    monkeypatch.setattr(cpu, "is_default", lambda: False)
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *operands, default, **forms: default(*operands))
