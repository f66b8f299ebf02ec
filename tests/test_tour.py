"""The notebook docs/tour.ipynb runs, and a run shows in notebooks what a terminal shows."""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from matplotlib.figure import Figure

from dlc.run import notebook, progress
from dlc.run.run import Run

TOUR = Path(__file__).parents[1] / "docs" / "tour.ipynb"


@pytest.fixture
def in_notebook(monkeypatch):
    """What is displayed, as if this were a notebook with ipywidgets."""
    shown = []
    display = SimpleNamespace(Image=lambda data: data, display=lambda *each, **_: shown.extend(each))
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(display=display))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setattr(notebook.importlib.util, "find_spec", lambda name: name)
    return shown


def test_the_tour_runs_and_its_outputs_are_those_of_its_cells(monkeypatch, capsys):
    monkeypatch.chdir(TOUR.parent)
    cells = json.loads(TOUR.read_text())["cells"]
    names = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    said = capsys.readouterr().out
    assert float(names["measured"]["test_error"]) < 0.2
    assert float(names["changed"]["test_error"]) < 0.2
    assert list(names["run"].figures) == ["curves", "confusion", "mistakes"]
    kept = [output for cell in cells for output in cell.get("outputs", [])]
    for text in ("".join(output["text"]) for output in kept if output["output_type"] == "stream"):
        first = text.splitlines()[0]
        assert re.sub(r"[\d.]+", "0", first) in re.sub(r"[\d.]+", "0", said)
    assert sum("image/png" in output.get("data", {}) for output in kept) == 2
    assert TOUR.stat().st_size < 200_000


def test_a_run_makes_its_folder(tmp_path):
    run = Run(str(tmp_path / "runs" / "mine"))
    run.text("words", "said")
    assert (tmp_path / "runs" / "mine" / "words.txt").read_text() == "said"


def test_a_run_says_what_it_has(capsys):
    run = Run()
    assert repr(run) == "Run(no folder)"
    run.history += [{"step": 1, "loss": 2.5}, {"step": 2, "loss": 0.125, "test_error": {"mean": 0.5, "std": 0.1}}]
    run.figure("curves & more", Figure())
    assert repr(run) == "Run(no folder; step 2, loss 0.125; curves & more)"
    html = run._repr_html_()
    assert html.startswith("<code>Run(no folder; step 2, loss 0.125; curves &amp; more)</code>")
    assert html.count('src="data:image/png;base64,iVBOR') == 1
    assert run.console.quiet
    assert not capsys.readouterr().out


def test_a_notebook_shows_the_bar_and_the_figures(in_notebook):
    run = Run()
    assert run.console.is_jupyter
    assert progress.Bar(10, 0, run.console)._bar is not None
    run.figure("curves", Figure())
    (png,) = in_notebook
    assert png.startswith(b"\x89PNG")
    assert isinstance(run.figures["curves"], Figure)


def test_a_notebook_without_ipywidgets_shows_lines(in_notebook, monkeypatch, capsys):
    monkeypatch.setattr(notebook.importlib.util, "find_spec", lambda name: None)
    run = Run()
    assert progress.Bar(10, 0, run.console)._bar is None
    run.say("step 3")
    assert capsys.readouterr().out == "step 3\n"
