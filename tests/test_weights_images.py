"""State dicts of image models: a small network saved and loaded again, and the errors, one sentence each."""

import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dlc import weights
from dlc.errors import UserError
from dlc.models.alexnet import alexnet, alexnet_bn
from dlc.models.densenet import DenseNet
from dlc.models.resnet import ResNet
from dlc.models.vit import vit_ti16

MODEL = DenseNet((1, 1), growth=4, stem=8, num_classes=5)
torch_needed = pytest.mark.peers


@pytest.fixture(scope="module")
def variables():
    """Random numbers in every leaf, so that no two are the same."""
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


@pytest.fixture
def saved(variables, tmp_path):
    weights.save_state_dict(tmp_path / "model.safetensors", MODEL, variables)
    return tmp_path / "model.safetensors"


def changed(saved, change):
    tensors = load_file(saved)
    change(tensors)
    save_file(tensors, saved)
    return saved


def refused(path, sentence, model=MODEL):
    with pytest.raises(UserError) as error:
        weights.load_state_dict(path, model)
    assert re.search(sentence, str(error.value)), error.value


def test_what_is_written_is_read_again(saved, variables):
    loaded = weights.load_state_dict(saved, MODEL)
    assert jax.tree.structure(loaded) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)
    assert weights.published_classes(saved, MODEL) == 5
    assert load_file(saved)["features.conv0.weight"].shape == (8, 3, 7, 7)


def test_half_precision_and_names_of_several_devices_are_read(saved, variables):
    tensors = {f"module.{name}": tensor.astype(np.float16) for name, tensor in load_file(saved).items()}
    save_file({**tensors, "module.features.norm0.num_batches_tracked": np.array(3)}, saved)
    loaded = weights.load_state_dict(saved, MODEL)
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {jnp.dtype("float32")}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), loaded, variables)


def test_a_missing_tensor_is_named(saved):
    path = changed(saved, lambda tensors: tensors.pop("features.norm0.running_var"))
    refused(path, r"is not a state dict of this DenseNet: it lacks features\.norm0\.running_var$")


def test_an_extra_tensor_is_named(saved):
    path = changed(saved, lambda tensors: tensors.update(more=np.zeros(2, np.float32)))
    refused(path, "has tensors that this DenseNet does not: more$")


def test_a_tensor_of_another_size_is_named(saved):
    path = changed(saved, lambda tensors: tensors.update({"features.conv0.weight": np.zeros((8, 3, 5, 5), np.float32)}))
    refused(path, r"features\.conv0\.weight in .* has shape \(8, 3, 5, 5\), but the model expects \(8, 3, 7, 7\)")


def test_integers_are_refused_as_weights(saved):
    path = changed(saved, lambda tensors: tensors.update({"features.norm0.weight": np.zeros(8, np.int64)}))
    refused(path, r"features\.norm0\.weight in .* is I64: only floats of 16, 32 or 64 bits")


def test_another_number_of_classes_is_said(saved):
    refused(saved, "has 5 classes, but the model has 7: set num_classes=5", MODEL.clone(num_classes=7))


def test_the_state_dict_of_another_model(saved):
    refused(saved, r"is not a state dict of this ResNet: it lacks bn1\.bias, .* and \d+ more", ResNet((1, 1, 1, 1)))


def test_files_that_are_missing_or_truncated(saved, tmp_path):
    refused(tmp_path / "nowhere.pth", r"there is no file .*nowhere\.pth: give the path of a state dict")
    whole = saved.read_bytes()
    saved.write_bytes(whole[: len(whole) // 2])
    refused(saved, "is not a safetensors file, or it is truncated: fetch it again")


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (ResNet((1, 1, 1, 1), bottleneck=True, stride_at="1x1"), 'use a ResNet with stride_at="3x3"'),
        (alexnet_bn(), "AlexNet with batch norm has no published weights"),
        (vit_ti16(), r"use weights\.load_vit"),
    ],
)
def test_models_without_published_weights_say_so(saved, model, sentence):
    refused(saved, sentence, model)


def test_alexnet_of_2012_has_a_form_of_its_own_size():
    assert (
        weights.images._shapes(alexnet(), weights.images.published(alexnet()))["params/dense1/kernel"].shape[0] == 9216
    )


def test_a_full_disk_is_an_error_of_the_system(variables, tmp_path, monkeypatch):
    from safetensors import SafetensorError

    def full(*arguments):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(weights.files, "save_file", full)
    with pytest.raises(OSError, match="No space left") as error:
        weights.save_state_dict(tmp_path / "model.safetensors", MODEL, variables)
    assert error.value.errno == 28
    with pytest.raises(UserError, match=r"the folder .*nowhere does not exist: create it first"):
        weights.save_state_dict(tmp_path / "nowhere" / "model.safetensors", MODEL, variables)


class Bomb:
    """An object that leaves a trace if its pickle is loaded carelessly."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@torch_needed
def test_a_pickle_with_more_than_tensors_is_refused_and_runs_nothing(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"weight": torch.zeros(2), "bomb": Bomb(tmp_path / "trace")}, tmp_path / "bad.pth")
    refused(tmp_path / "bad.pth", "it holds more than plain tensors and reading it could run any program")
    assert not (tmp_path / "trace").exists()


@torch_needed
def test_damaged_pickles_are_one_sentence(saved, tmp_path):
    torch = pytest.importorskip("torch")
    state = {name: torch.from_numpy(tensor) for name, tensor in load_file(saved).items()}
    torch.save(state, tmp_path / "new.pth")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("new.pth", "old.pth"):
        assert jax.tree.structure(weights.load_state_dict(tmp_path / name, MODEL))
        whole = (tmp_path / name).read_bytes()
        (tmp_path / "short.pth").write_bytes(whole[: len(whole) // 2])
        refused(tmp_path / "short.pth", "fetch it")
    for content in (b"", b".", b"no pickle", os.urandom(100)):
        (tmp_path / "bad.pth").write_bytes(content)
        refused(tmp_path / "bad.pth", "fetch it")
    torch.save([1, 2], tmp_path / "list.pth")
    refused(tmp_path / "list.pth", r"is not a state dict, which maps names to tensors: save `model\.state_dict\(\)`")
