"""Every experiment: runs its SMOKE, states its claim, and is a file of the agreed form."""

import ast
import contextlib
import dataclasses
import graphlib
import inspect
import json
import os
import re
import subprocess
import sys
import typing
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from dlc import files, weights
from dlc.data import NAMES, OFFLINE, pictures, text
from dlc.errors import UserError
from dlc.run import flags, launch, record
from dlc.run.pages import LARGEST
from dlc.run.run import Run
from experiments import __main__ as course
from experiments import gallery

ROOT = Path(__file__).parents[1]
FILES = [p for p in sorted((ROOT / "experiments").glob("*/[!_]*.py")) if p.parent.name != "bench"]
MODULES = [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in FILES]

# What a smoke run must reach, which something that does not learn cannot: of ten classes guessing errs on 90 %, and
# an even guess among 65 and 97 letters, 400 pieces and 400 pieces costs 4.2, 4.6, 6.0 and 6.0 nats.
REACHED = {
    "attention.bert": ("validation_perplexity", 330),
    "attention.gpt": ("validation_loss", 3.2),
    "attention.seq2seq": ("validation_loss", 4.5),
    "attention.translate": ("validation_loss", 4.5),
    "attention.vit": ("test_error", 0.6),
    # Of training: whitening grey digits divides rounding errors by almost nothing, so their test error says nothing.
    "cifar10.airbench": ("error", 0.2),
    "cifar10.resnet": ("residual_8_error", 0.6),
    "imagenet.train": ("validation_error", 0.85),  # of 360 pictures; three standard deviations below guessing
    "mnist.convnet": ("test_error", 0.4),
    "mnist.lenet5": ("test_error", 0.6),
    "mnist.mlp": ("test_error", 0.3),
}

every = pytest.mark.parametrize("module", MODULES)


def shows(experiment):
    """Whether its picture is the point: what it trains is part of the picture, and ends with it."""
    return experiment.__name__.split(".")[1] in gallery.ROOMS


def trains(experiment):
    return not shows(experiment) and (
        hasattr(experiment, "optax") or experiment.__name__ == "experiments.imagenet.train"
    )


def reads_data(experiment):
    return "dataset" in experiment.Config.__annotations__


@every
def test_smoke(module, tmp_path):
    experiment, short = import_module(module), module.removeprefix("experiments.")
    here = Run(tmp_path, console=Console(quiet=True))
    run = getattr(experiment, "train", None) or experiment.made_up
    with contextlib.closing(here):
        figures = run(experiment.SMOKE, here)
    assert figures
    result = record.finish(here, module, launch.claim_of(experiment), experiment.SMOKE, figures, "")
    assert files.unsealed((tmp_path / "result.json").read_bytes()) == result
    for part in here.parts or [here]:
        reports = [line["loss"] for line in part.history if "loss" in line]
        if shows(experiment):
            assert (tmp_path / "figures" / f"{short.partition('.')[2]}.png").exists()
            continue
        assert reports[-1] < reports[0] if trains(experiment) else not reports
    if trains(experiment):
        name, bound = REACHED[short]
        learnt = [line["error"] for line in here.history if "error" in line]
        assert np.mean(figures[name] if name in figures else learnt[-1]) < bound
    pictures_at_least = 1 if shows(experiment) else 2 if "attention" in module else 3 if reads_data(experiment) else 1
    assert len(list(tmp_path.rglob("*.png"))) >= pictures_at_least
    if trains(experiment):  # what was trained can be shown without training
        folder = here.parts[-1].folder if here.parts else tmp_path
        later = Run()
        later.weights = folder
        shown = experiment.show(experiment.SMOKE, later, *weights.load(folder))
        trained = dict(figures)
        if here.parts:
            trained["test_error"] = figures[f"{folder.name.replace('-', '_')}_error"]
        if "test_accuracy" in figures:
            trained["test_error"] = 1 - np.asarray(figures["test_accuracy"]).item()
        for name in shown.keys() & trained.keys() - {"bleu", "chrf"}:
            np.testing.assert_allclose(shown[name], trained[name], rtol=1e-5, err_msg=name)


@every
def test_form(module):
    experiment = import_module(module)
    assert dataclasses.is_dataclass(experiment.Config)
    assert experiment.Config.__dataclass_params__.frozen
    assert "__post_init__" not in vars(experiment.Config)  # constraints stand in the types of the fields
    if reads_data(experiment):
        assert experiment.SMOKE.dataset in (*OFFLINE, *text.OFFLINE)
    else:
        assert shows(experiment) or experiment.SMOKE.made_up
    assert set(getattr(experiment.SMOKE, "datasets", ())) <= {*OFFLINE, *text.OFFLINE}
    assert f"python -m {module}" in experiment.__doc__
    claim, about = launch.claim_of(experiment), launch.subject_of(experiment)
    assert claim
    figures = re.search(r"\d %|\d s\b|\d nats|\d BLEU|perplexity of \d|red \d", claim)
    if reads_data(experiment):
        assert bool(figures) == bool(about) or shows(experiment)  # a figure is claimed of a data set
    if about:
        assert about[0] in (*NAMES, *pictures.NAMES, *text.CORPORA, *text.PARALLEL)
        defaults = json.loads(json.dumps(dataclasses.asdict(experiment.Config()), default=str)).values()
        assert set(about) <= {str(value) for value in defaults}
    assert len(inspect.getsource(experiment).splitlines()) <= 125


@every
def test_the_figures_that_a_docstring_expects_are_those_of_its_records(module):
    experiment, short = import_module(module), module.removeprefix("experiments.")
    (paragraph,) = re.findall(r"^Expect: .*?\n\n", experiment.__doc__, re.DOTALL | re.MULTILINE) or [""]
    expected = re.findall(
        r"\d+\.\d\d(?: ± \d+\.\d\d)? %|\d+\.\d+(?= nats| BLEU| chrF)|(?<=perplexity of )\d+\.\d+", paragraph
    )
    records = [json.loads(path.read_text()) for path in (ROOT / "results").glob(f"{short}.*json")]
    measured = {record.show(name, value) for one in records for name, value in one["figures"].items()}
    assert expected or not trains(experiment)
    assert set(expected) <= measured


@every
def test_records_have_the_claim_of_the_docstring_where_it_speaks_of_them(module):
    experiment = import_module(module)
    about = launch.subject_of(experiment)
    for path in (ROOT / "results").glob(f"{module.removeprefix('experiments.')}.*json"):
        one = json.loads(path.read_text())
        same = not about or one.get("dataset") == about[0]
        assert one["claim"] == (launch.claim_of(experiment) if same else None), path


@every
def test_help_has_claim_source_expectation_and_commands(module):
    said = launch.help_of(import_module(module))
    for word in (r"Claim(?: \(.*\))?: ", "Sources?: ", "Expect: "):
        assert re.search(f"^{word}", said, re.MULTILINE), word
    assert len(re.findall(rf"^    python -m {module}\b", said, re.MULTILINE)) >= 2


@every
def test_datasets_on_offer_exist(module):
    experiment = import_module(module)
    if not reads_data(experiment):
        return
    hint = typing.get_type_hints(experiment.Config, include_extras=True)["dataset"]
    known = {*NAMES, *pictures.NAMES, *text.CORPORA, *text.PARALLEL}
    while typing.get_origin(hint) is typing.Annotated:
        bounds = [extra for extra in hint.__metadata__ if hasattr(extra, "holds")]
        hint = typing.get_args(hint)[0]
        if bounds:
            offered = [name for name in known if bounds[0].holds(name)]
            assert offered
            assert all(name in bounds[0].must for name in offered)
            assert bounds[0].holds("tfds:caltech101")
    if typing.get_origin(hint) is typing.Literal:
        assert set(typing.get_args(hint)) <= known


# One flag has one meaning. Flags of several experiments stand in the glossary of docs/design.md.

CONFIGS = {
    module: import_module(module).Config
    for module in (".".join(p.relative_to(ROOT).with_suffix("").parts) for p in (ROOT / "experiments").glob("*/*.py"))
    if "class Config:" in (ROOT / module.replace(".", "/")).with_suffix(".py").read_text()
}
GLOSSARY = dict(re.findall(r"^\| `--([a-z-]+)` \| (.*) \|$", (ROOT / "docs" / "design.md").read_text(), re.MULTILINE))


def helps(config):
    """The help of each field: the comment behind it."""
    lines = (re.match(r"    (\w+): .*?(?:  # (.*))?$", line) for line in inspect.getsource(config).splitlines())
    return {line[1]: line[2] for line in lines if line}


def kind(hint):
    """What must agree in the type of a flag: not its choices, nor whether it may be left out or matters in `show`."""
    arguments = [kind(argument) for argument in typing.get_args(hint) if argument is not type(None)]
    if typing.get_origin(hint) is typing.Literal:
        return type(typing.get_args(hint)[0])
    if typing.get_origin(hint) is typing.Annotated:
        bounds = [e.must for e in hint.__metadata__ if isinstance(e, flags.Bound) and "one of" not in e.must]
        return (kind(typing.get_args(hint)[0]), *bounds) if bounds else kind(typing.get_args(hint)[0])
    if typing.get_origin(hint) is tuple:
        return tuple, arguments[0]
    return arguments[0] if arguments else hint


def test_one_flag_has_one_meaning_and_one_type():
    kinds, meanings, users = {}, {}, {}
    for module, config in CONFIGS.items():
        hints = typing.get_type_hints(config, include_extras=True)
        assert helps(config).keys() == hints.keys(), module
        for field, said in helps(config).items():
            name = field.replace("_", "-")
            assert said, (module, field)
            users.setdefault(name, []).append(module)
            kinds.setdefault(name, []).append(kind(hints[field]))
            meanings.setdefault(name, []).append(said.split(";")[0])
    for name, found in users.items():
        assert len({str(each) for each in kinds[name]}) == 1, (name, kinds[name], found)
        assert len(set(meanings[name])) == 1, (name, meanings[name], found)
    assert {name: meanings[name][0] for name, found in users.items() if len(found) > 1} == GLOSSARY
    options = {field.name.replace("_", "-") for field in dataclasses.fields(flags.ParallelOptions)}
    assert users.keys() & options == {"out"}  # benches have no other options


def test_a_plural_takes_several_values():
    for config in CONFIGS.values():
        hints = typing.get_type_hints(config)
        several = {name for name, hint in hints.items() if "tuple" in str(hint)}
        assert {name for name in several if not name.endswith("s")} <= {"hidden", "augment"}


# The course: python -m experiments, and docs/course.md


def test_the_course_has_every_experiment_in_the_order_of_the_lectures():
    every = course.experiments()
    assert {f"experiments.{name}" for name in every} == set(CONFIGS)
    assert [name for name in every if name.startswith("mnist")] == ["mnist.convnet", "mnist.lenet5", "mnist.mlp"]
    shown = {name for rows in course.LECTURES.values() for _, what in rows for name in what.split(", ")}
    assert {name for name in every if not name.startswith("bench")} <= shown  # each is on a page of a lecture
    convnet = every["mnist.convnet"]
    assert convnet.summary.startswith("The lecture's MNIST program")
    assert convnet.claim.startswith("about 1 % test error")
    assert "1.00 ± 0.07 %" in convnet.expect
    assert "python -m experiments.mnist.convnet --seeds 8\n" in convnet.commands


def test_minutes_are_those_of_the_plainest_record_and_of_a_seed_if_it_has_seeds(tmp_path, monkeypatch):
    assert course.minutes("mnist.convnet") == "0.9"  # 52.5 s
    assert course.minutes("mnist.lenet5") == "2.7"  # 483.6 s of three seeds
    assert course.minutes("imagenet.train").startswith("0.7 (--dataset digits32 ")
    assert course.minutes("history.initialisation") == "1.3"  # 76.4 s: all eight seeds of the plain command
    assert course.minutes("insight.inversion") == "0.8"  # 47.4 s: it trains nothing
    assert course.minutes("insight.saliency") == ""  # nothing was timed
    assert course.minutes("imagenet.classify") == ""


def test_what_is_to_come_is_said():
    assert course.is_to_come("scenes")
    assert course.is_to_come("generate.gan")
    assert not any(course.is_to_come(name) for name in ("mnist.convnet", "mnist", "`python -m dlc.data`"))
    words = [sys.executable, "-m", "experiments"]
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    said = subprocess.run(words, cwd=ROOT, env=ascii_only, capture_output=True, text=True, check=True).stdout
    assert "mnist.convnet" in said
    assert "generate.gan" in said.split("To come:")[1]


def test_the_page_of_the_course_is_what_make_results_writes():
    assert (ROOT / "docs" / "course.md").read_text() == "\n".join(course.page())  # else: make results


def test_the_gallery_is_what_make_gallery_writes_and_has_a_small_picture_of_each():
    summaries = {one.name: one.summary for one in course.experiments().values()}
    lines = list(gallery.page(ROOT, summaries))
    assert (ROOT / "docs" / "gallery.md").read_text() == "\n".join(lines)  # else: python -m experiments --write
    for name in (name for name in summaries if name.split(".")[0] in gallery.ROOMS):
        found = [line for line in lines if line.startswith(f"![{name}.")]
        assert found, name
        for line in found:
            path = ROOT / "docs" / re.search(r"\((.*)\)", line)[1]
            assert path.stat().st_size <= LARGEST, path


def test_peek_names_an_image_that_is_not_there():
    peek = import_module("experiments.cifar10.peek")
    with pytest.raises(UserError, match=r"^--image must be 0 to 1436, a row of digits32's training set, not 1437$"):
        peek.train(dataclasses.replace(peek.SMOKE, image=1437), Run())


# The floors: from every room only down. A room is a file or a folder of dlc/.

EFFECTS = {"run", "data", "weights", "process", "hosts", "files", "export", "tokens"}
PURE = {
    "train", "losses", "metrics", "optim", "batches", "augment", "prepare", "views", "generate", "sharding", "costs",
    "layers", "models", "analysis", "errors",
}  # fmt: skip
TOP = {"tasks", "__main__", "__init__"}
FLAX = {"layers", "models", "analysis"}  # the pure rooms that need it


def rooms():
    """(file, its room, the rooms that it imports) for every file of dlc/, however deep."""
    for path in sorted((ROOT / "dlc").rglob("*.py")):
        names = set(imported(path))
        used = {name.split(".")[1] for name in names if name.startswith("dlc.")}
        inside = path.relative_to(ROOT / "dlc").with_suffix("").parts[0]
        yield path, inside, used & (EFFECTS | PURE | TOP) - {inside}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_room_is_on_a_floor():
    found = {room for _, room, _ in rooms()}
    assert found == EFFECTS | PURE | TOP
    assert len([path for path, *_ in rooms()]) > 90  # the walk reaches the folders


def test_a_floor_imports_only_from_floors_below():
    for path, room, used in rooms():
        above = {"pure": EFFECTS | TOP, "effects": TOP, "top": set()}
        floor = "pure" if room in PURE else "effects" if room in EFFECTS else "top"
        assert not used & above[floor], path
        if room in PURE - FLAX:
            assert not [name for name in imported(path) if name.startswith("flax")], path
    for path in (ROOT / "experiments").glob("*/*.py"):
        if path.parent.name != "bench":
            assert not [name for name in imported(path) if name.startswith("experiments")], path


def test_no_rooms_import_each_other():
    graph = {}
    for _, room, used in rooms():
        graph.setdefault(room, set()).update(used)
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, naming the circle


def test_importing_the_library_is_light_and_changes_nothing():
    code = "import sys, os; before = dict(os.environ); import dlc.train, dlc.models.convnet; print(*sys.modules)\n"
    code += "assert dict(os.environ) == before"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"tyro", "matplotlib", "tensorflow_datasets", "orbax", "tensorboardX"} & set(done.stdout.split())
