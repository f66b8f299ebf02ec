"""The package: what it installs, what each part of it needs, and the sentence for what is not installed."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from cli import environment, folder_of

from dlc import data, errors, metrics, tokens, weights
from dlc.errors import UserError

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Names as they are imported
NAMES = {"pillow": "PIL", "scikit-learn": "sklearn", "orbax-checkpoint": "orbax", "Jinja2": "jinja2"}
# PyTorch opens pickles, where it is installed; absl comes with tensorflow-datasets, requests with pooch, IPython with
# every notebook.
THEIRS = {"torch", "absl", "requests", "IPython"}


def imports_of(requirements):
    names = (re.match(r"[\w-]+", one)[0] for one in requirements)
    return {NAMES.get(name, name.replace("-", "_")) for name in names}


CORE = imports_of(PROJECT["dependencies"])
EXTRAS = {name: imports_of(extra) for name, extra in PROJECT["optional-dependencies"].items()}


def test_what_each_file_imports_is_a_dependency_or_asked_for_by_its_extra():
    found = set()
    for path in (ROOT / "dlc").rglob("*.py"):
        tree = ast.parse(path.read_text())
        words = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        words |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        used = {word.split(".")[0] for word in words} - set(sys.stdlib_module_names) - CORE - THEIRS - {"dlc"}
        asked = [ast.literal_eval(f"[{words}]") for words in re.findall(r"\bneeds\((\".*?)\)", path.read_text())]
        assert all(set(packages) <= EXTRAS[extra] for extra, *packages in asked), path
        room = path.relative_to(ROOT / "dlc").parts[0]
        allowed = EXTRAS["run"] if room in ("run", "tasks") else set()  # which import nothing without it
        assert used <= allowed.union(*(packages for _, *packages in asked)), path
        found |= used
    assert found == EXTRAS["run"] | EXTRAS["text"] | EXTRAS["pictures"] | EXTRAS["digits"]  # nothing is there in vain


MISSING = {
    "run": lambda: import_module("dlc.run"),
    "text": lambda: tokens.train_bpe(["a b"], 400),
    "text ": lambda: metrics.bleu(["a"], ["b"]),
    "text  ": lambda: weights.chat_prompt(".", []),
    "digits": lambda: data.digits.parse(28, 1),
    "pictures": lambda: import_module("dlc.data.stream").Batches([1], dict, batch=1),
}


@pytest.mark.parametrize("extra", MISSING)
def test_a_missing_package_is_a_sentence_that_names_the_extra(extra, monkeypatch):
    monkeypatch.setattr(errors.importlib.util, "find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "dlc.run")
    with pytest.raises(UserError, match=rf'^missing: .*; pip install "dlc\[{extra.strip()}\]" installs it'):
        MISSING[extra]()


def test_the_wheel_holds_the_library_only_and_says_whose_it_is():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert settings["packages"]["find"]["include"] == ["dlc*"]  # people have an experiments/ of their own
    assert (ROOT / "dlc" / "py.typed").exists()
    assert "py.typed" in settings["package-data"]["dlc"]
    assert PROJECT["license"] == "Apache-2.0"
    assert "Copyright 2026 the dlc authors" in (ROOT / "LICENSE").read_text()
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"version: {PROJECT['version']}\n" in citation
    assert f"license: {PROJECT['license']}\n" in citation
    assert "](" not in PROJECT["readme"]["text"]  # a link or picture there would be broken
    pinned = re.findall(r"^([\w-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert imports_of(pinned) >= CORE.union(*(EXTRAS[name] for name in ("run", "text", "pictures", "digits")))


# An experiment of one's own, wherever it lies

OWN = """
'''Nothing.

Claim: nothing happens.
'''
from dataclasses import dataclass
from dlc.run.launch import launch

@dataclass(frozen=True)
class Config:
    size: int = 3  # of it

def train(config, run):
    return {"size": config.size}

if __name__ == "__main__":
    launch(train, Config(), Config(size=1))
"""


@pytest.mark.parametrize("start", [["python", "my/thing.py"], ["python", "-m", "my.thing"]])
def test_an_experiment_of_ones_own_is_told_and_records_the_command_that_starts_it(start, tmp_path, monkeypatch):
    (tmp_path / "my").mkdir()
    (tmp_path / "my" / "thing.py").write_text(OWN.strip())
    monkeypatch.chdir(tmp_path)
    start_it = [sys.executable, *start[1:]]
    subprocess.run([*start_it, "--size", "4", "--out", "runs"], env=environment(), check=True)
    result = json.loads((folder_of("runs") / "result.json").read_text())
    assert result["command"] == " ".join([*start, "--size", "4", "--out", "runs"])
    assert result["experiment"] == start[-1].removeprefix("my/").removesuffix(".py")
    said = subprocess.run([*start_it, "--help"], env=environment(), check=True, capture_output=True, text=True).stdout
    assert f"usage: {' '.join(start)} " in said
