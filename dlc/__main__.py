"""What `dlc` runs on: backend, devices, versions, data, cache.

python -m dlc [--require gpu]
"""

import argparse
import os
import sys

from dlc import data, process
from dlc.errors import UserError
from dlc.run import launch, record


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m dlc", description="Prints what dlc runs on.")
    parser.add_argument("--require", choices=("cpu", "gpu", "tpu"), help="fail unless JAX computes on this")
    arguments = parser.parse_args()
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
    for name, value in rows.items():
        print(f"{name:9} {value}")


if __name__ == "__main__":
    main()
