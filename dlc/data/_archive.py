"""Archives -> folders below `<data dir>/pictures/`."""

import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

from dlc.data._directory import say


def unpacked(root: Path, name: str, archive: Path, place: Path) -> Path:
    """The folder `place` as it is in the tar file `archive`, which was checked; call it under the lock of `name`."""

    def extract(temporary: Path) -> None:
        say(f"unpacking {archive}")
        with tarfile.open(archive) as tar:
            tar.extractall(temporary, filter="data")

    return written(root, name, place, extract)


def written(root: Path, name: str, place: Path, write: Callable[[Path], None]) -> Path:
    """`place`, complete or absent: `write(temporary)` makes `temporary / place.name`. Call it under the lock."""
    temporary = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=root / "arrays"))  # the lock removes it if we die
    write(temporary)
    place.parent.mkdir(exist_ok=True)
    (temporary / place.name).rename(place)
    return place
