"""Resuming: with other flags, for longer, under other versions, with a damaged log; what may go into the results."""

import dataclasses
import json
import os
import shutil
import subprocess

import jax.numpy as jnp
import numpy as np
import pytest
from cli import assert_refused, assert_same_weights, folder_of, here, lines

from dlc import files
from dlc.errors import Stopped, UserError
from dlc.run import flags, pages, record
from dlc.run.fit import Plan, fit
from dlc.run.run import Run
from dlc.tasks import images
from experiments.imagenet import train as classes

assert here  # a fixture

MLP = "experiments.mnist.mlp"
SOFTMAX = (MLP, "--hidden", "--dataset", "digits", "--lr", "0.02", "--epochs")


def result_of(folder):
    return json.loads((folder / "result.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of four epochs, made once and copied for each test."""
    return tmp_path_factory.mktemp("four")


@pytest.fixture
def four(finished, here, tmp_path):
    if not list(finished.glob("*/*")):
        code, _, stderr = here(*SOFTMAX, 4, "--out", finished)
        assert code == 0, stderr
    return shutil.copytree(folder_of(finished), tmp_path / "four")


def test_a_finished_run_becomes_longer_and_is_then_the_longer_run(four, tmp_path, here):
    code, _, stderr = here(*SOFTMAX, 6, "--out", tmp_path / "whole")
    assert code == 0, stderr
    code, _, stderr = here(MLP, "--resume", four, "--epochs", 6)
    assert code == 0, stderr
    assert_same_weights(folder_of(tmp_path / "whole"), four)
    one, other = result_of(folder_of(tmp_path / "whole")), result_of(four)
    assert one["figures"] == other["figures"]
    assert one["config"] == other["config"]
    assert other["command"].endswith("--epochs 6")
    assert "--epochs 4" not in other["command"]
    code, _, stderr = here(MLP, "--resume", four)  # the new length is the run's own
    assert code == 0, stderr
    assert_refused(here(MLP, "--resume", four, "--epochs", 4), "started with --epochs 6 .not 4.: .*only become longer")


def test_a_run_goes_on_within_a_group_of_steps(tmp_path):
    def trained(folder, steps, resume=False):
        run = Run(folder, resume)
        seen = []

        def batches(first, count):
            seen.append((first, count))
            return np.arange(first, first + count, dtype=np.float32)

        state = fit(run, {"sum": jnp.float32(0)}, lambda s, b: ({"sum": 2 * s["sum"] + b}, {}), batches, Plan(steps))
        run.close()
        return float(state["sum"]), seen[-1]

    whole, _ = trained(None, 130)
    trained(tmp_path, 120)
    assert trained(tmp_path, 130, resume=True) == (whole, (120, 10))


def test_flags_that_only_say_how_to_compute_may_differ_and_are_kept(tmp_path):
    def parsed(*argv):
        words = ["--resume", str(tmp_path), *argv]
        return flags.parse("imagenet.train", "", "", classes.Config(), classes.SMOKE, flags.ParallelOptions, words)

    begun = classes.Config(workers=8, epochs=3)
    command = "python -m experiments.imagenet.train --workers 8 --mesh=data=2 --epochs 3"
    flags.save(tmp_path, "imagenet.train", begun, command, flags.ParallelOptions(mesh="data=2"))
    config, options = parsed("--workers", "0", "--mesh", "fsdp=4")
    assert config == dataclasses.replace(begun, workers=0)
    assert options.mesh == "fsdp=4"
    assert flags.resumed(tmp_path, "imagenet.train", config) == (
        "python -m experiments.imagenet.train --mesh=data=2 --epochs 3 --workers 0"
    )
    assert parsed().config == config  # those of the run now
    assert parsed().options.mesh == "data=2"  # that which it began with
    with pytest.raises(UserError, match=r"with --epochs 3 \(not 4\): .*; what it has learnt so far depends on that"):
        parsed("--epochs", "4")


def test_flags_with_which_a_run_cannot_go_on_are_not_kept(four, here, monkeypatch):
    def fail(*arguments):
        raise UserError("there is no such device")

    before = (four / "config.json").read_bytes()
    monkeypatch.setattr(images, "fit", fail)
    assert here(MLP, "--resume", four, "--epochs", 9)[0] == 2
    assert (four / "config.json").read_bytes() == before


def test_a_run_that_something_else_stopped_says_how_to_continue(tmp_path, here, monkeypatch):
    def fail(*arguments):
        raise Stopped("a worker process has died: continue with fewer --workers, or 0")

    monkeypatch.setattr(images, "fit", fail)
    code, _, stderr = here(MLP, "--smoke", "--out", tmp_path)
    folder = folder_of(tmp_path)
    assert code == 2
    assert stderr.splitlines()[-2:] == [
        "error: a worker process has died: continue with fewer --workers, or 0",
        f"continue with: python -m {MLP} --resume {folder}",
    ]


# Provenance


def test_looking_at_a_finished_run_changes_nothing_that_its_record_says(four, here, monkeypatch):
    before = result_of(four)
    monkeypatch.setattr(record, "versions", lambda *extra: {"jax": "9.9.9"})
    monkeypatch.setattr(record, "commit", lambda file=None: None)
    code, _, stderr = here(MLP, "--resume", four)
    assert code == 0, stderr
    assert result_of(four) == before
    (four / "result.json").unlink()  # killed after its last step
    code, _, stderr = here(MLP, "--resume", four)
    assert code == 0, stderr
    after = result_of(four)
    assert {name: after[name] for name in ("versions", "commit", "device")} == {
        name: before[name] for name in ("versions", "commit", "device")
    }


def test_a_run_that_goes_on_under_other_versions_lists_both(four, here, monkeypatch):
    first = result_of(four)["versions"]["jax"]
    monkeypatch.setattr(record, "versions", lambda *extra: {"jax": "9.9.9", "flax": "1"})
    monkeypatch.setattr(record, "commit", lambda file=None: "cafe")
    code, _, stderr = here(MLP, "--resume", four, "--epochs", 5)
    assert code == 0, stderr
    after = result_of(four)
    assert after["versions"]["jax"] == f"{first}, then 9.9.9"
    assert after["commit"].endswith("cafe")


def test_the_commit_is_that_of_the_experiments_checkout(tmp_path):
    git = ["git", "-c", "user.name=a", "-c", "user.email=b", "-C", str(tmp_path)]
    file = tmp_path / "own" / "experiment.py"
    file.parent.mkdir()
    file.write_text("")
    assert record.commit(file) is None
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True)
    head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], check=True, capture_output=True, text=True).stdout
    assert record.commit(file) == head.strip()
    index = tmp_path / ".git" / "index"
    before = index.read_bytes()
    os.utime(file, (1, 1))
    assert record.commit(file) == head.strip()
    assert index.read_bytes() == before  # git would write down that the file's time is another one
    file.write_text("changed")
    assert record.commit(file) == f"{head.strip()}+changes"
    (tmp_path / ".gitignore").write_text(".venv\n")
    (tmp_path / ".venv").mkdir()
    assert record.commit(tmp_path / ".venv" / "installed.py") is None


def test_a_record_that_is_older_than_its_run_is_no_result(four, tmp_path):
    config = files.unsealed((four / "config.json").read_text())
    config["config"]["epochs"] = 6
    (four / "config.json").write_text(files.sealed(config))
    with pytest.raises(UserError, match="is being trained longer, and its record is an earlier one"):
        pages.add(tmp_path, four)


def test_what_is_no_result_does_not_go_into_the_pages(tmp_path, here, capsys):
    here(MLP, "--smoke", "--epochs", 1, "--out", tmp_path / "small")
    folder = folder_of(tmp_path / "small")
    (tmp_path / "README.md").write_text(f"{pages.BEGIN}\n{pages.END}\n")
    with pytest.raises(UserError, match="is the small version of an experiment, not a result: run it without --smoke"):
        pages.add(tmp_path, folder)
    here(MLP, "--weights", folder, "--out", tmp_path / "shown")
    with pytest.raises(UserError, match=f"shows what the run {folder} has learnt, and trained nothing: add that one"):
        pages.add(tmp_path, folder_of(tmp_path / "shown"))
    for harm in ("[]", '{"experiment": "mnist.mlp"}', '{"command": "python -m x"}'):
        (folder / "result.json").write_text(harm)
        assert pages.main([str(folder)], root=tmp_path) == 2
        assert capsys.readouterr().err == f"error: {folder}/result.json is damaged: restore it, or delete it\n"
    (tmp_path / "README.md").unlink()
    assert pages.main([str(folder)], root=tmp_path) == 2
    assert f"error: {tmp_path} is not a checkout of dlc" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("harm", ['["a"]', '{"a": 1}', '[{"device": 1, "versions": "x", "commit": 3}]'])
def test_what_is_damaged_about_the_training_is_measured_again(four, here, harm):
    (four / "origins.json").write_text(harm)
    (four / "result.json").write_text(json.dumps(result_of(four) | {"seconds": 3}))
    code, _, stderr = here(MLP, "--resume", four)
    assert code == 0, stderr
    assert result_of(four)["versions"] == record.versions()


@pytest.mark.parametrize("name", ["checkpoints", "figures"])
def test_a_file_where_a_folder_belongs_is_named(four, here, name):
    shutil.rmtree(four / name)
    (four / name).write_text("")
    code, _, stderr = here(MLP, "--resume", four, "--epochs", 5)
    assert (code, f"error: cannot write {four / name}: " in stderr) == (2, True), stderr


# Damaged logs


@pytest.mark.parametrize("harm", ["missing", "empty", "cut", "broken", "folder", "others"])
def test_a_run_goes_on_without_its_log_and_says_so(four, here, harm):
    before = result_of(four)
    path = four / "log.jsonl"
    kept = path.read_bytes().splitlines(keepends=True)
    path.unlink()
    other = b'{"step": 14, "seconds": 3}\n{"step": 28, "loss": "low"}\n'
    content = {"empty": b"", "cut": b"".join(kept[:3])[:-9], "broken": kept[0] + b"{\n" + kept[2], "others": other}
    if harm in content:
        path.write_bytes(content[harm])
    elif harm == "folder":
        path.mkdir()
    code, _, stderr = here(MLP, "--resume", four)
    if harm == "folder":
        assert (code, f"cannot write {path}" in stderr) == (2, True)
        return
    assert code == 0, stderr
    first = {"cut": 15, "broken": 15}.get(harm, 1)
    assert f"log.jsonl is damaged: steps {first} to 56 are missing from it and from the curves" in stderr
    assert result_of(four) == before
    code, _, stderr = here(MLP, "--resume", four, "--epochs", 5)
    assert code == 0, stderr
    assert lines(four)[-1]["step"] == 70
