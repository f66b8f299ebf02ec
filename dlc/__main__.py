"""What `dlc` runs on: backend, devices, versions, data, cache, and a warning if JAX may compute wrong sums.

python -m dlc [--require gpu]
"""

import argparse
import importlib.metadata
import os
import sys

from dlc import data, process
from dlc.errors import UserError

try:
    if __name__ == "__main__":
        process.exit_at_signals()
    from dlc.run import launch, record
except UserError as error:
    sys.exit(f"error: {error}")


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
    programs = process.programs_dir()
    rows = {
        "backend": device["platform"],
        "devices": f"{device['count']} x {device['kind']}, {device['cores']} host cores",
        "versions": "  ".join(f"{name} {version}" for name, version in record.versions().items()),
        "commit": record.commit() or "not in a git checkout",
        "data": prepared(),
        "cache": os.environ.get("JAX_COMPILATION_CACHE_DIR")
        or (
            f"{programs} (experiments use it)"
            if programs
            else "none, because no folder can be written: set JAX_COMPILATION_CACHE_DIR"
        ),
    }
    if process.wrong_sums():
        rows["warning"] = wrong_sums()
    for name, value in rows.items():
        print(f"{name:9} {value}")


def prepared() -> str:
    """The data directory and the sets of images in it that are prepared, or why there is none."""
    try:
        ready = ", ".join(name for name in data.NAMES if data.is_ready(name))
        return f"{data.data_dir()} ({ready or 'no images prepared yet'}; python -m dlc.data lists texts, too)"
    except UserError as error:
        return f"none: {error}"


def wrong_sums() -> str:
    """What to do about a jaxlib that computes wrong sums on a CPU."""
    fault = f"jaxlib {importlib.metadata.version('jaxlib')} computes wrong sums on a CPU (jax issue 39103)"
    if "XLA_FLAGS" in os.environ:
        return f"{fault}: add {process.RIGHT_SUMS} to XLA_FLAGS, also for experiments, which keep your XLA_FLAGS"
    return f"{fault}: experiments avoid it; for your own programs, set XLA_FLAGS={process.RIGHT_SUMS}"


if __name__ == "__main__":
    main()
