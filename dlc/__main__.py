"""What `dlc` runs on: backend, devices, versions, data, cache, and a warning if JAX may compute wrong sums.

python -m dlc [--require gpu]
"""

import argparse
import importlib.metadata
import os
import sys

from dlc import data, process
from dlc.errors import UserError
from dlc.run import launch, record


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m dlc", description="Print what dlc runs on.")
    parser.add_argument("--require", choices=("cpu", "gpu", "tpu"), help="fail unless JAX runs on this backend")
    arguments = parser.parse_args()
    process.keep_printing()
    try:
        launch.require(arguments.require)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    device = record.device()
    ready = [name for name in data.NAMES if data.is_ready(name)]
    rows = {
        "backend": device["platform"],
        "devices": f"{device['count']} x {device['kind']}, {device['cores']} host cores",
        "versions": "  ".join(f"{name} {version}" for name, version in record.versions().items()),
        "commit": record.commit() or "not in a git checkout",
        "data": f"{data.data_dir()} ({', '.join(ready) or 'nothing prepared yet'}; python -m dlc.data says more)",
        "cache": os.environ.get("JAX_COMPILATION_CACHE_DIR", f"{process.cache_dir() / 'xla'} (experiments use it)"),
    }
    if process.wrong_sums():
        rows["warning"] = wrong_sums()
    for name, value in rows.items():
        print(f"{name:9} {value}")


def wrong_sums() -> str:
    """What to do about a jaxlib that computes wrong sums on a CPU."""
    fault = f"jaxlib {importlib.metadata.version('jaxlib')} computes wrong sums on a CPU (jax issue 39103)"
    if "XLA_FLAGS" in os.environ:
        return f"{fault}: add {process.RIGHT_SUMS} to XLA_FLAGS, also for experiments, which keep your XLA_FLAGS"
    return f"{fault}: experiments avoid it; for your own programs, set XLA_FLAGS={process.RIGHT_SUMS}"


if __name__ == "__main__":
    main()
