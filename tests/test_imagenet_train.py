"""Training on pictures end to end: a small folder of real photographs, on one and four devices, resumed or not."""

import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from test_run import assert_refused, finish, folder_of, lines, python, start, weights
from test_stream import photographs

from dlc import run
from dlc.errors import UserError
from dlc.models import resnet, resnet_cifar
from dlc.weights import save_state_dict
from experiments.imagenet import train

MODULE = "experiments.imagenet.train"


def tiny(**changes):
    return resnet_cifar.CifarResNet((1, 1), widths=(4, 8), stem=4, **changes)


@pytest.fixture(scope="module")
def some(tmp_path_factory):
    counts = {"train/china": 40, "train/flower": 40, "val/china": 11, "val/flower": 11}
    return photographs(tmp_path_factory.mktemp("photographs"), counts)


@pytest.fixture
def recipe(monkeypatch):
    monkeypatch.setitem(train.RECIPES, "resnet8", train.Recipe(tiny, batch=16, lr=0.05, size=16))


def test_it_learns_and_four_devices_do_as_one_does(some, recipe, tmp_path):
    results = {}
    for mesh in ("data=1", "data=4"):
        here = run.Run(tmp_path / mesh)
        here.folder.mkdir()
        config = train.Config(images=some, model="resnet8", epochs=6, mesh=mesh, drops=1, crops=1)
        results[mesh] = train.main(config, here)
        here.close()
        results[mesh]["losses"] = [line["loss"] for line in here.history if "loss" in line]
        results[mesh]["validation"] = [line["validation_loss"] for line in here.history if "validation_loss" in line]
    one, four = results.values()
    assert one["validation_error"] <= 0.25  # guessing between two classes gives 0.5
    assert one["validation_top5_error"] == 0
    assert len(one["validation"]) == 6
    np.testing.assert_allclose(four["losses"], one["losses"], rtol=1e-3)
    np.testing.assert_allclose(four["validation"], one["validation"], rtol=1e-3)
    assert abs(four["validation_error"] - one["validation_error"]) <= 1 / 22
    assert {p.name for p in (tmp_path / "data=1" / "figures").iterdir()} == {"crops.png", "curves.png", "mistakes.png"}
    assert (tmp_path / "data=1" / "classes.txt").read_text() == "china\nflower"


def words(some, out, *more):
    small = ("--model", "resnet8", "--size", "16", "--batch", "16", "--epochs", "5", "--save-every", "0")
    return (MODULE, "--images", some, *small, "--crops", "1", "--out", out, *more)


def test_a_resumed_run_ends_as_an_uninterrupted_one_to_the_bit(some, tmp_path):
    """The interrupted run decodes in a worker process, which ends with the run and does not change any picture."""
    code, _, stderr = python(*words(some, tmp_path / "whole"))
    assert code == 0, stderr
    process = start(*words(some, tmp_path / "cut", "--workers", "1"))
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        logs = list((tmp_path / "cut").glob("*/*/log.jsonl"))
        if logs and '"step": 15,' in logs[0].read_text():
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    code, _, stderr = finish(process)
    assert code == 143, stderr
    folder = folder_of(tmp_path / "cut")
    assert max(line["step"] for line in lines(folder)) < 25
    assert "Traceback" not in stderr
    code, _, stderr = python(MODULE, "--resume", folder)
    assert code == 0, stderr
    whole = folder_of(tmp_path / "whole")
    one, other = weights(whole), weights(folder)
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name]) for name in one)
    first, second = (json.loads((path / "result.json").read_text())["figures"] for path in (whole, folder))
    assert first == second


def test_weights_are_evaluated_without_training(some, recipe, monkeypatch, tmp_path):
    monkeypatch.setitem(train.RECIPES, "resnet18", train.Recipe(small, batch=16, size=32))
    model = small(num_classes=2)
    variables = zeros_but_the_last_bias(model)
    save_state_dict(tmp_path / "mine.safetensors", model, variables)
    config = train.Config(images=some, model="resnet18", weights=tmp_path / "mine.safetensors", crops=10)
    here = run.Run()
    assert train.main(config, here) == {
        "validation_error": 0.5,
        "validation_top5_error": 0.0,
    }  # it says "flower" to everything
    assert not here.history
    with pytest.raises(UserError, match=r"has 2 classes, but the model has 10: set num_classes=2$"):
        train.main(train.Config("digits32", model="resnet18", weights=tmp_path / "mine.safetensors"), run.Run())


def small(**changes):
    return resnet.ResNet((1,), **changes)


def zeros_but_the_last_bias(model):
    import jax

    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    variables["params"]["dense"]["bias"][1] = 1
    return variables


def test_recipes_are_the_papers():
    fifty, alexnet = train.RECIPES["resnet50"], train.RECIPES["alexnet"]
    assert fifty[1:6] == (256, 0.1, 1e-4, "scale", 224)
    assert alexnet[1:6] == (128, 0.01, 5e-4, "fixed", 227)


@pytest.mark.parametrize(
    ("flags", "sentence", "status"),
    [
        (["--images", "nowhere"], "there is no folder nowhere: give one that has a folder of pictures", 2),
        (["--mesh", "4"], 'a mesh is written as "data=4", for four devices that share each batch, not as "4"', 2),
        (["--batch", "10000"], "a batch of 10000 cannot be drawn from 1437 examples", 2),
        (["--weights", "x.pth", "--lr", "3"], "--lr means nothing with --weights: leave it out", 2),
        (["--batch", "0"], "--batch must be greater than 0, not 0", 2),
        (["--crops", "5"], "invalid choice '5' for argument '--crops'", 2),
        (["--dataset", "imagenet2012"], "imagenet2012 is not on this machine", 3),
    ],
)
def test_mistakes_get_one_sentence(tmp_path, flags, sentence, status):
    more = () if flags[0] in ("--dataset", "--images", "--weights") else ("--dataset", "digits32")
    result = python(MODULE, "--model", "resnet8", "--out", tmp_path, *more, *flags)
    assert_refused(result, sentence, status)
    assert not list(Path(tmp_path).glob("*/*"))
