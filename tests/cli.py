"""Running experiments from tests: in processes as a person does, or in the tests' own process, which is faster."""

import inspect
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from dlc import files
from dlc.run.launch import launch
from dlc.weights.checkpoint import Checkpoints

ROOT = Path(__file__).parents[1]


def environment(**changes):
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return {**os.environ, "PYTHONPATH": path, "COLUMNS": "100", **changes}


def start(*words, limit=None, **changes):
    """`python -m ...` in a process of its own; at most `limit` bytes to any file it writes."""
    command = [sys.executable, "-m", *map(str, words)]
    if limit:
        command = ["prlimit", f"--fsize={limit}", *command]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    return subprocess.Popen(command, env=environment(**changes), text=True, **pipes)


def finish(process):
    out, err = process.communicate()
    return process.returncode, out, err


def python(*words, **changes):
    """(exit status, stdout, stderr) of a process."""
    return finish(start(*words, **changes))


@pytest.fixture
def here(capsys, monkeypatch):
    """`here(module, flags...) -> (exit status, stdout, stderr)`: an experiment launched in the tests' process."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)  # which `launch` replaces

    def run(module, *flags):
        experiment = import_module(module)
        train = getattr(experiment, "train", None) or experiment.made_up
        more = (getattr(experiment, "show", None), getattr(experiment, "published", None))
        capsys.readouterr()
        code = 0
        try:
            words = [str(flag) for flag in flags]
            launch(train, experiment.Config(), experiment.SMOKE, *more, argv=words, parallel=trains_by_fit(experiment))
        except SystemExit as stopped:
            code = stopped.code
        return code, *capsys.readouterr()

    return run


def trains_by_fit(experiment):
    """Whether an experiment can be given `--mesh`, by the line that launches it."""
    return "parallel=True" in inspect.getsource(experiment)


def folder_of(out):
    """The folder of the only run below `out`."""
    (folder,) = [path for path in Path(out).glob("*/*") if path.is_dir()]
    return folder


def lines(folder):
    return [files.unsealed(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def weights(folder):
    """The arrays of the newest checkpoint, by name."""
    checkpoints = Checkpoints(folder / "checkpoints")
    arrays = checkpoints.read(("",), print)
    checkpoints.close()
    return {name: np.asarray(array) for name, array in arrays.items()}


def assert_same_weights(one, other):
    one, other = weights(one), weights(other)
    assert one.keys() == other.keys()
    assert "params/dense1/kernel" in one
    for name, leaf in one.items():
        np.testing.assert_array_equal(leaf, other[name], err_msg=name)


def assert_refused(result, sentence, status=2):
    code, _, stderr = result
    assert code == status, stderr
    assert re.search(sentence, " ".join(stderr.replace("│", " ").split())), stderr
    assert "Traceback" not in stderr
