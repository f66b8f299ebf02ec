"""What a terminal, a pipe and the environment may do to a run: output, paths from flags, platforms."""

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cli import assert_refused, environment, folder_of, here, python

from dlc.errors import UserError
from dlc.run import bench, flags, launch
from experiments.imagenet import classify

assert here  # a fixture

SOFTMAX = ("experiments.mnist.mlp", "--hidden", "--dataset", "digits", "--epochs", "1", "--seeds", "2")


# Output


@pytest.mark.parametrize("output", ["2>&1 | true", ">&- 2>&-", ">/dev/full 2>&1"])
def test_a_run_ends_well_whatever_becomes_of_its_output(tmp_path, output):
    if "/dev/full" in output and not os.path.exists("/dev/full"):
        pytest.skip("needs Linux's /dev/full")
    words = " ".join([sys.executable, "-m", *SOFTMAX, "--out", str(tmp_path)])
    script = f"set -o pipefail; {words} {output}"
    changes = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}  # which lacks the ± of the seeds
    done = subprocess.run(["bash", "-c", script], env=environment(**changes), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stderr
    assert {"result.json", "weights.safetensors"} <= {path.name for path in folder_of(tmp_path).iterdir()}


@pytest.mark.parametrize("words", ["dlc", "dlc.data", "experiments", "experiments.mnist.mlp --help"])
def test_what_only_prints_ends_well_without_an_output(words):
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m {words} >&-"], env=environment(), capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


# Paths


@dataclasses.dataclass(frozen=True)
class Paths:
    """Every form of a path in a flag."""

    text: Path | None = None
    out: Path = Path("~/runs")
    photos: tuple[Path, ...] = ()
    name: str = "~/kept"


def test_paths_begin_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    found = flags.expanded(Paths(Path("~/t.txt"), photos=(Path("~/a.jpg"), Path("b.jpg"))))
    assert found == Paths(tmp_path / "t.txt", tmp_path / "runs", (tmp_path / "a.jpg", Path("b.jpg")))
    with pytest.raises(
        UserError, match=r"~no-such-user/t.txt is in the home of a user that this machine does not know"
    ):
        flags.expanded(Paths(Path("~no-such-user/t.txt")))
    words = ["--out=~/o", "--weights", "~/w", "--classes", "~/c.txt", "~/a.jpg", "b.jpg"]
    default = classify.Config()
    config, options = flags.parse("imagenet.classify", "", "", default, default, flags.ModelOptions, words)
    assert (options.out, options.weights) == (tmp_path / "o", tmp_path / "w")
    assert (config.classes, config.photographs) == (tmp_path / "c.txt", (tmp_path / "a.jpg", Path("b.jpg")))


def test_runs_at_home_are_made_resumed_and_shown(tmp_path, monkeypatch, here):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert here(*SOFTMAX[:-2], "--out=~/runs")[0] == 0
    shutil.move(folder_of(tmp_path / "runs"), tmp_path / "mine")
    for flag in ("--resume", "--weights"):
        code, _, stderr = here(SOFTMAX[0], flag, "~/mine", *(["--out=~/shown"] if flag == "--weights" else []))
        assert code == 0, stderr
    assert not Path("~").exists()


def test_a_bench_writes_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    found = []

    def measured(config):
        found.append(config.out)
        return ()

    measured.__module__ = "experiments.bench.devices"
    __import__(measured.__module__)
    bench.launch(measured, Paths, argv=["--out=~/records"])
    assert found == [tmp_path / "records"]


def test_a_full_disk_ends_a_bench_with_a_sentence(tmp_path, monkeypatch, capsys):
    def measured(config):
        raise OSError(28, "No space left on device", "result.json")

    measured.__module__ = "experiments.bench.devices"
    with pytest.raises(SystemExit, match="2"):
        bench.launch(measured, Paths, argv=[])
    assert capsys.readouterr().err == "error: cannot write result.json: No space left on device\n"


def test_a_run_whose_configuration_was_damaged_meanwhile_ends_all_the_same(tmp_path, capsys):
    """It is said while an error is handled, and by the thread that ends the process at a second Ctrl-C."""
    (tmp_path / "config.json").write_text("{")
    launch._say_how_to_resume(launch.Console(stderr=True), "python x.py", tmp_path)
    assert capsys.readouterr() == ("", "")


# Platforms


@pytest.mark.parametrize("error", [AssertionError(), RuntimeError("no backend (set JAX_PLATFORMS='')\nmore")])
def test_a_platform_that_is_missing_is_named(monkeypatch, error):
    def fail():
        raise error

    monkeypatch.setattr(launch.jax, "default_backend", fail)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    why = " (no backend)" if str(error) else ""
    with pytest.raises(UserError) as refused:
        launch.require(None)
    assert str(refused.value) == f"JAX_PLATFORMS=cuda, but JAX finds no such device here: unset it{why}"


@pytest.mark.parametrize("words", ["mnist.mlp", "mnist.mlp --mesh data=2", "bench.devices"])
def test_jax_without_the_device_that_was_asked_for_is_a_sentence(tmp_path, words):
    result = python(*f"experiments.{words}".split(), "--out", tmp_path, JAX_PLATFORMS="nonsense")
    assert_refused(result, "JAX_PLATFORMS=nonsense, but JAX finds no such device here: unset it")
