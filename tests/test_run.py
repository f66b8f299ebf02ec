"""Runs as a person meets them: what they leave behind, how they stop and continue, and what they say of mistakes."""

import contextlib
import dataclasses
import json
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from cli import ROOT, assert_refused, assert_same_weights, environment, finish, folder_of, here, lines, python, start
from cli import weights as newest

from dlc import __main__, weights
from dlc.models.mlp import MLP
from dlc.run.clock import Clock
from dlc.run.log import Log
from dlc.run.run import Run
from dlc.run.signals import Interrupted
from dlc.weights.checkpoint import Checkpoints
from experiments.mnist import mlp

assert here  # a fixture

MLP_ = "experiments.mnist.mlp"
SOFTMAX = ("--hidden", "--dataset", "digits", "--lr", "0.02", "--save-every", "0", "--epochs")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One uninterrupted run, with what it printed."""
    out = tmp_path_factory.mktemp("whole")
    code, stdout, stderr = python(MLP_, *SOFTMAX, 30, "--out", out)
    assert code == 0, stderr
    return folder_of(out), stdout, stderr


def test_a_run_leaves_a_complete_folder(whole):
    folder, stdout, _ = whole
    assert {p.name for p in folder.iterdir()} == {
        ".lock", "config.json", "log.jsonl", "origins.json", "checkpoints", "model.json", "weights.safetensors",
        "figures", "result.json", *(p.name for p in folder.glob("events.*")),
    }  # fmt: skip
    assert {p.name for p in (folder / "figures").iterdir()} == {
        "curves.png", "confusion.png", "mistakes.png", "filters.png"
    }  # fmt: skip
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in (folder / "figures").iterdir())
    assert len(list(folder.glob("events.*"))) == 1
    result = json.loads((folder / "result.json").read_text())
    assert result["experiment"] == "mnist.mlp"
    assert result["dataset"] == "digits"
    assert result["claim"] is None  # that of the experiment is about MNIST
    assert "claim" not in stdout
    assert result["config"]["epochs"] == 30
    assert result["seeds"] == [0]
    assert result["seconds"].keys() == {"compile", "start", "train", "evaluate", "save"}
    assert result["seconds_to_first_step"] > 0
    assert 1e8 < result["peak_memory_bytes"] < 1.5e9
    assert result["device"]["platform"] == "cpu"
    assert {"jax", "jaxlib", "flax", "optax", "python"} <= result["versions"].keys()
    assert re.fullmatch(r"[0-9a-f]{12}(\+changes)?", result["commit"] or "0" * 12)
    assert result["command"].startswith(f"python -m {MLP_} --hidden --dataset digits --lr 0.02 --save-every 0")
    measured = [line["test_error"] for line in lines(folder) if "test_error" in line]
    assert len(measured) == 30
    assert measured[-1] == pytest.approx(result["figures"]["test_error"])
    assert 0 < result["figures"]["test_error"] < 0.2
    assert f"{100 * result['figures']['test_error']:.2f} %" in stdout
    assert str(folder / "result.json") in stdout


def test_the_log_has_a_line_for_every_report(whole):
    folder, _, stderr = whole
    reports = [line for line in lines(folder) if "loss" in line]
    assert [line["step"] for line in reports] == list(range(14, 421, 14))
    assert reports[-1]["loss"] < reports[0]["loss"]
    assert "420/420" in stderr  # the plain line that replaces the bar where there is no terminal
    assert "left" in stderr


# Weights


def test_weights_are_read_without_configuration_or_optimizer(whole, tmp_path):
    shutil.copy(whole[0] / "weights.safetensors", tmp_path)
    saved = newest(whole[0])
    for source in (whole[0], tmp_path, tmp_path / "weights.safetensors"):
        model, variables = weights.load(source)
        assert model == MLP((), 10, dtype="float32")
        np.testing.assert_array_equal(variables["params"]["dense1"]["kernel"], saved["params/dense1/kernel"])


def test_the_test_set_is_evaluated_once_an_epoch_and_not_again_for_the_figures(monkeypatch, tmp_path):
    timed, spent = Clock.timed, []
    monkeypatch.setattr(Clock, "timed", lambda self, name, *rest: spent.append(name) or timed(self, name, *rest))
    run = Run(tmp_path)
    with contextlib.closing(run):
        figures = mlp.train(dataclasses.replace(mlp.SMOKE, hidden=(), epochs=2), run)
    assert spent.count("evaluate") == 2
    assert float(figures["test_error"]) == run.history[-1]["test_error"]
    assert (tmp_path / "figures" / "confusion.png").exists()


def test_weights_are_evaluated_without_training(whole, tmp_path, here):
    code, stdout, stderr = here(MLP_, "--weights", whole[0], "--out", tmp_path)
    assert code == 0, stderr
    before, after = (json.loads((f / "result.json").read_text()) for f in (whole[0], folder_of(tmp_path)))
    assert before["figures"] == after["figures"]
    assert after["dataset"] == "digits"  # that of the run
    assert after["train_flops"] is None
    assert after["weights"] == str(whole[0])
    assert f"{100 * before['figures']['test_error']:.2f} %" in stdout
    assert "train" not in after["seconds"] or not after["seconds"]["train"]
    assert {p.name for p in (folder_of(tmp_path) / "figures").iterdir()} == {
        "curves.png", "confusion.png", "mistakes.png", "filters.png"
    }  # fmt: skip
    curves = (folder / "figures" / "curves.png" for folder in (whole[0], folder_of(tmp_path)))
    assert len({path.read_bytes() for path in curves}) == 1  # drawn again from the log
    assert_refused(here(MLP_, "--resume", folder_of(tmp_path)), "only showed weights, and has nothing to continue")


def test_a_file_in_a_runs_folder_is_shown_as_the_run_is_and_other_models_are_refused(whole, tmp_path, here):
    code, _, stderr = here(MLP_, "--weights", whole[0] / "weights.safetensors", "--out", tmp_path)
    assert code == 0, stderr
    before, after = (json.loads((f / "result.json").read_text()) for f in (whole[0], folder_of(tmp_path)))
    assert after["dataset"] == "digits"  # that of the run, not the default
    assert before["figures"] == after["figures"]
    result = here("experiments.mnist.convnet", "--weights", whole[0], "--out", tmp_path)
    assert_refused(result, "has weights of MLP, but this experiment shows Convnet")


def test_a_flag_that_has_no_meaning_with_weights_is_refused(whole, tmp_path, here):
    result = here(MLP_, "--weights", whole[0], "--lr", 0.5, "--epochs", 3, "--out", tmp_path)
    assert_refused(result, "leave out --epochs, --lr: --weights does not train, so that would have no effect")
    result = here(MLP_, "--weights", whole[0], "--smoke")
    assert_refused(result, "leave out --smoke: the configuration is that of the run")
    result = here(MLP_, "--weights", whole[0], "--resume", whole[0])
    assert_refused(result, "--resume and --weights exclude each other: leave one of them out")
    result = here("experiments.cifar10.peek", "--weights", whole[0])
    assert_refused(result, "Unrecognized options: --weights")
    result = here("experiments.mnist.convnet", "--weights", tmp_path / "nowhere", "--out", tmp_path)
    assert_refused(result, "nowhere does not exist: give the folder of a run")


def test_training_begins_from_weights(whole, tmp_path, here):
    code, _, stderr = here(MLP_, *SOFTMAX, 1, "--init-from", whole[0], "--out", tmp_path)
    assert code == 0, stderr
    first = lines(folder_of(tmp_path))[0]
    assert first["loss"] == pytest.approx(lines(whole[0])[-2]["loss"], rel=0.05)  # where the other run ended
    result = here(MLP_, *SOFTMAX, 1, "--hidden", 5, "--init-from", whole[0], "--out", tmp_path / "other")
    assert_refused(result, "has shape|has no params/")
    assert not list((tmp_path / "other").glob("*/*"))


def test_killed_before_the_first_checkpoint_it_starts_from_the_same_beginning(whole, tmp_path, here):
    words = (*SOFTMAX, 2, "--init-from", whole[0], "--out", tmp_path)
    code, *_ = python("killed", "SIGKILL", 14, MLP_, *words)  # at the first report
    assert code == -signal.SIGKILL
    code, _, stderr = here(MLP_, "--resume", folder_of(tmp_path))
    assert code == 0, stderr
    assert "no checkpoint yet: starting from the beginning" in stderr
    assert lines(folder_of(tmp_path))[0]["loss"] == pytest.approx(lines(whole[0])[-2]["loss"], rel=0.05)


def test_several_seeds_begin_from_the_same_weights(whole, tmp_path, here):
    words = (*SOFTMAX, 1, "--seeds", 2, "--init-from", whole[0])
    code, _, stderr = here(MLP_, *words, "--out", tmp_path)
    assert code == 0, stderr
    first = lines(folder_of(tmp_path))[0]["loss"]
    assert first["mean"] == pytest.approx(lines(whole[0])[-2]["loss"], rel=0.05)
    _, variables = weights.load(folder_of(tmp_path))
    assert variables["params"]["dense1"]["kernel"].shape == (784, 10)  # the first seed's


# Seeds


def test_eight_seeds_become_mean_and_standard_deviation(tmp_path, here):
    code, stdout, stderr = here(MLP_, *SOFTMAX, 2, "--seeds", 3, "--out", tmp_path)
    assert code == 0, stderr
    figure = json.loads((folder_of(tmp_path) / "result.json").read_text())["figures"]["test_error"]
    assert len(figure["values"]) == 3
    assert figure["mean"] == pytest.approx(np.mean(figure["values"]))
    assert figure["std"] == pytest.approx(np.std(figure["values"], ddof=1))
    assert re.search(r"test error +\d+\.\d\d ± \d+\.\d\d %", stdout)
    assert all(set(line["loss"]) == {"mean", "std", "values"} for line in lines(folder_of(tmp_path)) if "loss" in line)


def test_a_seed_among_many_is_that_seed_alone(tmp_path, here):
    here(MLP_, *SOFTMAX, 3, "--seeds", 2, "--out", tmp_path / "two")
    here(MLP_, *SOFTMAX, 3, "--seed", 1, "--out", tmp_path / "one")
    two, one = (json.loads((folder_of(tmp_path / n) / "result.json").read_text())["figures"] for n in ("two", "one"))
    assert two["test_error"]["values"][1] == pytest.approx(one["test_error"], abs=1 / 360)


# Stopping and continuing


def assert_stopped(result, status, folder):
    code, _, stderr = result
    assert code == status
    assert f"continue with: python -m {MLP_} --resume {folder}" in stderr
    assert "Traceback" not in stderr
    assert np.max(newest(folder)["step"]) == max(line["step"] for line in lines(folder))


def test_ctrl_c_saves_and_says_how_to_resume_and_the_weights_can_be_read(tmp_path, here):
    result = python("killed", "SIGINT", 42, MLP_, *SOFTMAX, 30, "--seeds", 2, "--out", tmp_path)
    folder = folder_of(tmp_path)
    assert_stopped(result, 130, folder)
    assert not (folder / "weights.safetensors").exists()
    model, variables = weights.load(folder)
    assert model == MLP((), 10, dtype="float32")
    np.testing.assert_array_equal(variables["params"]["dense1"]["kernel"], newest(folder)["params/dense1/kernel"][0])
    code, _, stderr = here(MLP_, "--weights", folder, "--out", tmp_path / "shown")
    assert code == 0, stderr


@pytest.mark.parametrize(("how", "steps"), [("SIGTERM", [140]), ("SIGKILL", [140, 280])])
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(whole, tmp_path, here, how, steps):
    """To the bit. The run is cut off once or twice; then it is left to finish."""
    words = (*SOFTMAX, 30, "--out", tmp_path)
    for step in steps:
        result = python("killed", how, step, MLP_, *words)
        if how == "SIGTERM":
            assert_stopped(result, 143, folder_of(tmp_path))
        else:
            assert result[0] == -signal.SIGKILL
        words = ("--resume", folder_of(tmp_path), "--save-every", 0)
    code, _, stderr = here(MLP_, *words)
    assert code == 0, stderr
    assert "resuming after step" in stderr
    assert_same_weights(whole[0], folder_of(tmp_path))
    steps = [line["step"] for line in lines(folder_of(tmp_path)) if "loss" in line]
    assert steps == list(range(14, 421, 14))


def copy_of(whole, tmp_path):
    return shutil.copytree(whole[0], tmp_path / "copy")


def test_a_finished_run_can_be_resumed_and_only_measures_again(whole, tmp_path, here):
    folder = copy_of(whole, tmp_path)
    code, _, stderr = here(MLP_, "--resume", folder, "--save-every", 0)
    assert code == 0, stderr
    before, after = (json.loads((f / "result.json").read_text()) for f in (whole[0], folder))
    assert before["figures"] == after["figures"]
    assert before["command"] == after["command"]
    assert_same_weights(whole[0], folder)


@pytest.mark.parametrize("harm", ["truncate", "flip", "delete"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before_and_says_so(whole, tmp_path, here, harm):
    folder = copy_of(whole, tmp_path)
    largest = max((folder / "checkpoints" / "420").rglob("d/*"), key=lambda p: p.stat().st_size)
    content = largest.read_bytes()
    if harm == "delete":
        largest.unlink()
    else:
        middle = len(content) // 2
        flipped = bytes(b ^ 0xFF for b in content[middle : middle + 8])
        largest.write_bytes(content[:middle] + (b"" if harm == "truncate" else flipped + content[middle + 8 :]))
    code, _, stderr = here(MLP_, "--resume", folder, "--save-every", 0)
    assert code == 0, stderr
    assert re.search(r"the checkpoint of step 420 is damaged \(.+\); going back to that of step 406", stderr)
    assert_same_weights(whole[0], folder)


def test_all_checkpoints_damaged_is_said(whole, tmp_path, here):
    folder = copy_of(whole, tmp_path)
    for path in (folder / "checkpoints").rglob("manifest.ocdbt"):
        path.write_bytes(b"")
    result = here(MLP_, "--resume", folder, "--save-every", 0)
    assert_refused(result, "no checkpoint in .* can be read; start a new run")


def test_a_run_that_is_still_going_cannot_be_resumed(whole, tmp_path, here):
    folder = copy_of(whole, tmp_path)
    holding = "import filelock, sys; held = filelock.FileLock(sys.argv[1]); held.acquire(); print('held', flush=True)"
    holding += "; input()"
    command = [sys.executable, "-c", holding, str(folder / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        assert_refused(here(MLP_, "--resume", folder), "is still being written by another process; stop that first")
        other.communicate("\n")
    assert here(MLP_, "--resume", folder)[0] == 0  # the lock ended with the process


def test_a_damaged_log_is_cut_where_it_is_damaged(whole, tmp_path, here):
    folder = copy_of(whole, tmp_path)
    text = (folder / "log.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "log.jsonl").write_bytes(b"".join(text[:7]) + b"7\n" + b"\xff\n" + b"".join(text[7:]))
    code, _, stderr = here(MLP_, "--resume", folder)
    assert code == 0, stderr
    assert len(lines(folder)) == 7


def test_a_signal_while_a_checkpoint_is_read_or_written_is_no_damage(tmp_path):
    class Orbax:
        def all_steps(self):
            return [1]

        def restore(self, *args, **kwargs):
            raise Interrupted(signal.SIGINT)

        save = item_metadata = restore

    checkpoints = Checkpoints(tmp_path)
    checkpoints._orbax = Orbax()
    for act in (lambda: checkpoints.restore({}, print), lambda: checkpoints.save(1, {})):
        with pytest.raises(Interrupted):
            act()


# Mistakes


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--epoch", 3], "Unrecognized options: --epoch"),
        (["--epochs", "many"], "Error parsing --epochs"),
        (["--dataset", "minst"], "--dataset must be one of mnist, fashion_mnist, digits, or tfds:NAME, not minst"),
        (["--dtype", "float8"], "invalid choice 'float8' for argument '--dtype'"),
        (["--epochs", 0], "--epochs must be greater than 0, not 0"),
        (["--batch", -5], "--batch must be greater than 0, not -5"),
        (["--seed", -1], "--seed must not be negative, as -1 is"),
        (["--save-every", "nan"], "--save-every must not be negative, as nan is"),
        (["--seeds", 0], "--seeds must be greater than 0, not 0"),
        (["--lr", 0], "--lr must be greater than 0, not 0"),
        (["--lr", "nan"], "--lr must be greater than 0, not nan"),
        (["--hidden", 3, 0], "--hidden must be greater than 0, not 0"),
        (["--batch", 5000], "a batch of 5000 cannot be drawn from 1437 examples: choose 1 to 1437"),
        (
            ["--require", "gpu"],
            "a gpu is required, but JAX finds only cpu here: on a machine that has one, pip install",
        ),
    ],
)
def test_mistakes_in_flags_get_one_sentence(tmp_path, here, flags, sentence):
    assert_refused(here(MLP_, "--smoke", "--out", tmp_path, *flags), sentence)
    assert not list(tmp_path.glob("*/*"))  # what never began leaves nothing behind


def test_data_that_cannot_be_had_is_said_and_never_replaced(tmp_path, here, monkeypatch):
    for name in ("https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")
    code, stdout, stderr = here("experiments.mnist.convnet", "--out", tmp_path)
    assert code == 3
    assert "mnist" in stderr
    assert "digits" in stderr  # named as the one that needs no download
    assert "Traceback" not in stderr
    assert not stdout


def test_a_loss_that_is_not_finite_stops_at_once_and_keeps_the_last_good_checkpoint(tmp_path, here):
    result = here("experiments.mnist.convnet", "--dataset", "digits", "--lr", 100, "--out", tmp_path)
    what = r"the loss became (nan|inf) at step \d+|a weight is no longer finite"
    assert_refused(result, f"({what}).*: try a lower learning rate", 4)
    assert not (folder_of(tmp_path) / "result.json").exists()


def test_the_run_that_diverged_is_named_among_many(tmp_path, here):
    code, _, stderr = here(MLP_, *SOFTMAX, 30, "--seeds", 2, "--lr", "1e38", "--out", tmp_path)
    assert code == 4
    assert re.search(r"at step \d+ of run [12] of 2", stderr)


def test_an_unwritable_run_directory_is_said(tmp_path, here):
    (tmp_path / "file").write_text("")
    result = here(MLP_, *SOFTMAX, 1, "--out", tmp_path / "file")
    assert_refused(result, "cannot write .*file.*: Not a directory; choose another")
    (tmp_path / "mnist.mlp").write_text("")
    result = here(MLP_, *SOFTMAX, 1, "--out", tmp_path)
    assert_refused(result, "cannot write .*mnist.mlp: File exists; choose another")


@pytest.mark.parametrize("at", ["report", "save", "figure"])
def test_a_folder_that_vanishes_is_said_and_not_made_anew(tmp_path, here, monkeypatch, at):
    place, name = {"report": (Log, "write"), "save": (Checkpoints, "save"), "figure": (Run, "figure")}[at]
    act, away = getattr(place, name), tmp_path / "away"

    def vanish(*arguments):
        monkeypatch.setattr(place, name, act)
        folder_of(tmp_path / "runs").rename(away)
        return act(*arguments)

    monkeypatch.setattr(place, name, vanish)
    result = here(MLP_, *SOFTMAX, 3, "--out", tmp_path / "runs")
    assert_refused(result, "error: .*runs.* is gone: put it back to continue there$")
    assert not list((tmp_path / "runs").glob("*/*"))
    assert here(MLP_, "--resume", away)[0] == 0


@pytest.mark.skipif(not shutil.which("prlimit"), reason="needs util-linux's prlimit")
@pytest.mark.parametrize(("limit", "what"), [(20_000, "save a checkpoint in"), (600, "write")])
def test_a_full_disk_is_said_and_nothing_is_lost(tmp_path, here, limit, what):
    """No file may grow beyond `limit` bytes: the first checkpoint, or already the log, cannot be written."""
    words = (MLP_, *SOFTMAX, 3, "--out", tmp_path)
    result = finish(start(*words, limit=limit, JAX_ENABLE_COMPILATION_CACHE="false"))
    assert_refused(result, f"cannot {what} .*File too large")
    assert_refused(result, f"continue with: python -m {MLP_} --resume")
    code, _, stderr = here(MLP_, "--resume", folder_of(tmp_path))
    assert code == 0, stderr


@pytest.mark.parametrize("flag", [("--lr", "0.5"), ("--epochs", "20")])
def test_resuming_with_another_configuration_says_which_value_differs(whole, here, flag):
    sentence = f"was started with {flag[0]} [0-9.]+ \\(not {flag[1]}\\): leave that out, or start a new run"
    assert_refused(here(MLP_, "--resume", whole[0], *flag), sentence)


def test_resuming_what_is_not_a_run_is_said(whole, tmp_path, here):
    assert_refused(here(MLP_, "--resume", tmp_path), "is not the folder of a run")
    other = here("experiments.mnist.convnet", "--resume", whole[0])
    assert_refused(other, "is a run of mnist.mlp, not of mnist.convnet")
    folder = copy_of(whole, tmp_path)
    for harm in ("{", "{}", '{"experiment": "mnist.mlp", "command": "x", "config": {"epochs": "x"}}'):
        (folder / "config.json").write_text(harm)
        assert_refused(here(MLP_, "--resume", folder), "config.json is damaged|another version")
    content = json.loads((whole[0] / "config.json").read_text())
    for name, value in (("epochs", "x"), ("hidden", None), ("hidden", [[1]]), ("dtype", 7), ("lr", True)):
        harm = json.dumps({**content, "config": {**content["config"], name: value}})
        (folder / "config.json").write_text(harm)
        assert_refused(here(MLP_, "--resume", folder), "config.json is damaged")


def test_an_experiment_started_as_a_file_says_how_to_start_it():
    file = ROOT / "experiments/mnist/mlp.py"
    done = subprocess.run([sys.executable, file, "--smoke"], env=environment(), capture_output=True, text=True)
    assert done.returncode == 2
    assert f"start it as a module, from the root of the repository: python -m {MLP_}" in done.stderr


# What people see


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("script"), reason="needs Linux's script(1)")
def test_on_a_terminal_there_is_a_bar(tmp_path):
    words = [sys.executable, "-m", MLP_, *SOFTMAX, "30", "--out", str(tmp_path)]
    command = ["script", "-qec", " ".join(words), "/dev/null"]
    done = subprocess.run(command, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0
    assert "━" in done.stdout
    assert "420/420" in done.stdout


def test_python_m_dlc_says_what_it_runs_on(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["dlc"])
    __main__.main()
    said = capsys.readouterr().out
    for word in ("backend", "cpu", "devices", "jax", "flax", "data", "cache"):
        assert word in said
    monkeypatch.setattr(sys, "argv", ["dlc", "--require", "gpu"])
    with pytest.raises(SystemExit) as stopped:
        __main__.main()
    sentence = "a gpu is required, but JAX finds only cpu here"
    assert_refused((stopped.value.code, *capsys.readouterr()), sentence)


def test_help_is_short_and_shows_the_defaults(here):
    code, stdout, _ = here("experiments.mnist.convnet", "--help")
    assert code == 0
    assert "(default: 10)" in stdout
    assert "(default: 0.1)" in stdout
    assert "--weights" in stdout
    for said in ("Claim", "Source: ", "Expect: ", "python -m experiments.mnist.convnet --seeds 8\n"):
        assert said in stdout
    assert len(stdout.splitlines()) < 60


def test_bfloat16_trains(tmp_path, here):
    code, _, stderr = here(MLP_, *SOFTMAX, 20, "--dtype", "bfloat16", "--out", tmp_path)
    assert code == 0, stderr
    assert json.loads((folder_of(tmp_path) / "result.json").read_text())["figures"]["test_error"] < 0.15
