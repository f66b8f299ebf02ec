"""What a run shows in a notebook: the bar of its training, its figures, and a summary. Elsewhere `Run()` is quiet."""

import base64
import importlib.util
import io
import warnings
from html import escape
from typing import Any

from rich.console import Console


def console() -> Console:
    """For a run without one: quiet, except in a notebook."""
    found = Console()
    if not found.is_jupyter:
        return Console(quiet=True)
    # Without ipywidgets rich draws no bar; the plain lines of a log are shown instead.
    return found if importlib.util.find_spec("ipywidgets") else Console(force_jupyter=False)


def show(figure: Any) -> None:
    """Draws a matplotlib figure below the cell. Does nothing outside a notebook."""
    if Console().is_jupyter:
        from IPython.display import Image, display

        display(Image(data=_png(figure)))


def line(run: Any) -> str:
    """A run in one line: its folder, what it was last told, its figures."""
    told: dict[str, Any] = {}
    for report in run.history:
        told |= report
    numbers = ", ".join(f"{name} {value:.4g}" for name, value in told.items() if isinstance(value, int | float))
    words = [str(run.folder or "no folder"), numbers, ", ".join(run.figures)]
    return f"Run({'; '.join(word for word in words if word)})"


def html(run: Any) -> str:
    """The same with the figures."""
    pictures = (
        f'<figure><img alt="{escape(name)}" src="data:image/png;base64,{base64.b64encode(_png(figure)).decode()}">'
        f"<figcaption>{escape(name)}</figcaption></figure>"
        for name, figure in run.figures.items()
    )
    return f"<code>{escape(line(run))}</code>{''.join(pictures)}"


def _png(figure: Any) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(file, format="png", dpi=100, bbox_inches="tight")
    return file.getvalue()
