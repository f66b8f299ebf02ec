"""Training on pictures end to end: a small folder of real photographs, on one and four devices, resumed or not."""

import json
import shutil
import sys

import jax
import numpy as np
import pytest
import tiny
from cli import assert_refused, folder_of, here, lines, python, weights
from test_stream import photographs

from dlc.models import resnet
from dlc.run.launch import launch
from dlc.weights import save_state_dict
from experiments.imagenet import train

assert here  # a fixture

MODULE = "experiments.imagenet.train"
SMALL = "--model resnet8 --size 16 --batch 16 --lr 0.05 --epochs 6 --drops 1 --crops 1 --save-every 0 --images".split()


@pytest.fixture(scope="module")
def some(tmp_path_factory):
    counts = {"train/china": 40, "train/flower": 40, "val/china": 11, "val/flower": 11}
    return photographs(tmp_path_factory.mktemp("photographs"), counts)


@pytest.fixture(scope="module", autouse=True)
def _tiny():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(train.RECIPES, "resnet8", train.Recipe(tiny.resnet8, batch=16, lr=0.05, size=16))
        yield


@pytest.fixture(scope="module")
def whole(some, tmp_path_factory):
    """The folder of an uninterrupted run on one device."""
    out, hook = tmp_path_factory.mktemp("whole"), sys.unraisablehook
    launch(train.train, train.Config(), train.SMOKE, train.show, argv=[*SMALL, str(some), "--out", str(out)])
    sys.unraisablehook = hook  # which `launch` replaces
    return folder_of(out)


def figures(folder):
    return json.loads((folder / "result.json").read_text())["figures"]


def logged(folder, name):
    return [line[name] for line in lines(folder) if name in line]


def test_it_learns(whole):
    assert figures(whole)["validation_error"] <= 0.25  # guessing between two classes gives 0.5
    assert figures(whole)["validation_top5_error"] == 0
    assert len(logged(whole, "validation_loss")) == 6
    assert {p.name for p in (whole / "figures").iterdir()} == {"crops.png", "curves.png", "mistakes.png"}
    assert (whole / "classes.txt").read_text() == "china\nflower"


def test_four_devices_do_as_one_does(some, whole, tmp_path, here):
    code, _, stderr = here(MODULE, *SMALL, some, "--mesh", "data=4", "--out", tmp_path)
    assert code == 0, stderr
    four = folder_of(tmp_path)
    for name in ("loss", "validation_loss"):
        np.testing.assert_allclose(logged(four, name), logged(whole, name), rtol=1e-3)
    assert abs(figures(four)["validation_error"] - figures(whole)["validation_error"]) <= 1 / 22


def test_a_resumed_run_ends_as_an_uninterrupted_one_to_the_bit(some, whole, tmp_path, here):
    """The interrupted run decodes in a worker process, which ends with the run and does not change any picture.

    It has as many devices as this process: with fewer, XLA sums a convolution on other threads in another order.
    """
    flags = ("--workers", 1, "--out", tmp_path)
    words = ("tiny", "SIGTERM", 15, MODULE, *SMALL, some, *flags)
    code, _, stderr = python(*words, JAX_NUM_CPU_DEVICES=str(jax.device_count()))
    assert code == 143, stderr
    folder = folder_of(tmp_path)
    assert max(line["step"] for line in lines(folder)) == 15
    assert "Traceback" not in stderr
    code, _, stderr = here(MODULE, "--resume", folder)
    assert code == 0, stderr
    one, other = weights(whole), weights(folder)
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name]) for name in one)
    assert figures(whole) == figures(folder)


def test_what_a_run_leaves_is_evaluated_as_it_was(some, whole, tmp_path, here):
    code, _, stderr = here(MODULE, "--weights", whole, "--out", tmp_path)
    assert code == 0, stderr
    assert figures(folder_of(tmp_path)) == figures(whole)


def test_weights_are_evaluated_without_training(some, monkeypatch, tmp_path, here):
    monkeypatch.setitem(train.RECIPES, "resnet18", train.Recipe(one_block, batch=16, size=32))
    monkeypatch.setattr(train, "published", lambda config: one_block(), raising=False)  # which `here` gives to `launch`
    model = one_block(num_classes=2)
    file = tmp_path / "mine.safetensors"
    save_state_dict(file, model, zeros_but_the_last_bias(model))
    flags = ("--model", "resnet18", "--weights", file, "--out", tmp_path)
    code, _, stderr = here(MODULE, *flags, "--images", some)  # by ten crops
    assert code == 0, stderr
    folder = folder_of(tmp_path)
    assert figures(folder) == {"validation_error": 0.5, "validation_top5_error": 0.0}  # it says "flower" to everything
    assert not (folder / "log.jsonl").exists()
    shutil.rmtree(folder)
    result = here(MODULE, *flags, "--dataset", "digits32")
    assert_refused(result, "the weights are for 2 classes, but digits32 has 10: choose the data set they were trained")


def one_block(**changes):
    return resnet.ResNet((1,), **changes)


def zeros_but_the_last_bias(model):
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
        (["--images", "nowhere", "--dataset", "digits32"], "--images and --dataset are two sets: give one of them", 2),
        (["--mesh", "4"], 'a mesh is written as "data=4", for four devices that share each batch, or with fsdp=N', 2),
        (["--batch", "10000"], "a batch of 10000 cannot be drawn from 1437 examples", 2),
        (["--weights", "x.pth", "--lr", "3"], "leave out --lr: --weights does not train", 2),
        (["--batch", "0"], "--batch must be greater than 0, not 0", 2),
        (["--crops", "5"], "invalid choice '5' for argument '--crops'", 2),
        (["--dataset", "imagenet2012"], "imagenet2012 is not on this machine", 3),
    ],
)
def test_mistakes_get_one_sentence(tmp_path, here, flags, sentence, status):
    more = () if flags[0] in ("--dataset", "--images", "--weights") else ("--dataset", "digits32")
    result = here(MODULE, "--model", "resnet8", "--out", tmp_path, *more, *flags)
    assert_refused(result, sentence, status)
    assert not list(tmp_path.glob("*/*"))
