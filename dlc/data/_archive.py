"""Archives -> folders below `<data dir>/pictures/`."""

import tarfile
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dlc.data._directory import say
from dlc.data._errors import DataDamaged


def unpacked(root: Path, name: str, archive: Path, place: Path) -> Path:
    """The folder `place` as it is in the tar file `archive`, which was checked; call it under the lock of `name`."""

    def extract(temporary: Path) -> None:
        say(f"unpacking {archive}")
        try:
            with tarfile.open(archive) as tar:
                tar.extractall(temporary, filter=_plain)
        except (tarfile.TarError, EOFError, zlib.error) as error:
            raise DataDamaged(f"{archive} cannot be unpacked: {error}; fetch it again") from None

    return written(root, name, place, extract)


def _plain(member: tarfile.TarInfo, folder: Any) -> tarfile.TarInfo | None:
    """A file or folder that stays below `folder`; published sets hold nothing else. Raises TarError for a link."""
    if not (member.isfile() or member.isdir()):
        raise tarfile.TarError(f"{member.name} is neither a file nor a folder")
    return tarfile.data_filter(member, folder)


def written(root: Path, name: str, place: Path, write: Callable[[Path], None]) -> Path:
    """`place`, complete or absent: `write(temporary)` makes `temporary / place.name`. Call it under the lock."""
    temporary = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=root / "arrays"))  # the lock removes it if we die
    write(temporary)
    place.parent.mkdir(exist_ok=True)
    (temporary / place.name).rename(place)
    return place
