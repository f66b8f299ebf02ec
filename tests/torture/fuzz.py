"""A fuzzer over the readers of files that strangers may have made: mutations that the coverage of the code leads.

    python tests/torture/fuzz.py NAME --minutes 10        NAME is one of `NAMES`

A reader may return or raise UserError. Everything else is a finding, also an allocation beyond `MEMORY`: it is counted
by its kind and the line that raised it, the first file of each kind is kept, and the search goes on. Needs atheris
(the extra `torture`).
"""

import argparse
import collections
import importlib.util
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
NAMES = ("idx", "safetensors", "model", "checkpoint", "picture", "config", "huggingface", "tokenizer")
WATCHED = ["dlc.data", "dlc.weights", "dlc.run.flags", "dlc.run.log", "dlc.run.pages"]
MEMORY = 2 * 2**30  # bytes that a reader of a small file may take
LONGEST = 4096  # bytes of a file


def rows(how: Any) -> Iterator[Any]:
    """For `make torture`: each reader for its share of the time that is left, in a process of its own."""
    from tests.torture._table import Row

    if not importlib.util.find_spec("atheris"):
        yield Row("any reader", 0, 0, 0.0, "atheris is not installed: the extra `torture` has it")
        return
    for i, name in enumerate(NAMES):
        began = time.monotonic()
        minutes = max(0.1, how.seconds() / 60 / (len(NAMES) - i) - 0.1)  # what it takes to begin
        command = [sys.executable, __file__, name, "--minutes", f"{minutes:.2f}", "--out", str(how.folder)]
        said = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
        told = re.findall(rf"^{name}: ([0-9,]+) files.*", said.stdout, re.MULTILINE)
        tried = int(told[0].replace(",", "")) if told else 1
        found = [int(n.replace(",", "")) for n in re.findall(r"^  ([0-9,]+) x ", said.stdout, re.MULTILINE)]
        notes = "; ".join(re.findall(r"^  .* x (.*)", said.stdout, re.MULTILINE)) or said.stderr[-200:] * (not told)
        lost = sum(found) if told else 1
        yield Row(f"the reader of {name}", tried, tried - lost, time.monotonic() - began, notes)


class Findings:
    """What a reader did with the files that it was given."""

    def __init__(self, folder: Path):
        self.folder, self.tried, self.read, self.kinds = folder, 0, 0, collections.Counter[str]()

    def add(self, content: bytes, error: BaseException) -> None:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if "/dlc/" in frame.filename] or frames[-1:]
        where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"
        kind = f"{type(error).__name__} at {where}"
        if kind not in self.kinds:
            path = self.folder / f"{type(error).__name__}-{where.replace(':', '-')}"
            path.write_bytes(content)
            print(f"FOUND {kind}: {str(error)[:200]!r}; {path}", flush=True)
        self.kinds[kind] += 1

    def conclude(self, name: str) -> None:
        """Prints what was found."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
        print(f"{name}: {self.tried:,} files, {self.read:,} of them read, {peak:,.0f} MB at most")
        for kind, count in self.kinds.most_common():
            print(f"  {count:,} x {kind}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--out", type=Path, default=Path("fuzzed"), help="folder for the files that were found")
    options = parser.parse_args()
    import atheris

    sys.path.insert(0, str(ROOT))
    import experiments  # which prepares the process for JAX

    assert experiments
    with atheris.instrument_imports(include=WATCHED):
        from tests.torture import _readers
    from dlc.errors import UserError

    kept = options.out / options.name
    kept.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    temporary = tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
    work, corpus = Path(temporary, "work"), Path(temporary, "corpus")
    work.mkdir()
    corpus.mkdir()
    read, seeds = _readers.READERS[options.name](work)
    for i, seed in enumerate(seeds):
        (corpus / f"seed{i}").write_bytes(seed)
    found = Findings(kept)
    end = time.monotonic() + 60 * options.minutes
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))  # beyond that: MemoryError

    def one(content: bytes) -> None:
        found.tried += 1
        try:
            read(content)
            found.read += 1
        except UserError:
            pass
        except BaseException as error:
            found.add(content, error)
        if time.monotonic() > end:
            found.conclude(options.name)
            sys.stdout.flush()
            shutil.rmtree(temporary, ignore_errors=True)
            os._exit(1 if found.kinds else 0)  # libFuzzer has no other way to end in order

    length = max(LONGEST, *(len(seed) for seed in seeds))
    atheris.Setup([sys.argv[0], str(corpus), f"-max_len={length}", "-timeout=60", "-rss_limit_mb=0"], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
