"""The README and docs/ are correct: their programs run, their commands and links exist, the tree matches the files."""

import json
import re
import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from cli import folder_of, here

from dlc import tokens, weights
from dlc.models import table
from dlc.models.gpt import GPT, GPTConfig

assert here  # a fixture

ROOT = Path(__file__).parents[1]
PAGES = {path: path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
README = PAGES[ROOT / "README.md"]


def programs(page):
    return re.findall(r"```python\n(.*?)```", PAGES[ROOT / page], re.DOTALL)


MODEL, OWN = programs("README.md")
PUBLISHED, ASKED = programs("docs/weights.md")
(RATES,) = programs("docs/design.md")


def test_importing_a_model_takes_six_lines():
    assert len([line for line in MODEL.splitlines() if line]) <= 6
    names = {}
    exec(MODEL, names)
    assert names["logits"].shape == (8, 10)


def test_published_weights_write_on_and_answer(tmp_path, capsys):
    model = GPT(GPTConfig(vocab=270, context=64, layers=1, heads=2, width=8))
    weights.save_gpt2(tmp_path, model, model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"])
    tokens.train_bpe(["Attention is all you need"], 270).save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": "{{ messages[0].content }} {{ 'It' }}"})
    )
    names = {}
    exec(PUBLISHED.replace("FOLDER", str(tmp_path)), names)
    assert capsys.readouterr().out.startswith("Attention is")
    exec(ASKED.replace("FOLDER", str(tmp_path)), names)
    assert tokens.load(tmp_path).decode(names["prompt"][0]) == "What is a cat? It"
    assert names["written"].shape == (1, names["prompt"].size + 200)


def test_an_experiment_of_ones_own_takes_thirty_lines(capsys):
    assert len(RATES.splitlines()) <= 30
    names = {}
    exec(RATES, names)
    assert 0.03 < names["best"] < 3
    assert "the best of 200 learning rates" in capsys.readouterr().out


def test_an_experiment_with_train_and_show_takes_thirty_lines_too(tmp_path, monkeypatch, here):
    assert len([line for line in OWN.splitlines() if line]) <= 30
    (tmp_path / "digits.py").write_text(OWN)
    spec = spec_from_file_location("experiments.digits", tmp_path / "digits.py")
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "experiments.digits", module)
    spec.loader.exec_module(module)
    module.SMOKE = module.Config(epochs=1)
    errors = {}
    for name, flags in {"trained": [], "shown": ["--weights"], "begun": ["--epochs", 1, "--init-from"]}.items():
        words = [*flags, folder_of(tmp_path / "trained")] if flags else []
        code, _, stderr = here("experiments.digits", *words, "--out", tmp_path / name)
        assert code == 0, stderr
        result = json.loads((folder_of(tmp_path / name) / "result.json").read_text())
        errors[name] = result["figures"]["test_error"]
    assert errors["trained"] == errors["shown"] == pytest.approx(0.1, abs=0.03)  # the claim
    assert errors["begun"] == pytest.approx(errors["trained"], abs=0.02)  # after an epoch, which alone gives 0.2


def test_every_module_that_is_named_exists():
    text = "".join(PAGES.values())
    for module in set(re.findall(r"python -m ([a-z0-9_.]*[a-z0-9_])", text)):
        assert module == "pkg.thing" or find_spec(module), module  # that is the reader's own
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z]+)`|^make ([a-z]+) ", text, re.MULTILINE)) > {("run", ""), ("", "run")}
    assert {
        one or other for one, other in re.findall(r"`make ([a-z]+)`|^make ([a-z]+) ", text, re.MULTILINE)
    } <= targets
    assert set(re.findall(r"^# make ([a-z]+) ", (ROOT / "Makefile").read_text(), re.MULTILINE)) == targets  # make help


def test_every_file_that_is_linked_exists():
    """Links are relative to their page, so that they work in a checkout, on any host, and offline."""
    for page, text in PAGES.items():
        headings = {
            re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in re.findall(r"^#+ (.*)$", text, re.M)
        }
        for link, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
            assert (page.parent / link).exists(), (page, link)
            if anchor and not link:
                assert anchor in headings, (page, anchor)
    linked = set(re.findall(r"\]\(docs/([\w.]+)\)", README))
    assert linked == {path.name for path in (ROOT / "docs").iterdir() if path.is_file()}  # each page can be found


def test_the_readme_is_short_and_shows_before_it_tells():
    lines = README.splitlines()
    assert len(lines) <= 160
    assert sum(line.count("![") for line in lines[:30]) == 4
    assert len(re.findall(r"^\| `", README, re.MULTILINE)) == 5  # rows of results


def test_the_models_are_those_of_the_table():
    shown = PAGES[ROOT / "docs" / "models.md"].split(
        "<!-- models: dlc/models/table.py; tests/test_readme.py compares them -->\n"
    )[1]
    assert shown.split("<!-- end of models -->")[0] == table.markdown()  # to mend it, paste what this is


def test_the_tree_in_the_design_is_the_tree():
    tree = (ROOT / "docs" / "design.md").read_text().split("```\ndlc/\n")[1].split("```")[0]
    ours, experiments = tree.split("experiments/")
    for p in [*(ROOT / "dlc").glob("[!_]*.py")]:
        assert p.name in ours or p.name == "errors.py", p
    named = set(re.findall(r"\w+\.py", ours))
    assert named <= {p.name for p in (ROOT / "dlc").glob("*.py")}
    for folder in (p for p in (ROOT / "dlc").iterdir() if p.is_dir() and not p.name.startswith("_")):
        line = re.search(rf"^  {folder.name}/ .*(?:\n {{4,}}.*)*", ours, re.MULTILINE)
        assert line, folder
        words = set(re.findall(r"\w+", line[0]))
        if folder.name not in ("models", "data"):  # which are lists of nouns
            assert {p.stem for p in folder.glob("[!_]*.py")} <= words, folder
    for p in (ROOT / "experiments").glob("*/[!_]*.py"):
        if p.parent.name != "bench":
            assert p.stem in re.findall(r"\w+", experiments), p
