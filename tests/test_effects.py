"""The rest of the effects floor: figures, schedules, records, tables, timing."""

import dataclasses
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dlc import process
from dlc.errors import UserError
from dlc.prepare import mean_and_std, standardise
from dlc.run import pages, plot, record, timing
from dlc.run.run import Run
from experiments.cifar10.peek import histogram

ROOT = Path(__file__).parents[1]


# Figures


def test_curves_show_training_and_test_and_a_band_for_several_seeds():
    one = [{"step": 10 * i, "loss": 1 / i, "error": 0.1 / i} for i in (1, 2, 3)]
    one += [{"step": 30, "test_loss": 0.5, "test_error": 0.05}]
    axes = plot.curves(one, steps_per_epoch=10, unit="nats").axes
    assert [axis.get_ylabel() for axis in axes] == ["loss (nats)", "error (%)"]
    np.testing.assert_allclose(axes[1].lines[0].get_xydata(), [[1, 10], [2, 5], [3, 10 / 3]])
    assert not axes[0].collections
    assert plot.curves(one).axes[0].get_ylabel() == "loss"  # of squared errors and penalties
    several = [{"step": 10 * i, **{k: {"mean": 1 / i, "std": 0.1} for k in ("loss", "error")}} for i in (1, 2)]
    band = plot.curves(several, steps_per_epoch=10).axes[0].collections[0].get_paths()[0].vertices
    assert band[:, 1].max() == pytest.approx(1.1)


def test_curves_show_one_quantity_for_training_and_validation():
    smoothed = [{"step": 5, "loss": 2.58, "nll": 2.01}, {"step": 5, "validation_loss": 1.86}]
    (axis,) = plot.curves(smoothed, held_out="validation", unit="nats a token").axes
    assert axis.get_ylabel() == "negative log-likelihood (nats a token)"
    assert [line.get_ydata().item() for line in axis.lines] == [2.01, 1.86]


def test_an_epoch_lies_between_two_evaluations():
    several = [{"step": 14, "loss": 1.0}, {"step": 28, "test_loss": 1.0}, {"step": 56, "test_loss": 1.0}]
    assert plot.epoch(several) == 28
    assert plot.epoch(several[:2]) == 1  # it may have ended within the first epoch
    assert plot.epoch([]) == 1


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("cat", "cat"), (" the", "the"), ("\n", "↵"), ("\t ", "⇥␣"), ("a\nb", "a b"), ("$x$", r"\$x\$"),
        ("猫", "U+732B"), ("a\u200bb", "aU+200B b"), ("", ""), ("é", "é"), ("i" * 99, "i" * 22 + "…"),
    ],
)  # fmt: skip
def test_a_name_is_drawn_so_that_it_can_be_seen(name, shown):
    assert plot.written(name, inches=0.8) == shown


def test_mistakes_come_worst_first_and_name_both_answers():
    images = np.zeros((3, 4, 4, 1), np.uint8)
    logits = np.array([[2.0, 0.0], [9.0, 0.0], [0.0, 1.0]])
    figure = plot.mistakes(images, logits, np.array([1, 1, 1]), ("cat", "dog"))
    assert [text.get_text() for text in figure.axes[0].texts] == ["cat (100%)\ntrue: dog", "cat (88%)\ntrue: dog"]


def test_confusion_writes_the_counts_where_they_belong():
    axis = plot.confusion(np.array([[5, 1], [0, 7]]), ("a", "b")).axes[0]
    assert {(text.get_position(), text.get_text()) for text in axis.texts} == {
        ((0, 0), "5"),
        ((1, 0), "1"),
        ((1, 1), "7"),
    }


def test_filters_share_one_scale():
    kernel = np.linspace(-1, 3, 50).reshape(5, 5, 1, 2)
    (image,) = plot.filters(kernel).axes[0].images
    assert image.get_clim() == (-3, 3)
    shown = np.ma.filled(image.get_array(), np.nan)
    np.testing.assert_allclose(shown[:, :5], kernel[:, :, 0, 0])
    np.testing.assert_allclose(shown[:, 6:], kernel[:, :, 0, 1])
    assert np.isnan(shown[:, 5]).all()


def test_a_sheet_names_its_rows_and_keeps_every_pixel():
    images = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    axis = plot.sheet({"original": images, "smaller": images[:, 1:3, 1:3]}).axes[0]
    first, second = axis.texts
    assert [first.get_text(), second.get_text()] == ["original", "smaller"]
    shown = np.asarray(axis.images[0].get_array())
    np.testing.assert_array_equal(shown[:4, -9:], np.concatenate([images[0], np.full((4, 1, 3), 255), images[1]], 1))
    np.testing.assert_array_equal(shown[6:8, -8:-6], images[0, 1:3, 1:3])  # in the middle of its place
    assert (shown[5:, -9:][[0, -1]] == 255).all()
    assert (shown[:, :-9] == 255).all()  # the names' margin
    assert second.get_position()[0] < shown.shape[1] - 9


def test_a_grid_has_a_row_for_each_class_in_stacks_of_25():
    images = [np.full((2, 3, 3, 1), 2 * k, np.uint8) for k in range(60)]
    axis = plot.sheet({f"class {k}": some for k, some in enumerate(images)}, stacks=3).axes[0]
    shown = np.asarray(axis.images[0].get_array())
    for k, text in enumerate(axis.texts):
        assert text.get_text() == f"class {k}"
        x, y = text.get_position()
        assert (shown[int(y), int(np.ceil(x)) + 1] == 2 * k).all()
    assert len({text.get_position()[0] for text in axis.texts}) == 3


def test_a_histogram_shows_the_shares_of_each_value():
    images = np.zeros((1, 2, 2, 3), np.uint8)
    images[0, 0, 0] = 100, 200, 50
    figure = histogram(images)
    red, green, blue = (patch.get_data().values for patch in figure.axes[0].patches)
    assert (red[[0, 100]] == [75, 25]).all()
    assert green[200] == blue[50] == 25
    assert figure.legends[0].texts[0].get_text() == "red: mean 25.0, deviation 43.3"


# Schedules and images


def test_standardised_images_have_mean_0_and_deviation_1():
    images = np.random.default_rng(0).integers(0, 256, (20, 5, 5, 1), dtype=np.uint8)
    mean, std = mean_and_std(images)
    np.testing.assert_allclose((mean, std), ((images / 255).mean(), (images / 255).std()), rtol=1e-9)
    out = np.asarray(standardise(mean, std)(images))
    np.testing.assert_allclose((out.mean(), out.std()), (0, 1), atol=1e-5)


# Records and tables


def test_a_summary_is_a_number_or_mean_and_sample_deviation():
    assert record.summary(0.5) == 0.5
    assert record.summary([1.0, 3.0]) == {"mean": 2.0, "std": pytest.approx(2**0.5), "values": [1.0, 3.0]}
    assert record.show("test_error", 0.0123) == "1.23 %"
    assert record.show("test_error", {"mean": 0.01, "std": 0.001}) == "1.00 ± 0.10 %"
    assert record.show("loss", 0.012345) == "0.01235"


@dataclasses.dataclass(frozen=True)
class Tokens:
    encoding: str = "characters"
    dataset: str = "tiny_shakespeare"
    seed: int = 0


@pytest.mark.parametrize(
    ("about", "dataset", "encoding", "figures", "shown"),
    [
        (("tiny_shakespeare", "characters"), "tiny_shakespeare", "characters", {"loss": 1}, True),
        (("tiny_shakespeare", "characters"), "tiny_shakespeare", "bpe", {"loss": 1}, False),  # nats a token
        (("tiny_shakespeare", "characters"), "mine.txt", "characters", {"loss": 1}, False),
        (("tiny_shakespeare",), "tiny_shakespeare", "bpe", {"loss": 1}, True),
        (("tiny_shakespeare",), "tiny_shakespeare", "bpe", {}, False),  # nothing was measured
        (("tiny_shakespeare",), None, "bpe", {"loss": 1}, False),  # shown, not trained: the flag's default says nothing
        ((), "mine.txt", "bpe", {"loss": 1}, True),
        ((), None, "bpe", {}, False),
    ],
)
def test_a_claim_is_recorded_only_beside_what_it_speaks_of(about, dataset, encoding, figures, shown):
    run = Run()
    part = run.part("seed-0")  # what a part says is said of the whole
    part.facts = {"dataset": dataset} if dataset else {}
    result = record.finish(run, "x", "1.88 nats", Tokens(encoding), figures, "", about)
    assert result["claim"] == ("1.88 nats" if shown else None)


def finished_run(folder, **changes):
    folder.mkdir(parents=True)
    result = {
        "experiment": "mnist.convnet", "claim": "about 1 %", "figures": {"test_error": 0.01}, "seeds": [0],
        "seconds": {"train": 1.0}, "dataset": "digits",
        **record.origin("python -m experiments.mnist.convnet --seeds 2 --hidden 3 4 --out=x --save-every 0"), **changes,
    }  # fmt: skip
    record.write(folder, result)
    return folder


def finished_bench(folder, **changes):
    result = json.loads((finished_run(folder, bench="steps", **changes) / "result.json").read_text())
    del result["experiment"]
    record.write(folder, result)
    return folder


def test_a_result_without_a_claim_has_an_empty_cell(tmp_path):
    pages.add(tmp_path, finished_run(tmp_path / "run", claim=None, dataset="cifar10"))
    assert "3 4` |  | **test error 1.00 %** on cifar10 |" in pages.tables(tmp_path / "results")[0]


def test_a_result_names_files_without_their_place(tmp_path):
    config = {
        "images": str(tmp_path / "photos"),
        "files": [str(tmp_path / "a.png"), "b.png"],
        "lr": 0.1,
        "mesh": "data=1",
    }
    added = pages.add(tmp_path, finished_run(tmp_path / "run", config=config))
    expected = {"images": "photos", "files": ["a.png", "b.png"], "lr": 0.1, "mesh": "data=1"}
    assert json.loads(added.read_text())["config"] == expected


def test_results_are_written_from_records(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "FIRST", ("python -m experiments.mnist.convnet --seeds 2 --hidden 3 4",))
    (tmp_path / "README.md").write_text(f"# Title\n{pages.BEGIN}\nold\n{pages.END}\nrest\n")
    pin(tmp_path, importlib.metadata.version("jaxlib"))
    table = {"columns": ["ms"], "rows": {"ours": {"ms": "1.0"}}, "method": "how", "title": "A step"}
    runs = [str(finished_run(tmp_path / "run")), str(finished_bench(tmp_path / "timing", **table))]
    (tmp_path / "run" / "figures").mkdir()
    (tmp_path / "run" / "figures" / "curves.png").write_bytes(b"PNG")
    assert pages.main(runs, root=tmp_path) == 0
    assert {p.name for p in (tmp_path / "results").iterdir()} == {
        "mnist.convnet.seeds-2.hidden-3-4.cpu.json", "bench.steps.seeds-2.hidden-3-4.cpu.json"
    }  # fmt: skip
    assert (tmp_path / "docs" / "figures" / "mnist.convnet.seeds-2.hidden-3-4.cpu.curves.png").read_bytes() == b"PNG"
    page, readme = (tmp_path / "docs" / "results.md").read_text(), (tmp_path / "README.md").read_text()
    for text in (page, readme):
        row = "| `mnist.convnet --seeds 2 --hidden 3 4` | about 1 % | **test error 1.00 %** on digits | 1 | 1.0 s |"
        assert row in text
    assert "| ours | 1.0 |" in page
    assert "| ours | 1.0 |" not in readme
    assert readme.startswith(f"# Title\n{pages.BEGIN}\n")
    assert readme.endswith(f"{pages.END}\nrest\n")
    assert "old" not in readme
    pages.write(tmp_path)
    assert (tmp_path / "README.md").read_text() == readme


def test_the_picture_named_after_an_experiment_and_animations_are_kept_small(tmp_path):
    folder = finished_run(tmp_path / "run")
    (folder / "figures").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (500, 600, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "figures" / "convnet.png")
    (folder / "figures" / "training.gif").write_bytes(b"GIF")
    (folder / "figures" / "other.png").write_bytes(b"PNG")
    pages.add(tmp_path, folder)
    kept = {path.name.split("cpu.")[1]: path for path in (tmp_path / "docs" / "figures").glob("*")}
    assert kept.keys() == {"convnet.png", "training.gif"}
    assert kept["convnet.png"].stat().st_size <= pages.LARGEST < (folder / "figures" / "convnet.png").stat().st_size
    with Image.open(kept["convnet.png"]) as picture:
        assert picture.width > 300


def pin(root, jaxlib):
    (root / "constraints.txt").write_text(f"jax==0.1.2\njaxlib=={jaxlib}\njaxtyping==0.3\n")


def test_a_benchmark_with_another_jaxlib_is_kept_beside_the_first(tmp_path):
    table = {"columns": ["ms"], "method": "how", "title": "A step"}
    pin(tmp_path, "0.10.2")
    for i, jaxlib in enumerate(("0.12.0.1", "0.10.2", "0.10.1")):
        versions = {"python": f"3.1{i}", "jaxlib": jaxlib, "numpy": "2", "torch": "2.13.0"}
        rows = {"ours": {"ms": str(i)}}
        pages.add(tmp_path, finished_bench(tmp_path / str(i), **table, rows=rows, versions=versions))
    name = "bench.steps.seeds-2.hidden-3-4.cpu"
    assert {p.stem for p in (tmp_path / "results").iterdir()} == {name, f"{name}.jaxlib-0.12"}
    page = pages.tables(tmp_path / "results")[0]
    assert page.count("## A step") == 1
    assert page.index("| ours | 2 |") < page.index("python 3.12, jaxlib 0.10.1, torch 2.13.0.")
    assert page.index("python 3.12, jaxlib") < page.index("| ours | 0 |") < page.index("python 3.10, jaxlib 0.12.0.1")


def test_the_readme_has_five_rows_and_each_has_its_record(tmp_path):
    commands = [json.loads(path.read_text())["command"] for path in (ROOT / "results").glob("*.json")]
    assert len(pages.FIRST) == 5
    assert set(pages.FIRST) <= set(commands)
    (tmp_path / "README.md").write_text(f"{pages.BEGIN}\n{pages.END}\n")
    assert pages.main([str(finished_run(tmp_path / "run"))], root=tmp_path) == 0
    assert "mnist.convnet --seeds 2" in (tmp_path / "docs" / "results.md").read_text()
    assert "mnist.convnet" not in (tmp_path / "README.md").read_text()


def test_a_record_that_is_missing_or_damaged_is_named(tmp_path):
    with pytest.raises(UserError, match=r"has no result\.json that can be read"):
        pages.add(tmp_path, tmp_path)
    (tmp_path / "results").mkdir()
    for harm in ("{", "{}"):
        (tmp_path / "results" / "bad.json").write_text(harm)
        with pytest.raises(UserError, match=r"bad\.json is damaged: restore it, or delete it"):
            pages.tables(tmp_path / "results")


def test_the_pages_in_the_repository_are_what_the_records_give(tmp_path):
    for name in ("README.md", "results"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    pages.write(tmp_path)
    assert (tmp_path / "README.md").read_text() == (ROOT / "README.md").read_text()
    assert (tmp_path / "docs" / "results.md").read_text() == (ROOT / "docs" / "results.md").read_text()


# Timing and the process


def test_interleaving_takes_turns_and_drops_the_warm_up():
    calls = []

    def form(name):
        return lambda: calls.append(name) or float(len(calls))

    times = timing.interleaved({"a": form("a"), "b": form("b")}, rounds=2, warmup=1)
    assert calls == ["a", "b"] * 3
    np.testing.assert_array_equal(times["a"], [3, 5])
    assert timing.ratios(times, "a")["b"] == pytest.approx(5 / 4)


def test_a_worker_that_dies_is_named():
    worker = timing.Worker("dlc.no_such_module")
    with pytest.raises(UserError, match=r"dlc\.no_such_module ended before it had measured anything"):
        worker.measure()
    worker.close()


def test_a_command_that_fails_says_why():
    with pytest.raises(UserError, match="failed: no such luck"):
        timing.command([sys.executable, "-c", "import sys; sys.exit('no such luck')"])
    seconds, printed = timing.command([sys.executable, "-c", "print('done')"])
    assert seconds > 0
    assert printed == "done\n"


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc is Linux's")
def test_malloc_is_set_unless_the_user_has():
    code = "from dlc import process; print(process.keep_freed_memory())"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    for extra, expected in (({}, "True"), ({"MALLOC_ARENA_MAX": "4"}, "False")):
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**environment, **extra},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == expected


def test_preparing_keeps_what_the_user_has_set(monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/elsewhere")
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", raising=False)
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    process.prepare()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "/elsewhere"
    assert os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] == "0"
