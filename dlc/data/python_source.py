"""The source of the running Python's standard library, as a text; it differs from one Python version to the next."""

import platform
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from dlc.data._dataset import Corpus, split_text
from dlc.data._published import Published
from dlc.errors import UserError

PUBLISHED = Published("python")
SOURCE = f"standard library of Python {platform.python_version()}"
LIMIT = 4_000_000  # characters: four times tiny Shakespeare, and less than there are
FEWEST = 1000


def parse(paths: Sequence[Path] = ()) -> Corpus:
    """Up to 4,000,000 ASCII characters. Raises UserError if this Python comes without its source."""
    sources = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    contents = [path.read_bytes() for path in sources]
    # The few files with other characters would double the vocabulary for a handful of names.
    text = b"".join(content for content in contents if content.isascii()).decode()[:LIMIT]
    if len(text) < FEWEST:
        raise UserError("this Python has no source of its standard library: choose another text")
    return split_text("python", text, SOURCE)
