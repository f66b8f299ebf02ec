"""Ctrl-C and SIGTERM: what is said, what is still done, and how the process ends."""

import os
import signal
import subprocess
import sys

import pytest
from cli import ROOT, environment, folder_of, here, lines, python, weights

from dlc.run.fit import Plan, fit
from dlc.run.run import Run
from dlc.run.signals import Interrupted, Signals, obeyed

assert here  # a fixture

SOFTMAX = ("experiments.mnist.mlp", "--hidden", "--dataset", "digits", "--lr", "0.02", "--epochs")


def send(signum=signal.SIGINT):
    os.kill(os.getpid(), signum)


def watched(act, **how):
    """(what was said, the exception) when `act(signals)` runs where signals are obeyed."""
    signals, said = Signals(**how), []
    try:
        with obeyed(signals, said.append):
            act(signals)
    except (Interrupted, OSError) as error:
        return said, error
    raise AssertionError("nothing was raised")


def test_outside_training_a_signal_interrupts_at_once():
    def act(signals):
        send(signal.SIGTERM)
        raise AssertionError("reached")

    said, error = watched(act)
    assert (said, str(error)) == (["stopping ... (again: stop now)"], "SIGTERM")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_in_training_a_signal_is_said_at_once_and_obeyed_after_the_steps():
    def act(signals):
        send()
        assert signals.stop == signal.SIGINT
        signals.obey()

    said, error = watched(act, training=True)
    assert (said, str(error)) == (["stopping after these steps ... (again: stop now)"], "SIGINT")


class Dropping:
    """Python drops what is raised in here."""

    def __del__(self):
        send()
        for _ in range(100):  # the handler runs here
            pass


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_that_python_drops_or_that_makes_something_else_fail_is_still_obeyed():
    finished = []

    def drop(signals):
        Dropping()
        finished.append(True)

    _, error = watched(drop)
    assert finished
    assert isinstance(error, Interrupted)

    def fail(signals):
        if signals.training:
            send()
        raise OSError("a worker died")

    _, error = watched(fail, training=True)
    assert isinstance(error, Interrupted)
    assert isinstance(error.__cause__, OSError)
    assert isinstance(watched(fail)[1], OSError)


def trained(run, when):
    """A run of 20 steps in one program; the signal comes during one of its parts."""

    def batches(first, count):
        if when == "steps":
            send()

    batches.like = lambda first, count: None

    def evaluate(state):
        if when == "evaluation":
            send()
        return {"number": 1.0}

    with obeyed(run.signals, run.say):
        state = fit(run, {"w": 0.0}, lambda state, batch: (state, {}), batches, Plan(20), evaluate)
        if when == "after":
            send()
    return state


@pytest.mark.parametrize("when", ["steps", "evaluation", "after"])
def test_a_run_of_one_group_of_steps_is_stopped_wherever_the_signal_comes(tmp_path, when):
    run = Run(tmp_path)
    with pytest.raises(Interrupted):
        trained(run.part("only"), when)
    run.close()
    assert [line["number"] for line in run.parts[0].history if "number" in line] == [1.0]
    assert (tmp_path / "only" / "checkpoints" / "20").is_dir()


@pytest.mark.parametrize(
    ("signum", "at"),
    [
        ("SIGINT", 28),  # the last step
        ("SIGTERM", "dlc.run.record.finish"),
        ("SIGINT", "dlc.train.compiled"),
    ],
)
def test_a_signal_at_any_moment_ends_an_experiment_with_its_number(tmp_path, here, signum, at):
    code, _, stderr = python("killed", signum, at, *SOFTMAX, 2, "--out", tmp_path)
    assert code == 128 + signal.Signals[signum]
    assert "(again: stop now)" in stderr
    assert f"continue with: python -m experiments.mnist.mlp --resume {folder_of(tmp_path)}" in stderr
    assert "Traceback" not in stderr
    code, _, stderr = here(SOFTMAX[0], "--resume", folder_of(tmp_path))
    assert code == 0, stderr
    assert lines(folder_of(tmp_path))[-1]["step"] == weights(folder_of(tmp_path))["step"] == 28


def test_a_bench_is_stopped_too(tmp_path):
    words = ("experiments.bench.devices", "--sizes", 32, "--rounds", 1, "--out", tmp_path)
    code, _, stderr = python("killed", "SIGTERM", "dlc.run.bench.save", *words)
    assert code == 128 + signal.SIGTERM
    assert stderr.splitlines()[-2:] == ["stopping ... (again: stop now)", "SIGTERM: stopped"]
    assert not list(tmp_path.iterdir())


STUCK = """
import os, signal, threading
from dlc.run import signals
signals.AGAIN = 0
with signals.obeyed(signals.Signals(training=True), print, lambda: print("last", flush=True)):
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait()  # a long computation
"""


def test_a_second_signal_stops_what_is_stuck():
    done = subprocess.run([sys.executable, "-c", STUCK], env=environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 128 + signal.SIGTERM
    assert done.stdout.splitlines() == [
        "stopping after these steps ... (again: stop now)",
        "SIGTERM: stopped now",
        "last",
    ]


SENT_TWICE = STUCK.replace("signals.AGAIN = 0\n", "").replace("threading.Event().wait()", "pass")


def test_one_signal_that_is_sent_twice_counts_once():
    """timeout(1) sends it to the process and to its group."""
    words = [sys.executable, "-c", SENT_TWICE]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["stopping after these steps ... (again: stop now)"]
    assert "Interrupted: SIGINT" in done.stderr


@pytest.mark.parametrize(("signum", "module"), [("SIGINT", "jax"), ("SIGTERM", "jax"), ("SIGINT", "dlc.run.launch")])
def test_while_modules_are_imported_the_process_ends_in_silence(tmp_path, signum, module):
    """An interpreter that sends itself the signal when it imports `module`."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}:\n"
        f"            os.kill(os.getpid(), signal.{signum})\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    words = [sys.executable, "-m", SOFTMAX[0], "--smoke"]
    done = subprocess.run(words, env=environment(PYTHONPATH=path), capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (128 + signal.Signals[signum], "", "")
