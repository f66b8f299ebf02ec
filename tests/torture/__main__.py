"""What survives when everything goes wrong: make torture, or python -m tests.torture [PART ...] [--times 50].

A part is a file of this folder whose name does not begin with an underscore. It has one function,

    rows(how: How) -> Iterator[Row]        of tests/torture/_table.py

which harms runs and their files for at most `how.seconds()`, and yields a row for each kind of harm: how many times it
was tried, and how many times nothing was lost. The process ends with 1 if anything was, and then keeps its files.
"""

import argparse
import importlib
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
PARTS = sorted(path.stem for path in HERE.glob("[!_]*.py"))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; by default all of them")
    parser.add_argument("--times", type=int, default=4, help="tries of each kind of harm, if the time suffices")
    parser.add_argument("--minutes", type=float, default=20, help="for all parts together")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments and places")
    parser.add_argument("--folder", type=Path, help="a new folder for everything that is written")
    given = parser.parse_args()
    if unknown := sorted(set(given.parts) - set(PARTS)):
        parser.error(f"there is no part {unknown[0]}: choose of {', '.join(PARTS)}")
    folder = given.folder or Path(tempfile.mkdtemp(prefix="torture-"))
    folder.mkdir(parents=True, exist_ok=True)
    prepare(folder)

    from tests.torture import _table

    began, lost = time.monotonic(), 0
    print(_table.HEAD, flush=True)
    parts = given.parts or PARTS
    for i, part in enumerate(parts):
        left = began + 60 * given.minutes - time.monotonic()
        until = time.monotonic() + left / (len(parts) - i)  # what a part leaves over is for those after it
        rows = importlib.import_module(f"tests.torture.{part}").rows
        for row in rows(_table.How(given.times, given.seed, folder / part, until)):
            print(row.line(part), flush=True)
            lost += row.tried - row.survived
    print(f"\n{lost or 'nothing'} lost in {(time.monotonic() - began) / 60:.1f} minutes")
    if lost:
        print(f"what is left of it: {folder}", file=sys.stderr)
        return 1
    shutil.rmtree(folder, ignore_errors=True)
    return 0


def prepare(folder: Path) -> None:
    """Data and compiled programs of their own, because they are harmed too; the experiments' settings of a process."""
    os.environ |= {
        "DLC_DATA": str(folder / "data"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "HOME": str(folder),
        "TMPDIR": str(folder / "tmp"),
        "JAX_PLATFORMS": "cpu",
        "COLUMNS": "100",
        "OPENBLAS_NUM_THREADS": "1",  # no threads in the process that starts the others
    }
    (folder / "tmp").mkdir(exist_ok=True)
    os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
    sys.path.insert(1, str(HERE.parent))  # runs.py
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parents[1]), str(HERE.parent)])
    import experiments

    assert experiments


if __name__ == "__main__":
    sys.exit(main())
