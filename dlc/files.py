"""Writing a file so that nobody ever reads half of it."""

from pathlib import Path


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file under another name and renames it: a reader finds the old content or all of the new one."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.write_bytes(content if isinstance(content, bytes) else content.encode())
    fresh.replace(path)
