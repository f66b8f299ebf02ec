"""Runs as a person meets them: what a run leaves behind, how it stops, how it goes on, and what it says of mistakes."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
LINEAR = ("experiments.mnist.linear", "--dataset", "digits", "--save-every", "0", "--epochs", "30")


def environment(**changes):
    return {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100", **changes}


def start(*words, limit=None, **changes):
    """`python -m ...` in a process of its own, as a person starts it; at most `limit` bytes to any file it writes."""
    command = [sys.executable, "-m", *map(str, words)]
    if limit:
        command = ["prlimit", f"--fsize={limit}", *command]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=environment(**changes), text=True, **pipes)


def finish(process):
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def python(*words, **changes):
    return finish(start(*words, **changes))


def folder_of(out):
    (folder,) = [path for path in Path(out).glob("*/*") if path.is_dir()]
    return folder


def lines(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def weights(folder):
    """The arrays of the newest checkpoint, by name."""
    import orbax.checkpoint as ocp

    with ocp.CheckpointManager((folder / "checkpoints").absolute()) as manager:
        state = manager.restore(manager.latest_step(), args=ocp.args.StandardRestore())
    import jax

    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def assert_same_weights(one, other):
    one, other = weights(one), weights(other)
    assert one.keys() == other.keys()
    assert "['state']['params']['dense1']['kernel']" in one
    for name, leaf in one.items():
        np.testing.assert_array_equal(leaf, other[name], err_msg=name)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One uninterrupted run, with what it printed."""
    out = tmp_path_factory.mktemp("whole")
    code, stdout, stderr = python(*LINEAR, "--out", out)
    assert code == 0, stderr
    return folder_of(out), stdout, stderr


def test_a_run_leaves_a_complete_folder(whole):
    folder, stdout, _ = whole
    assert {p.name for p in folder.iterdir()} == {
        "config.json", "log.jsonl", "tensorboard", "checkpoints", "figures", "result.json"
    }  # fmt: skip
    assert {p.name for p in (folder / "figures").iterdir()} == {
        "curves.png", "confusion.png", "mistakes.png", "filters.png"
    }  # fmt: skip
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in (folder / "figures").iterdir())
    assert list((folder / "tensorboard").glob("events.*"))
    result = json.loads((folder / "result.json").read_text())
    assert result["experiment"] == "mnist.linear"
    assert result["dataset"] == "digits"
    assert result["claim"].startswith("a linear classifier errs")
    assert result["config"]["epochs"] == 30
    assert result["seeds"] == [0]
    assert result["seconds"].keys() == {"compile", "start", "train", "evaluate", "save"}
    assert 0 < result["seconds_to_first_step"] < 60
    assert 1e8 < result["peak_memory_bytes"] < 1.5e9
    assert result["device"]["platform"] == "cpu"
    assert {"jax", "jaxlib", "flax", "optax", "python"} <= result["versions"].keys()
    assert re.fullmatch(r"[0-9a-f]{12}(\+changes)?", result["commit"] or "0" * 12)
    assert result["command"].startswith(
        "python -m experiments.mnist.linear --dataset digits --save-every 0 --epochs 30"
    )
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
    assert "420/420" in stderr  # the plain line that stands for the bar where there is no terminal
    assert "left" in stderr


def test_eight_seeds_become_mean_and_standard_deviation(tmp_path):
    code, stdout, stderr = python(*LINEAR[:-1], 2, "--seeds", 3, "--out", tmp_path)
    assert code == 0, stderr
    figure = json.loads((folder_of(tmp_path) / "result.json").read_text())["figures"]["test_error"]
    assert len(figure["values"]) == 3
    assert figure["mean"] == pytest.approx(np.mean(figure["values"]))
    assert figure["std"] == pytest.approx(np.std(figure["values"], ddof=1))
    assert re.search(r"test error +\d+\.\d\d ± \d+\.\d\d %", stdout)
    assert all(set(line["loss"]) == {"mean", "std", "values"} for line in lines(folder_of(tmp_path)) if "loss" in line)


def test_a_seed_among_many_is_that_seed_alone(tmp_path):
    python(*LINEAR[:-1], 3, "--seeds", 2, "--out", tmp_path / "two")
    python(*LINEAR[:-1], 3, "--seed", 1, "--out", tmp_path / "one")
    two, one = (json.loads((folder_of(tmp_path / n) / "result.json").read_text())["figures"] for n in ("two", "one"))
    assert two["test_error"]["values"][1] == pytest.approx(one["test_error"], abs=1 / 360)


def interrupted(out, how, after=40):
    """Starts the run, sends `how` once `after` steps are logged, and returns exit status, what was said, and folder."""
    process = start(*LINEAR[:-1], 4000, "--out", out)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        logs = list(Path(out).glob("*/*/log.jsonl"))
        if logs and len(logs[0].read_text().splitlines()) > after:
            break
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(how)
    code, _, stderr = finish(process)
    return code, stderr, folder_of(out)


@pytest.mark.parametrize(("how", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_and_sigterm_save_and_say_how_to_resume(tmp_path, how, status):
    code, stderr, folder = interrupted(tmp_path, how)
    assert code == status
    assert f"continue with: python -m experiments.mnist.linear --resume {folder}" in stderr
    assert "Traceback" not in stderr
    assert weights(folder)["['state']['step']"] == max(line["step"] for line in lines(folder))


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path, how):
    """To the bit. The run is cut off after an eighth; then again, wherever it is; then it is left to finish."""
    words = (*LINEAR[:-1], 160)
    code, _, stderr = python(*words, "--out", tmp_path / "whole")
    assert code == 0, stderr
    process, out = start(*words, "--out", tmp_path / "cut"), tmp_path / "cut"
    for wait_for in (280, 560):
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            logs = list(out.glob("*/*/log.jsonl"))
            if logs and f'"step": {wait_for},' in logs[0].read_text():
                break
            time.sleep(0.005)
        process.send_signal(how)
        assert finish(process)[0] in (-signal.SIGKILL, 143)
        process = start(LINEAR[0], "--resume", folder_of(out), "--save-every", 0)
    code, _, stderr = finish(process)
    assert code == 0, stderr
    assert "resuming after step" in stderr
    assert_same_weights(folder_of(tmp_path / "whole"), folder_of(out))
    steps = [line["step"] for line in lines(folder_of(out)) if "loss" in line]
    assert steps == list(range(14, 2241, 14))


def test_killed_before_the_first_checkpoint_it_starts_from_the_beginning(tmp_path):
    process = start(*LINEAR, "--out", tmp_path)
    while not list(tmp_path.glob("*/*/config.json")) and process.poll() is None:
        time.sleep(0.005)
    process.kill()
    finish(process)
    code, _, stderr = python(LINEAR[0], "--resume", folder_of(tmp_path))
    assert code == 0, stderr
    assert "no checkpoint yet: starting from the beginning" in stderr


def copy_of(whole, tmp_path):
    return shutil.copytree(whole[0], tmp_path / "copy")


def test_a_finished_run_can_be_resumed_and_only_measures_again(whole, tmp_path):
    folder = copy_of(whole, tmp_path)
    code, _, stderr = python(LINEAR[0], "--resume", folder, "--save-every", 0)
    assert code == 0, stderr
    before, after = (json.loads((f / "result.json").read_text()) for f in (whole[0], folder))
    assert before["figures"] == after["figures"]
    assert_same_weights(whole[0], folder)


@pytest.mark.parametrize("harm", ["truncate", "flip", "delete"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before_and_says_so(whole, tmp_path, harm):
    folder = copy_of(whole, tmp_path)
    largest = max((folder / "checkpoints" / "420").rglob("d/*"), key=lambda p: p.stat().st_size)
    content = largest.read_bytes()
    if harm == "delete":
        largest.unlink()
    else:
        middle = len(content) // 2
        flipped = bytes(b ^ 0xFF for b in content[middle : middle + 8])
        largest.write_bytes(content[:middle] + (b"" if harm == "truncate" else flipped + content[middle + 8 :]))
    code, _, stderr = python(LINEAR[0], "--resume", folder, "--save-every", 0)
    assert code == 0, stderr
    assert re.search(r"the checkpoint of step 420 is damaged \(.+\); going back to that of step 406", stderr)
    assert_same_weights(whole[0], folder)


def test_all_checkpoints_damaged_is_said(whole, tmp_path):
    folder = copy_of(whole, tmp_path)
    for path in (folder / "checkpoints").rglob("manifest.ocdbt"):
        path.write_bytes(b"")
    assert_refused(
        python(LINEAR[0], "--resume", folder, "--save-every", 0), "no checkpoint in .* can be read; start a new run"
    )


def assert_refused(result, sentence, status=2):
    code, _, stderr = result
    assert code == status, stderr
    assert re.search(sentence, " ".join(stderr.replace("│", " ").split())), stderr
    assert "Traceback" not in stderr


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--epoch", 3], "Unrecognized options: --epoch"),
        (["--epochs", "many"], "Error parsing --epochs"),
        (["--dataset", "minst"], "invalid choice 'minst' for argument '--dataset'"),
        (["--epochs", 0], "--epochs must be greater than 0, not 0"),
        (["--batch", -5], "--batch must be greater than 0, not -5"),
        (["--seed", -1], "--seed must not be negative, as -1 is"),
        (["--save-every", "nan"], "--save-every must not be negative, as nan is"),
        (["--seeds", 0], "--seeds must be greater than 0, not 0"),
        (["--lr", 0], "--lr must be greater than 0, not 0"),
        (["--lr", "nan"], "--lr must be greater than 0, not nan"),
        (["--batch", 5000], "a batch of 5000 cannot be drawn from 1437 examples: choose 1 to 1437"),
        (
            ["--require", "gpu"],
            "a gpu is required, but JAX finds only cpu here: on a machine that has one, pip install",
        ),
    ],
)
def test_mistakes_in_flags_get_one_sentence(tmp_path, flags, sentence):
    assert_refused(python("experiments.mnist.convnet", "--smoke", "--out", tmp_path, *flags), sentence)
    assert not list(tmp_path.glob("*/*"))  # what never began leaves nothing behind


def test_data_that_cannot_be_had_is_said_and_never_replaced(tmp_path):
    nowhere = dict.fromkeys(("https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY"), "http://127.0.0.1:9")
    code, stdout, stderr = python("experiments.mnist.convnet", "--out", tmp_path, **nowhere, no_proxy="", NO_PROXY="")
    assert code == 3
    assert "mnist" in stderr
    assert "digits" in stderr  # named as the one that needs no download
    assert "Traceback" not in stderr
    assert not stdout


def test_a_loss_that_is_not_finite_stops_at_once_and_keeps_the_last_good_checkpoint(tmp_path):
    result = python("experiments.mnist.convnet", "--dataset", "digits", "--lr", 100, "--out", tmp_path)
    what = r"the loss became (nan|inf) at step \d+|a weight is no longer finite"
    assert_refused(result, f"({what}).*: try a lower learning rate", 4)
    assert not (folder_of(tmp_path) / "result.json").exists()


def test_a_loss_that_diverges_late_leaves_the_good_checkpoints(tmp_path):
    """A loss that is infinite from the seventh step on, in a run that is saved every four."""
    import jax.numpy as jnp
    import optax

    from dlc import train
    from dlc.run import Diverged, Run

    def explode(params, aux, batch, key):
        return jnp.where(batch[0] < 7, params**2, jnp.inf), (aux, {})

    run = Run(tmp_path)
    with (
        contextlib.closing(run),
        pytest.raises(Diverged, match="the loss became inf at step 7; the checkpoint of step 4 is the last good one"),
    ):
        run.fit(
            lambda key: train.init(jnp.float32(1), optax.sgd(0.1), key),
            train.make_step(explode, optax.sgd(0.1)),
            lambda first, count: np.arange(first + 1, first + count + 1)[:, None],
            steps=12, keys=train.seed_keys(0), evaluate_every=4,
        )  # fmt: skip
    assert [int(step.name) for step in (run.folder / "checkpoints").iterdir() if step.is_dir()] == [4]


def test_an_unwritable_run_directory_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    assert_refused(
        python(*LINEAR, "--out", tmp_path / "file"), "cannot write .*file.*: Not a directory; choose another"
    )
    (tmp_path / "mnist.linear").write_text("")
    assert_refused(python(*LINEAR, "--out", tmp_path), "cannot write .*mnist.linear: File exists; choose another")


@pytest.mark.parametrize(("limit", "what"), [(20_000, "save a checkpoint in"), (600, "write")])
def test_a_full_disk_is_said_and_nothing_is_lost(tmp_path, limit, what):
    """No file may grow beyond `limit` bytes: the first checkpoint, or already the log, cannot be written."""
    result = finish(start(*LINEAR, "--out", tmp_path, limit=limit, JAX_ENABLE_COMPILATION_CACHE="false"))
    assert_refused(result, f"cannot {what} .*File too large")
    assert_refused(result, "continue with: python -m experiments.mnist.linear --resume")
    code, _, stderr = python(LINEAR[0], "--resume", folder_of(tmp_path))
    assert code == 0, stderr


@pytest.mark.parametrize("flag", [("--lr", "0.5"), ("--epochs", "40")])
def test_resuming_with_another_configuration_says_which_value_differs(whole, flag):
    result = python(LINEAR[0], "--resume", whole[0], *flag)
    assert_refused(
        result, f"was started with {flag[0]} [0-9.]+ \\(not {flag[1]}\\): leave that out, or start a new run"
    )


def test_resuming_what_is_no_run_is_said(whole, tmp_path):
    assert_refused(python(LINEAR[0], "--resume", tmp_path), "is no folder of a run")
    other = python("experiments.mnist.mlp", "--resume", whole[0])
    assert_refused(other, "is a run of experiments.mnist.linear, not of experiments.mnist.mlp")
    folder = copy_of(whole, tmp_path)
    for harm in ("{", "{}", '{"experiment": "mnist.linear", "command": "x", "config": {"epochs": "x"}}'):
        (folder / "config.json").write_text(harm)
        assert_refused(python(LINEAR[0], "--resume", folder), "config.json is damaged|another version")


def test_an_experiment_started_as_a_file_says_how_to_start_it():
    done = subprocess.run(
        [sys.executable, ROOT / "experiments/mnist/linear.py", "--smoke"],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "start it as a module, from the root of the repository: python -m experiments.mnist.linear" in done.stderr


def test_a_run_that_is_still_going_cannot_be_resumed(tmp_path):
    process = start(*LINEAR[:-1], 4000, "--out", tmp_path)
    while not list(tmp_path.glob("*/*/log.jsonl")) and process.poll() is None:
        time.sleep(0.01)
    assert_refused(python(LINEAR[0], "--resume", folder_of(tmp_path)), "is still being written by another process")
    process.kill()
    finish(process)


def test_a_damaged_log_is_cut_where_it_is_damaged(whole, tmp_path):
    folder = copy_of(whole, tmp_path)
    text = (folder / "log.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "log.jsonl").write_bytes(b"".join(text[:7]) + b"7\n" + b"\xff\n" + b"".join(text[7:]))
    code, _, stderr = python(LINEAR[0], "--resume", folder)
    assert code == 0, stderr
    assert len(lines(folder)) == 7


def test_a_resumed_run_keeps_the_command_that_began_it(whole, tmp_path):
    folder = copy_of(whole, tmp_path)
    assert python(LINEAR[0], "--resume", folder)[0] == 0
    before, after = (json.loads((f / "result.json").read_text()) for f in (whole[0], folder))
    assert before["command"] == after["command"]


def test_a_signal_while_a_checkpoint_is_read_or_written_is_no_damage(tmp_path):
    from dlc.checkpoint import Checkpoints
    from dlc.run import Interrupted

    class Orbax:
        def all_steps(self):
            return [1]

        def restore(self, *args, **kwargs):
            raise Interrupted(signal.SIGINT)

        save = restore

    checkpoints = Checkpoints(tmp_path)
    checkpoints._orbax = Orbax()
    for act in (lambda: checkpoints.restore({}, print), lambda: checkpoints.save(1, {})):
        with pytest.raises(Interrupted):
            act()


def test_steps_that_do_not_divide_are_reported_before_each_evaluation():
    from dlc.run import _plan

    plan = _plan(steps=2 * 937 + 5, report_every=100, evaluate_every=937)
    assert [at for at, _ in plan] == list(np.cumsum([0, *(count for _, count in plan)])[:-1])
    assert sum(count for _, count in plan) == 2 * 937 + 5
    assert {count for _, count in plan} == {100, 37, 5}
    assert {937, 2 * 937} <= {at + count for at, count in plan}


def test_the_run_that_diverged_is_named_among_many(tmp_path):
    code, _, stderr = python(*LINEAR, "--seeds", 2, "--lr", "1e38", "--out", tmp_path)
    assert code == 4
    assert re.search(r"at step \d+ of run [12] of 2", stderr)


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("script"), reason="needs Linux's script(1)")
def test_on_a_terminal_there_is_a_bar(tmp_path):
    words = ["script", "-qec", f"{sys.executable} -m {' '.join(LINEAR)} --out {tmp_path}", "/dev/null"]
    done = subprocess.run(words, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0
    assert "━" in done.stdout
    assert "420/420" in done.stdout


def test_python_m_dlc_says_what_it_runs_on():
    code, stdout, _ = python("dlc")
    assert code == 0
    for word in ("backend", "cpu", "devices", "jax", "flax", "data", "cache"):
        assert word in stdout
    assert_refused(python("dlc", "--require", "gpu"), "a gpu is required, but JAX finds only cpu here")


def test_help_is_short_and_shows_the_defaults():
    code, stdout, _ = python("experiments.mnist.convnet", "--help")
    assert code == 0
    assert "(default: 10)" in stdout
    assert "(default: 0.1)" in stdout
    assert len(stdout.splitlines()) < 40


def test_bfloat16_trains(tmp_path):
    code, _, stderr = python(*LINEAR[:-1], 20, "--dtype", "bfloat16", "--out", tmp_path)
    assert code == 0, stderr
    assert json.loads((folder_of(tmp_path) / "result.json").read_text())["figures"]["test_error"] < 0.15


def test_batches_that_cost_are_asked_for_their_shapes_alone():
    import jax
    import jax.numpy as jnp
    import optax

    from dlc import train
    from dlc.run import Run

    class Batches:
        def __init__(self):
            self.asked = []

        def __call__(self, first, count):
            self.asked.append((first, count))
            return np.ones((count, 4), np.float32)

        def like(self, first, count):
            return jax.ShapeDtypeStruct((count, 4), jnp.float32)

    def loss_fn(params, aux, batch, key):
        return (params * batch).mean(), (aux, {})

    batches, run = Batches(), Run()
    state, _ = run.fit(
        lambda key: train.init(jnp.float32(1), optax.sgd(0.1), key),
        train.make_step(loss_fn, optax.sgd(0.1)),
        batches,
        steps=10, keys=train.seed_keys(0), report_every=4,
    )  # fmt: skip
    assert batches.asked == [(0, 4), (4, 4), (8, 2)]  # each group once
    assert float(state.params) == pytest.approx(0, abs=1e-6)
    assert run.facts["examples_per_step"] == 4
