"""Files of weights are what their bytes say; what wrappers add to names is taken off; other networks are refused."""

import argparse
import bz2
import gzip
import io
import json
import lzma
import re
import tarfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save, save_file

from dlc import weights
from dlc.errors import UserError
from dlc.models.densenet import DenseNet, densenet121
from dlc.models.resnet import resnet18, resnet50
from dlc.models.vgg import vgg11
from dlc.weights.files import check_network, save_safetensors
from dlc.weights.images import FORMS, allowed_networks

MODEL = DenseNet((1, 1), growth=4, stem=8, num_classes=5)


@pytest.fixture(scope="module")
def variables():
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def tensors(variables, tmp_path_factory):
    """The published form: names and arrays."""
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    weights.save_state_dict(path, MODEL, variables)
    return load_file(path)


def npz(tensors):
    file = io.BytesIO()
    np.savez(file, **tensors)
    return file.getvalue()


def tar(tensors):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.safetensors"))
    return file.getvalue()


def pickled(content, **options):
    torch = pytest.importorskip("torch")
    file = io.BytesIO()
    torch.save(jax.tree.map(torch.from_numpy, content), file, **options)
    return file.getvalue()


def read(path, content):
    path.write_bytes(content)
    return weights.load(path, MODEL)[1]


def refused(path, content, sentence, model=MODEL):
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        weights.load_state_dict(path, model)
    assert re.search(sentence, str(error.value)), error.value
    assert str(path) in str(error.value)


PLAIN = {
    "model": save, "model.pth": save, "model.tar": save, "model.npz": npz, "other.npz.safetensors": npz,
    "model.safetensors.gz": lambda tensors: gzip.compress(save(tensors)),
    "model.GZ": lambda tensors: gzip.compress(save(tensors)),
    "model.bz2": lambda tensors: bz2.compress(npz(tensors)),
    "model.xz": lambda tensors: lzma.compress(save(tensors)),
}  # fmt: skip
PICKLES = {
    "checkpoint.pth.tar": pickled, "model.PTH": pickled, "model": pickled, "model.safetensors": pickled,
    "model.pth.gz": lambda tensors: gzip.compress(pickled(tensors)),
    "old.pth.tar": lambda tensors: pickled(tensors, _use_new_zipfile_serialization=False),
    "old.GZ": lambda tensors: gzip.compress(pickled(tensors, _use_new_zipfile_serialization=False)),
}  # fmt: skip
FILES = [(name, form, ()) for name, form in PLAIN.items()]
FILES += [(name, form, pytest.mark.peers) for name, form in PICKLES.items()]


@pytest.mark.parametrize(("name", "form"), [pytest.param(name, form, marks=marks) for name, form, marks in FILES])
def test_a_file_is_what_its_bytes_say(name, form, tensors, variables, tmp_path):
    jax.tree.map(np.testing.assert_array_equal, read(tmp_path / name, form(tensors)), variables)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (lambda tensors: gzip.compress(save(tensors))[:-9], "is damaged, or it is truncated: fetch it again"),
        (lambda tensors: bz2.compress(save(tensors))[:-9], "is damaged, or it is truncated: fetch it again"),
        (lambda tensors: lzma.compress(save(tensors))[:-9], "is damaged, or it is truncated: fetch it again"),
        (lambda tensors: gzip.compress(gzip.compress(b"")), "is gzip inside another archive: unpack it first"),
        (lambda tensors: npz({"a": np.array([{}])}), r"is not an \.npz of plain arrays"),
        (lambda tensors: npz(tensors)[:-99], "is truncated: fetch it again"),
        (tar, "is a tar archive: unpack it, and give the file of weights in it"),
        (lambda tensors: gzip.compress(tar(tensors)), "is a tar archive: unpack it"),
        (lambda tensors: b"\x28\xb5\x2f\xfd and so on", "is a Zstandard archive: unpack it first"),
        (
            lambda tensors: b"version https://git-lfs.github.com/spec/v1\n",
            "is a pointer of Git LFS and not the weights",
        ),
        (lambda tensors: b"<!DOCTYPE html><html>", "is a web page: fetch the file again"),
        (lambda tensors: b"\x89HDF\r\n\x1a\n and so on", "is an HDF5 file"),
        (lambda tensors: b"\x93NUMPY and so on", "is a single array"),
        (lambda tensors: b"GGUF\x03\x00\x00\x00{", "is a GGUF file"),
        (lambda tensors: b"", "is truncated: fetch it again"),
    ],
)
def test_files_that_hold_no_weights_are_named(content, sentence, tensors, tmp_path):
    for name in ("model.pth", "model.safetensors"):
        refused(tmp_path / name, content(tensors), sentence)


@pytest.mark.parametrize("name", ["model.pth", "model.PT", "pytorch_model.bin", "model.npz", "model.safetensors.gz"])
def test_nothing_is_written_under_a_name_that_promises_another_format(name, variables, tmp_path):
    for write in (weights.save_state_dict, weights.save):
        with pytest.raises(UserError, match=r"weights are written as safetensors: give a name such as .*safetensors"):
            write(tmp_path / name, MODEL, variables)
    assert not list(tmp_path.iterdir())


# Wrappers


def begin(*words):
    return lambda name: ".".join([*words, name])


@pytest.mark.parametrize(
    "wrapped",
    [
        begin("module"), begin("_orig_mod"), begin("module", "_orig_mod"), begin("_orig_mod", "module"),
        begin("module", "module"), begin("model"), begin("model", "_orig_mod", "backbone", "module"),
        begin("module", "encoder"), lambda name: name.replace("features.", "features.module."),
        lambda name: "net." + name.replace("denseblock1.", "denseblock1._orig_mod."),
    ],
)  # fmt: skip
def test_names_that_wrappers_leave_are_taken_off(wrapped, tensors, variables, tmp_path):
    content = save({wrapped(name): tensor for name, tensor in tensors.items()} | {"n_averaged": np.array(3)})
    jax.tree.map(np.testing.assert_array_equal, read(tmp_path / "model.safetensors", content), variables)


def test_wrapped_names_that_are_not_all_of_one_model_are_named(tensors, tmp_path):
    path = tmp_path / "model.safetensors"
    twice = {f"module.{name}": tensor for name, tensor in tensors.items()} | tensors
    refused(path, save(twice), r"has both .* and .*: save only one of them")
    mixed = {f"model.{name}": tensor for name, tensor in tensors.items()} | {"loss.weight": np.ones(3, np.float32)}
    refused(path, save(mixed), "is not a state dict of this DenseNet: it lacks")
    unknown = {f"ema.{name}": tensor for name, tensor in tensors.items()}
    refused(path, save(unknown), r"it lacks .* more, but has ema\.classifier\.bias: save it without 'ema'$")


@pytest.mark.peers
@pytest.mark.parametrize(
    "around",
    [
        lambda state: {"state_dict": state, "epoch": np.array(3), "optimizer": {"state": {}}},
        lambda state: {"model_state_dict": state}, lambda state: {"model": state, "args": {}},
        lambda state: {"net": state}, lambda state: {"params": state}, lambda state: {"weights": state},
        lambda state: {"model_ema": state}, lambda state: {"state_dict_ema": state},
        lambda state: {"model": {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}},
        lambda state: {"state_dict": state, "params": {"lr": {}}, "weights": {}},
    ],
)  # fmt: skip
def test_a_state_dict_is_found_in_the_checkpoint_of_a_training_run(around, tensors, variables, tmp_path):
    found = read(tmp_path / "model.pth", pickled(around(tensors)))
    jax.tree.map(np.testing.assert_array_equal, found, variables)


@pytest.mark.peers
@pytest.mark.parametrize(
    ("around", "sentence"),
    [
        (lambda state: {"model": state, "model_ema": state}, r"several sets of weights, model and model_ema: save one"),
        (lambda state: {"state_dict": {"model": state, "ema": state}}, "several sets of weights, model and ema"),
        (lambda state: {"student": state, "teacher": state}, "several sets of weights, student and teacher: save one"),
        (
            lambda state: {"discriminator": state, "generator": state},
            r"is not a state dict, which maps .*; it has discriminator, generator$",
        ),
        (lambda state: {"state_dict": {}}, "is not a state dict, which maps names to tensors"),
        (lambda state: {"weights": np.ones(3), "epoch": {}}, "is not a state dict, which maps names to tensors"),
        (lambda state: {"state_dict": [state]}, "is not a state dict, which maps names to tensors"),
    ],
)
def test_checkpoints_without_one_state_dict_are_named(around, sentence, tensors, tmp_path):
    refused(tmp_path / "model.pth", pickled(around(tensors)), sentence)


# The network that a file names


@pytest.mark.parametrize(
    ("model", "named", "fits"),
    [
        (resnet50(), "resnet50", True), (resnet50(), "resnet50.a1_in1k", True), (resnet50(), "tv_resnet50", True),
        (resnet50(), "gluon_resnet50_v1b", True), (resnet50(), "torchvision.models.resnet50", True),
        (resnet50(), "ResNet", True), (resnet50(), "timm/resnet50.tv_in1k", True), (resnet50(), None, True),
        (resnet50(), "resnetblur50.bt_in1k", False), (resnet50(), "resnetaa50", False),
        (resnet50(), "resnet50d", False), (resnet50(), "resnet101", False),
        (resnet18(), "resnet18", True), (resnet18(), "resnet34", False),
        (densenet121(), "densenet121", True), (densenet121(), "densenetblur121d", False),
        (vgg11(), "vgg11", True), (vgg11(norm=True), "vgg11_bn", True), (vgg11(), "vgg11_bn", False),
    ],
)  # fmt: skip
def test_a_network_that_is_named_must_be_the_model(model, named, fits, tmp_path):
    name, allowed = allowed_networks(model, FORMS[type(model)])
    path = tmp_path / "model.safetensors"
    if fits:
        check_network(path, named, allowed, name)
    else:
        with pytest.raises(UserError, match=f"model.safetensors says that the weights are for {named}, not for {name}"):
            check_network(path, named, allowed, name)


def test_the_network_is_read_from_the_file_and_from_timms_configuration(tensors, tmp_path):
    path = tmp_path / "model.safetensors"
    refused(path, save(tensors, {"architecture": "densenetblur121d"}), "are for densenetblur121d, not for densenet9")
    save_file(tensors, path)
    for config, sentence in (
        ({"architecture": "densenetblur121d"}, r"config\.json says that the weights are for densenetblur121d"),
        ({"architecture": "densenet9", "model_args": {"act_layer": "silu"}}, r"model_args = {'act_layer': 'silu'}"),
        ({"architecture": "densenet9", "model_args": ["silu"]}, r"model_args = \['silu'\]"),
        ({"architecture": "densenet9", "model_args": {"global_pool": "max"}}, r"model_args = {'global_pool': 'max'}"),
        ({"architecture": "densenet9", "global_pool": "catavgmax"}, "global_pool = 'catavgmax', which change what"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match=sentence):
            weights.load(tmp_path, MODEL)
    (tmp_path / "config.json").write_text(
        json.dumps({"architecture": "densenet9", "model_args": {"global_pool": "avg"}})
    )
    weights.load(tmp_path, MODEL)


@pytest.mark.peers
def test_the_network_is_read_from_a_checkpoint(tensors, tmp_path):
    torch = pytest.importorskip("torch")
    state = {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}
    for key in ("arch", "architecture", "model"):
        torch.save({"state_dict": state, key: "resnet50"}, tmp_path / "model.pth")
        with pytest.raises(UserError, match="says that the weights are for resnet50, not for densenet9"):
            weights.load(tmp_path / "model.pth", MODEL)
        options = argparse.Namespace(lr=0.1, model="densenet9")
        torch.save({"state_dict": state, key: "densenet9", "epoch": 3, "args": options}, tmp_path / "model.pth")
        weights.load(tmp_path / "model.pth", MODEL)


def test_equal_weights_are_equal_files(tmp_path):
    path, header = tmp_path / "model.safetensors", dict.fromkeys("hgfedcba", "é\n\x01\x7f\\")
    arrays = {"ü": np.arange(3, dtype=np.float32), "n": np.array(7)}
    save_safetensors(path, arrays, header=header)
    content = path.read_bytes()
    written = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    assert list(written) == [*"abcdef", "format", *"gh"]  # its writer puts them in a random order
    assert written == {"format": "pt", **header}
    for name, array in load_file(path).items():
        np.testing.assert_array_equal(array, arrays[name])


# Other numbers of classes


def test_training_begins_with_a_new_head_for_other_classes(tensors, variables, tmp_path):
    save_file(tensors, tmp_path / "model.safetensors")
    other = jax.eval_shape(MODEL.clone(num_classes=3).init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    begun = weights.begin(other, tmp_path / "model.safetensors", MODEL.clone(num_classes=3))
    assert begun["params"].pop("dense") == other["params"]["dense"]
    kept = {**variables["params"]}
    del kept["dense"]
    jax.tree.map(np.testing.assert_array_equal, begun["params"], kept)


def test_a_head_without_classes_is_named(tensors, tmp_path):
    content = save(tensors | {"classifier.bias": np.array(1, np.float32)})
    refused(tmp_path / "model.safetensors", content, r"classifier\.bias in .* has shape \(\), but a bias has one axis")


@pytest.mark.peers
def test_tensors_without_plain_values_are_named(tensors, tmp_path):
    torch = pytest.importorskip("torch")
    state = {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}
    for change, sentence in ((torch.Tensor.to_sparse, "is sparse"), (lambda t: t.to("meta"), "has no values")):
        torch.save({**state, "classifier.bias": change(state["classifier.bias"])}, tmp_path / "model.pth")
        with pytest.raises(UserError, match=f"^classifier.bias in .* {sentence}: save the model again"):
            weights.load_state_dict(tmp_path / "model.pth", MODEL)
