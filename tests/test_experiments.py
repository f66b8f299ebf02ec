"""Every experiment: runs its SMOKE, states its claim, and is a file of the agreed form."""

import ast
import contextlib
import dataclasses
import inspect
import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from rich.console import Console

from dlc import launch, run
from dlc.data import NAMES, OFFLINE, pictures, text
from dlc.errors import UserError

ROOT = Path(__file__).parents[1]
FILES = [p for p in sorted((ROOT / "experiments").glob("*/[!_]*.py")) if p.parent.name != "bench"]
MODULES = [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in FILES]

PURE = (
    "train",
    "losses",
    "metrics",
    "optim",
    "augment",
    "views",
    "generate",
    "batches",
    "prepare",
    "sharding",
    "costs",
)

every = pytest.mark.parametrize("module", MODULES)


def trains(experiment):
    return hasattr(experiment, "optax")


def reads_data(experiment):
    return "dataset" in experiment.Config.__annotations__


@every
def test_smoke(module, tmp_path):
    experiment = import_module(module)
    here = run.Run(tmp_path, console=Console(quiet=True))
    with contextlib.closing(here):
        figures = experiment.main(experiment.SMOKE, here)
    assert figures
    result = here.finish(module, launch.claim_of(experiment), experiment.SMOKE, figures, "")
    assert json.loads((tmp_path / "result.json").read_text()) == result
    for part in here.parts or [here]:
        reports = [line["loss"] for line in part.history if "loss" in line]
        assert reports[-1] < reports[0] if trains(experiment) else not reports
    assert len(list(tmp_path.rglob("*.png"))) >= (2 if "attention" in module else 3 if reads_data(experiment) else 1)


@every
def test_form(module):
    experiment = import_module(module)
    assert dataclasses.is_dataclass(experiment.Config)
    assert experiment.Config.__dataclass_params__.frozen
    assert experiment.SMOKE.dataset in (*OFFLINE, *text.OFFLINE) if reads_data(experiment) else experiment.SMOKE.made_up
    assert f"python -m {module}" in experiment.__doc__
    assert launch.claim_of(experiment)
    assert len(inspect.getsource(experiment).splitlines()) <= 135
    (paragraph,) = re.findall(r"^Expect: .*?\n\n", experiment.__doc__, re.DOTALL | re.MULTILINE) or [""]
    expected = re.findall(r"\d+\.\d\d(?: ± \d+\.\d\d)? %|\d+\.\d+(?= nats| BLEU)", paragraph)
    results = (ROOT / "docs" / "results.md").read_text()
    assert expected or not trains(experiment)
    assert all(figure in results for figure in expected)  # what a docstring expects, a record has measured


@every
def test_datasets_on_offer_exist(module):
    experiment = import_module(module)
    offered = experiment.Config.__annotations__["dataset"].__args__ if reads_data(experiment) else ()
    assert set(offered) <= {*NAMES, *pictures.NAMES, *text.CORPORA, *text.PARALLEL}


def test_peek_names_an_image_that_is_not_there():
    peek = import_module("experiments.cifar10.peek")
    with pytest.raises(UserError, match=r"^--image must be 0 to 1436, a row of digits32's training set, not 1437$"):
        peek.main(dataclasses.replace(peek.SMOKE, image=1437), run.Run())


def imported(path):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_a_floor_imports_only_from_floors_below():
    """Experiments import no experiment; pure modules import no effects, and Flax only where models and layers are."""
    for path in FILES:
        assert not [name for name in imported(path) if name.startswith("experiments")], path
    effects = {p.stem for p in (ROOT / "dlc").glob("*.py")} - {*PURE, "__init__", "errors"} | {"data"}
    pure = [ROOT / f"dlc/{name}.py" for name in PURE]
    for path in [*pure, *(ROOT / "dlc/layers").glob("*.py"), *(ROOT / "dlc/models").glob("*.py")]:
        names = set(imported(path))
        assert not {f"dlc.{effect}" for effect in effects} & names, path
        if path.parent.name not in ("layers", "models"):
            assert not [name for name in names if name.startswith("flax")], path


def test_importing_the_library_is_light_and_changes_nothing():
    code = "import sys, os; before = dict(os.environ); import dlc.train, dlc.models.convnet; print(*sys.modules)\n"
    code += "assert dict(os.environ) == before"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"tyro", "matplotlib", "tensorflow_datasets", "orbax", "tensorboardX"} & set(done.stdout.split())
